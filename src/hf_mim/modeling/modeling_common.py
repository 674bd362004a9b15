"""Base classes of all models and backbones."""

from typing import Any

import torch
from torch import nn
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BackboneOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple


# Tensor names in files of transformers' ViT, ViTMAE, BEiT and Swin, and the names of the same tensors in our models.
NATIVE_NAMES = {
    r"encoder\.layer\.": "layers.",
    r"encoder\.relative_position_bias\.": "shared_position_bias.",
    r"attention\.attention\.relative_position_bias\.": "relative_position_bias.",
    r"attention\.attention\.query\.": "attention.q_proj.",
    r"attention\.attention\.key\.": "attention.k_proj.",
    r"attention\.attention\.value\.": "attention.v_proj.",
    r"attention\.self\.query\.": "attention.q_proj.",
    r"attention\.self\.key\.": "attention.k_proj.",
    r"attention\.self\.value\.": "attention.v_proj.",
    r"attention\.self\.relative_position_bias_table": (
        "attention.relative_position_bias.relative_position_bias_table"
    ),
    r"attention\.output\.dense\.": "attention.o_proj.",
    r"intermediate\.dense\.": "mlp.fc1.",
    r"output\.dense\.": "mlp.fc2.",
}


class VisionPreTrainedModel(PreTrainedModel):
    """Base class of all models: what transformers has to know about them, and how they are loaded."""

    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _input_embed_layer = "patch_embeddings"

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """
        Load a model as transformers does, from a folder or repository of this package or of transformers.

        All models but the VQ-KD tokenizer can also be loaded from an encoder or classifier of transformers: iBOT from
        ViT, iBOT's Swin from Swin, BEiT v2 from BEiT, dBOT from ViT and ViTMAE. At the image size of that model, the
        outputs are equal. Parts that it does not have (mask token, pre-training head) are initialized and reported as
        missing. A `key_mapping` is added to the renaming of its tensors.

        Raises:
            ValueError: If the given `config` is of another model type.
        """
        assert cls.config_class is not None
        config = kwargs.get("config")
        if isinstance(config, PreTrainedConfig) and config.model_type != cls.config_class.model_type:
            raise ValueError(
                f"{cls.__name__} does not accept a {type(config).__name__}: omit config, "
                f"or pass the result of {cls.config_class.__name__}.from_pretrained(...)"
            )
        names = {r"^(vit|beit|swin)\.": f"{cls.base_model_prefix}."} | NATIVE_NAMES
        kwargs["key_mapping"] = names | (kwargs.get("key_mapping") or {})
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # Otherwise it would be saved under the names it was loaded from, and a trainer could not resume from that.
        model._weight_conversions = []
        return loaded

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False):
        # For code outside transformers, modules without parameters of their own would be skipped: blocks, heads and
        # whole models, which initialize the tensors of their parts. Loaded tensors are not overwritten in any case.
        super()._initialize_weights(module, is_custom_code=False)


class VisionBackbone(BackboneMixin):
    """
    The encoder, `base_model`, as a backbone. Mixin that comes before the method's pre-trained class among the bases.
    """

    # From the pre-trained class of the method.
    config: Any
    base_model: Any

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        r"""
        Compute the feature maps of the stages in `config.out_features`.

        Args:
            pixel_values (`[B, C, H, W]`): Normalized images; H and W are any multiples of the patch size.

        Returns:
            Feature maps `[B, D, h, w]`, or `[B, 1+N, D]` without `config.reshape_hidden_states`.
        """
        kwargs["output_hidden_states"] = True
        outputs = self.base_model(pixel_values, **kwargs)
        grid = [side // self.config.patch_size for side in pixel_values.shape[-2:]]
        feature_maps = []
        for stage, state in zip(self.stage_names, outputs.hidden_states, strict=True):
            if stage in self.out_features:
                if self.config.apply_layernorm:
                    state = self.base_model.layernorm(state)
                if self.config.reshape_hidden_states:
                    state = state[:, 1:].transpose(1, 2).unflatten(2, grid).contiguous()
                feature_maps.append(state)
        return BackboneOutput(
            feature_maps=tuple(feature_maps),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["VisionBackbone", "VisionPreTrainedModel"]
