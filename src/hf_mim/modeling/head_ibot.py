"""The projection head of iBOT (paper section 4.1; `models/head.py`)."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_ibot import IBotConfig


class IBotWeightNormLinear(nn.Module):
    """
    Bias-free linear layer with weight `magnitude · direction / ‖direction‖` per output row.

    The magnitude is a buffer instead of a parameter when it is frozen: `from_pretrained` turns the gradient of every
    parameter on again.
    """

    def __init__(self, in_features: int, out_features: int, frozen_magnitude: bool):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.direction = nn.Parameter(torch.zeros(out_features, in_features))
        if frozen_magnitude:
            self.register_buffer("magnitude", torch.ones(out_features, 1))
        else:
            self.magnitude = nn.Parameter(torch.ones(out_features, 1))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        weight = self.direction * (self.magnitude / self.direction.norm(dim=1, keepdim=True))
        return nn.functional.linear(hidden_states, weight)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class IBotHead(nn.Module):
    """
    Projection head (`models/head.py`, `iBOTHead`): an MLP shared by CLS token and patches, L2 normalisation, and a
    weight-normalised last layer each, or one for both with `config.shared_head`.
    """

    def __init__(self, config: IBotConfig):
        super().__init__()
        self.bottleneck_size = config.head_bottleneck_size
        self.has_batch_norm = config.head_norm in ("bn", "syncbn")
        width = config.head_hidden_size
        output_size = self.bottleneck_size or config.out_dim
        sizes = [config.hidden_size] + [width] * (config.head_num_layers - 1) + [output_size]
        self.layers = nn.ModuleList([nn.Linear(*pair) for pair in zip(sizes[:-1], sizes[1:], strict=True)])
        # One instance serves all hidden layers, as in the original code.
        norm_class = {"bn": nn.BatchNorm1d, "syncbn": nn.SyncBatchNorm, "ln": nn.LayerNorm, None: nn.Identity}
        self.norm = norm_class[config.head_norm](width)
        self.activation_fn = ACT2FN[config.head_act]
        self.last_layer = self.patch_last_layer = self.patch_projection = None
        if self.bottleneck_size:
            self.last_layer = IBotWeightNormLinear(self.bottleneck_size, config.out_dim, config.norm_last_layer)
            if not config.shared_head:
                self.patch_last_layer = IBotWeightNormLinear(
                    self.bottleneck_size, config.patch_out_dim, config.norm_last_layer
                )
        elif not config.shared_head:
            self.patch_projection = nn.Linear(sizes[-2], config.patch_out_dim)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[T, D]` to what the last layers take, `[T, bottleneck]` (without a bottleneck: `[T, hidden]`)."""
        for layer in self.layers[:-1]:
            tokens = self.activation_fn(self.norm(layer(tokens)))
        if not self.bottleneck_size:
            return tokens
        return nn.functional.normalize(self.layers[-1](tokens), dim=-1, eps=1e-12)

    def project_cls(self, embedded: torch.Tensor) -> torch.Tensor:
        """Logits `[T, K]` of embedded CLS tokens."""
        return (self.layers[-1] if self.last_layer is None else self.last_layer)(embedded)

    def project_patch(self, embedded: torch.Tensor) -> torch.Tensor:
        """Logits `[T, P]` of embedded patches."""
        for projection in (self.patch_last_layer, self.patch_projection):
            if projection is not None:
                return projection(embedded)
        return self.project_cls(embedded)

    def project(self, cls_embedded: torch.Tensor, patch_embedded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[T, K]` of embedded CLS tokens and `[M, P]` of embedded patches."""
        if self.patch_last_layer is None and self.patch_projection is None:
            # Together, so that the layer they share normalises its weight once.
            return self.project_cls(torch.cat((cls_embedded, patch_embedded))).tensor_split((len(cls_embedded),))
        return self.project_cls(cls_embedded), self.project_patch(patch_embedded)

    def forward(
        self, tokens: list[torch.Tensor], token_indices: list[torch.Tensor], num_global_cls: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            tokens (list of `[T, D]`): Encoder output of the global and, if there are any, of the local views at
                `token_indices`; with batch norm whole sequences `[R, 1+N, D]`.
            token_indices (list of `int64 [T]`): Tokens whose logits are wanted, as positions in the flattened
                sequences: CLS tokens and then patches of the global views, CLS tokens of the local ones.
            num_global_cls (`int`): How many of the global tokens are CLS tokens.

        Returns:
            Logits `[C, K]` of the CLS tokens of all views, global ones first, and `[M, P]` of the patches.
        """
        if self.has_batch_norm:
            # Batch statistics are those of all tokens, also of the ones that are not predicted.
            pairs = zip(tokens, token_indices, strict=True)
            embedded = torch.cat([self.embed(states.flatten(0, 1))[indices] for states, indices in pairs])
        else:
            embedded = self.embed(torch.cat(tokens))
        cls, patches, local_cls = embedded.tensor_split((num_global_cls, len(token_indices[0])))
        return self.project(torch.cat((cls, local_cls)), patches)

    def forward_with_mean(
        self, hidden_states: torch.Tensor, token_indices: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Logits `[R, K]` and `[M, P]` of the wanted tokens of `[R, 1+N, D]`, and the mean of the logits of all patches,
        `[P]`.
        """
        rows, length, _ = hidden_states.shape
        embedded = self.embed(hidden_states.flatten(0, 1))
        # The last layer is linear: the mean logit of the patches is the logit of the mean patch.
        with torch.autocast(embedded.device.type, enabled=False):
            patches = embedded.unflatten(0, (rows, length))[:, 1:]
            mean_logit = self.project_patch(patches.mean((0, 1), dtype=self.layers[0].weight.dtype)[None])[0]
        return *self.project(*embedded[token_indices].tensor_split((rows,))), mean_logit
