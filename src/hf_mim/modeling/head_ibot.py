"""
The projection head of iBOT (paper section 4.1; `models/head.py`).

Shapes: T tokens, R sequences of a CLS token and N patches, M masked patches, C CLS tokens, D channels, K and P
prototypes.
"""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_ibot import IBotConfig


class IBotWeightNormLinear(nn.Module):
    """
    Linear layer without bias whose weight is `magnitude · direction / ‖direction‖` for each output row.

    A frozen magnitude is a buffer, not a parameter, because `from_pretrained` makes every parameter trainable again.
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
        """`[..., in_features]` to `[..., out_features]`."""
        weight = self.direction * (self.magnitude / self.direction.norm(dim=1, keepdim=True))
        return nn.functional.linear(hidden_states, weight)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class IBotHead(nn.Module):
    """
    Projection head (`models/head.py`, `iBOTHead`): an MLP shared by the CLS token and the patches, L2 normalization,
    and a weight-normalized last layer for each of the two, or one for both with `config.shared_head`.
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
        """`[T, D]` to the input of the last layers: `[T, bottleneck]`, or `[T, hidden]` without a bottleneck."""
        for layer in self.layers[:-1]:
            tokens = self.activation_fn(self.norm(layer(tokens)))
        if not self.bottleneck_size:
            return tokens
        return nn.functional.normalize(self.layers[-1](tokens), dim=-1, eps=1e-12)

    def project_cls(self, embedded: torch.Tensor) -> torch.Tensor:
        """Return the logits `[T, K]` of embedded CLS tokens."""
        return (self.layers[-1] if self.last_layer is None else self.last_layer)(embedded)

    def project_patch(self, embedded: torch.Tensor) -> torch.Tensor:
        """Return the logits `[T, P]` of embedded patches."""
        for projection in (self.patch_last_layer, self.patch_projection):
            if projection is not None:
                return projection(embedded)
        return self.project_cls(embedded)

    def project(self, cls_embedded: torch.Tensor, patch_embedded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits `[T, K]` of embedded CLS tokens and `[M, P]` of embedded patches."""
        if self.patch_last_layer is None and self.patch_projection is None:
            # In one call, so that the shared layer normalizes its weight once.
            logits = self.project_cls(torch.cat((cls_embedded, patch_embedded)))
            cls_logits, patch_logits = logits.tensor_split((len(cls_embedded),))
            return cls_logits, patch_logits
        return self.project_cls(cls_embedded), self.project_patch(patch_embedded)

    def forward(
        self, tokens: list[torch.Tensor], token_indices: list[torch.Tensor], num_global_cls: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Compute the logits of the given tokens of all views.

        Args:
            tokens (list of `[T, D]`): Encoder output at `token_indices`, for the global views and then, if there are
                any, the local views; with batch norm, whole sequences `[R, 1+N, D]`.
            token_indices (list of `int64 [T]`): Positions of these tokens in the flattened sequences: CLS tokens and
                then patches of the global views, CLS tokens of the local views.
            num_global_cls (`int`): Number of CLS tokens among the global tokens.

        Returns:
            Logits `[C, K]` of the CLS tokens of all views, global views first, and `[M, P]` of the patches.
        """
        if self.has_batch_norm:
            # The batch statistics include all tokens, also those that are not predicted.
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
        Compute the logits of some tokens, and the mean logits of all patches.

        Args:
            hidden_states (`[R, 1+N, D]`): Encoder output.
            token_indices (`int64 [R+M]`): All CLS tokens and then M patches, as positions in the flattened sequences.

        Returns:
            Logits `[R, K]` of the CLS tokens and `[M, P]` of the patches, and the mean logits `[P]`.
        """
        rows, length, _ = hidden_states.shape
        embedded = self.embed(hidden_states.flatten(0, 1))
        # The last layer is linear, so the mean logit of the patches is the logit of their mean.
        with torch.autocast(embedded.device.type, enabled=False):
            patches = embedded.unflatten(0, (rows, length))[:, 1:]
            mean_logit = self.project_patch(patches.mean((0, 1), dtype=self.layers[0].weight.dtype)[None])[0]
        return *self.project(*embedded[token_indices].tensor_split((rows,))), mean_logit


__all__ = ["IBotHead", "IBotWeightNormLinear"]
