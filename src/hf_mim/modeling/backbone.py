"""What the backbones of all methods do with the hidden states of their encoder."""

import torch
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple


class VisionBackbone(BackboneMixin):
    """
    The encoder, `base_model`, as a backbone: feature maps `[B, D, h, w]` of the stages in `config.out_features`. Comes
    before the pre-trained class of a method among the bases.
    """

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        r"""
        Args:
            pixel_values (`[B, C, H, W]`): Normalised images; H and W are any multiples of the patch size.
        """
        kwargs["output_hidden_states"] = True
        outputs = self.base_model(pixel_values, **kwargs)
        grid = [side // self.config.patch_size for side in pixel_values.shape[-2:]]
        feature_maps = ()
        for stage, state in zip(self.stage_names, outputs.hidden_states, strict=True):
            if stage in self.out_features:
                if self.config.apply_layernorm:
                    state = self.base_model.layernorm(state)
                if self.config.reshape_hidden_states:
                    state = state[:, 1:].transpose(1, 2).unflatten(2, grid).contiguous()
                feature_maps += (state,)
        return BackboneOutput(
            feature_maps=feature_maps, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = ["VisionBackbone"]
