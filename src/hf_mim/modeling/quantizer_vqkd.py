"""
The codebook of a VQ-KD tokenizer: nearest codes, straight-through gradient, moving average (`norm_ema_quantizer.py`).

Shapes: M vectors, K codes, C channels of a code.
"""

import torch
import torch.distributed as dist
from torch import nn
from transformers.utils import logging

from .configuration_vqkd import VQKDConfig


logger = logging.get_logger(__name__)

KMEANS_ITERATIONS = 10
# Number of scores to compute at once: on a CPU what fits into its caches, on a GPU a bound on the memory.
SCORES_ON_CPU, SCORES_ON_GPU = 2**21, 2**27


def most_similar(samples: torch.Tensor, vectors: torch.Tensor, offsets: torch.Tensor | None = None) -> torch.Tensor:
    """
    Return the index `int64 [M]` of the vector with the largest `sample · vector + offset`, the lowest index on ties.

    Args:
        samples (`[M, C]`): Samples; their scores `[M, K]` are computed in pieces.
        vectors (`[K, C]`): Vectors to choose from.
        offsets (`[K]`, *optional*): Added to the scores of each vector.
    """
    step = max(1, (SCORES_ON_CPU if samples.device.type == "cpu" else SCORES_ON_GPU) // len(vectors))
    by_channel = vectors.t()
    best = []
    for piece in samples.split(step):
        scores = piece @ by_channel if offsets is None else torch.addmm(offsets, piece, by_channel)
        best.append(scores.argmax(1))
    return torch.cat(best)


def counts_and_sums(samples: torch.Tensor, codes: torch.Tensor, num_codes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Count and sum the samples `[M, C]` of each code, given their `codes` `[M]`: `int64 [K]` and `[K, C]`."""
    counts = torch.zeros(num_codes, dtype=torch.int64, device=codes.device)
    counts.index_add_(0, codes, torch.ones_like(codes))
    sums = samples.new_zeros(num_codes, samples.shape[1]).index_add_(0, codes, samples)
    return counts, sums


def mean_directions(counts: torch.Tensor, sums: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    """Return the normalized mean `[K, C]` of each code's samples, or its row of `otherwise` if it has none."""
    means = nn.functional.normalize(sums / counts.clamp(min=1).unsqueeze(1), dim=1)
    return torch.where(counts.unsqueeze(1) > 0, means, otherwise)


def spherical_kmeans(samples: torch.Tensor, means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Run ten Lloyd iterations with cosine similarity (`norm_ema_quantizer.py`, `kmeans`).

    Args:
        samples (`[M, C]`): Unit vectors.
        means (`[K, C]`): Initial means. A mean without samples does not change.

    Returns:
        The means `[K, C]`, and the number of samples of each in the last iteration, `int64 [K]`.
    """
    for _ in range(KMEANS_ITERATIONS):
        counts, sums = counts_and_sums(samples, most_similar(samples, means), len(means))
        means = mean_directions(counts, sums, means)
    return means, counts


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _of_all_processes(rows: torch.Tensor) -> torch.Tensor:
    """Gather the rows of all processes, in the order of the processes; their numbers of rows may differ."""
    if not _several_processes():
        return rows
    world_size = dist.get_world_size()
    length = torch.tensor([len(rows)], device=rows.device)
    lengths = [torch.empty_like(length) for _ in range(world_size)]
    dist.all_gather(lengths, length)
    sizes = torch.cat(lengths).tolist()
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])


def _is_first_process() -> bool:
    return not _several_processes() or dist.get_rank() == 0


class VQKDQuantizer(nn.Module):
    """
    Replaces each vector by the nearest of K unit vectors, the codebook.

    In training mode, every forward pass collects the number and the sum of each code's vectors. `update_codebook`,
    called once per optimizer step, then updates the codebook. The codebook is the same in all processes: its initial
    k-means and its updates use the vectors of all processes. In eval mode, nothing changes.

    All arithmetic is in the precision of the codebook (float32), even under autocast. On a GPU, the order in which
    PyTorch sums a code's vectors is only deterministic after `torch.use_deterministic_algorithms(True)`.

    Buffers:
        codebook (`[K, C]`): Unit vectors.
        usage (`[K]`): Moving average of the number of vectors per code and step.
        initialized (`bool []`): True if there is a codebook.
        idle_steps (`int64 [K]`): Optimizer steps since the code was last used or revived.
    """

    codebook: torch.Tensor
    usage: torch.Tensor
    initialized: torch.Tensor
    idle_steps: torch.Tensor

    def __init__(self, config: VQKDConfig):
        super().__init__()
        self.decay = config.codebook_decay
        self.commitment_weight = config.commitment_weight
        self.revive_after_steps = config.revive_after_steps
        num_codes = config.codebook_size
        self.register_buffer("codebook", torch.zeros(num_codes, config.codebook_dim))
        self.register_buffer("usage", torch.zeros(num_codes))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))
        # Also counted without `revive_after_steps`, which can then be set when training continues.
        self.register_buffer("idle_steps", torch.zeros(num_codes, dtype=torch.int64))
        self._forget()

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._forget()

    def _forget(self):
        # A codebook never disappears, so once it is known to exist, the host need not synchronize to check again.
        self._known_initialized = False
        # Since the last update: counts [K], sums [K, C] and, if codes are revived, the vectors themselves.
        self._counts: torch.Tensor | None = None
        self._sums: torch.Tensor | None = None
        self._samples: torch.Tensor | None = None

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Quantize features.

        Args:
            features (`[..., C]`): Vectors of any length, which are normalized first.

        Returns:
            The vectors of the codes `[..., C]`, with the gradient of the normalized features (straight-through); the
            codes, `int64 [...]`; and the commitment loss, the mean squared difference from the normalized features.

        Raises:
            ValueError: In eval mode, if there is no codebook yet (not checked in compiled programs).
        """
        with torch.autocast(features.device.type, enabled=False):
            normalized = nn.functional.normalize(features.to(self.codebook.dtype), dim=-1)
            samples = normalized.detach().flatten(0, -2)
            if self.training and not self._is_initialized():
                self._init_codebook(samples)
            codes = self._nearest(samples)
            vectors = self.codebook[codes].view_as(normalized)
            if self.training:
                self._collect(samples, codes)
            loss = self.commitment_weight * nn.functional.mse_loss(normalized, vectors)
            quantized = normalized + (vectors - normalized).detach()
        return quantized, codes.view(normalized.shape[:-1]), loss

    @torch.no_grad()
    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """
        Return the codes `int64 [...]` of features `[..., C]`, without collecting statistics in any mode.

        Raises:
            ValueError: If there is no codebook yet (not checked in compiled programs).
        """
        with torch.autocast(features.device.type, enabled=False):
            samples = nn.functional.normalize(features.to(self.codebook.dtype), dim=-1).flatten(0, -2)
            return self._nearest(samples).view(features.shape[:-1])

    def _nearest(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the codes `[M]` with the smallest squared distance, without computing its constant |sample|²."""
        self.check_initialized()
        return most_similar(samples, self.codebook, -0.5 * self.codebook.square().sum(1))

    def check_initialized(self):
        """Raise `ValueError` if there is no codebook yet."""
        # torch.compile and torch.export cannot branch on the value of a tensor.
        if not torch.compiler.is_compiling() and not self._is_initialized():
            raise ValueError(
                "the tokenizer has no codebook yet: load a trained one, or run a training step, which initializes it "
                "by k-means"
            )

    def _is_initialized(self) -> bool:
        self._known_initialized = self._known_initialized or bool(self.initialized)
        return self._known_initialized

    def _init_codebook(self, samples: torch.Tensor):
        """
        Initialize the codebook by k-means over the vectors `[M, C]` of all processes, computed by the first process.
        The initial means are a random choice of these vectors; if there are fewer than codes, some are chosen
        repeatedly, and of equal means only the first one will be used.
        """
        samples, num_codes = _of_all_processes(samples), len(self.codebook)
        if _is_first_process():
            if len(samples) < num_codes:
                logger.warning(
                    f"the first training batch has {len(samples)} patches for a codebook of {num_codes}: codes "
                    "initialized as copies of others will never be used. Use larger batches for the first step, a "
                    "smaller codebook_size, or revive_after_steps"
                )
                chosen = torch.randint(0, len(samples), (num_codes,))
            else:
                chosen = torch.randperm(len(samples))[:num_codes]
            self.codebook.copy_(spherical_kmeans(samples, samples[chosen.to(samples.device)])[0])
        if _several_processes():
            dist.broadcast(self.codebook, 0)
        self.initialized.fill_(True)

    def _collect(self, samples: torch.Tensor, codes: torch.Tensor):
        counts, sums = counts_and_sums(samples, codes, len(self.codebook))
        self._counts = counts if self._counts is None else self._counts + counts
        self._sums = sums if self._sums is None else self._sums + sums
        if self.revive_after_steps:
            # A single tensor: a list would be recompiled for each length.
            self._samples = samples if self._samples is None else torch.cat((self._samples, samples))

    @torch.no_grad()
    def update_codebook(self) -> torch.Tensor:
        """
        Move each code that was used since the last update toward the mean of its vectors, whatever their number, and
        update the usage of all codes. With several processes, all must call this method.

        Returns:
            Number of vectors of each code, in all processes together: `int64 [K]`.

        Raises:
            ValueError: If there was no forward pass in training mode since the last update.
        """
        if self._counts is None or self._sums is None:
            raise ValueError("update_codebook needs a forward pass in training mode since its last call")
        counts, sums, samples = self._counts, self._sums, self._samples
        self._counts, self._sums, self._samples = None, None, None
        if _several_processes():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        self.usage.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        means = mean_directions(counts, sums, self.codebook)
        moved = nn.functional.normalize(self.decay * self.codebook + (1 - self.decay) * means, dim=1)
        self.codebook.copy_(torch.where(counts.unsqueeze(1) > 0, moved, self.codebook))
        self.idle_steps.add_(1).masked_fill_(counts > 0, 0)
        if self.revive_after_steps:
            assert samples is not None
            self._revive(samples)
        return counts

    def _revive(self, samples: torch.Tensor):
        """Replace codes that were idle for too long by the vectors of random samples, without repetition."""
        idle = (self.idle_steps >= self.revive_after_steps).nonzero().squeeze(1)
        if not len(idle):
            return
        samples = _of_all_processes(samples)
        # Drawn by the first process only. Checkpoints contain the random state of every process.
        if _is_first_process():
            chosen = torch.randperm(len(samples))[: len(idle)].to(samples.device)
            self.codebook[idle[: len(chosen)]] = samples[chosen]
        self.idle_steps[idle[: len(samples)]] = 0
        if _several_processes():
            dist.broadcast(self.codebook, 0)


def code_statistics(counts: torch.Tensor) -> dict[str, float]:
    """
    Return statistics of how K codes are used.

    Args:
        counts (`[K]`): How often each code was chosen; on any device.

    Returns:
        `codebook_usage`: fraction of the codes that were chosen at least once.
        `perplexity`: exp of the entropy of the choices, from 1 (always the same code) to K (all equally often); 0 if
        nothing was chosen.
        `dead_codes`: number of codes that were never chosen.
        `majority_code`: fraction of the choices that are the most frequent code, which is the accuracy of always
        predicting this code.

    Raises:
        ValueError: If `counts` is not a non-empty vector of non-negative numbers.
    """
    if counts.ndim != 1 or len(counts) == 0 or bool((counts < 0).any()):
        raise ValueError(f"counts must be one non-negative number per code, got shape {[*counts.shape]}")
    # On the CPU, because not every device has float64.
    counts = counts.cpu().double()
    dead = int((counts == 0).sum())
    shares = counts / counts.sum().clamp(min=1)
    return {
        "codebook_usage": 1 - dead / len(counts),
        "perplexity": float(torch.special.entr(shares).sum().exp()) if dead < len(counts) else 0.0,
        "dead_codes": dead,
        "majority_code": float(shares.max()),
    }


__all__ = [
    "VQKDQuantizer",
    "code_statistics",
    "counts_and_sums",
    "mean_directions",
    "most_similar",
    "spherical_kmeans",
]
