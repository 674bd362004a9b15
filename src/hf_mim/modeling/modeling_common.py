"""Base classes of all models and backbones."""

import torch
from torch import nn
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BackboneOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple


# What files of plain encoders of transformers call their tensors; in memory, they have the names that they have here.
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
    """What the models of every method tell transformers about themselves, and how they are loaded."""

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _input_embed_layer = "patch_embeddings"

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """
        As in transformers. For all but a tokenizer of VQ-KD, the folder or repository can also hold a plain encoder or
        classifier of transformers, of a type that the configuration knows: ViT for iBOT, Swin for iBOT with a Swin
        Transformer, BEiT for BEiT v2, ViT and ViTMAE for dBOT. At its own image size, the numbers are those of the
        plain model; what it does not have (mask token, pre-training head) is new and reported as missing. A
        `key_mapping` adds to the renaming of a plain model's tensors.

        Raises:
            ValueError: If a configuration is given that is of another type than this model's.
        """
        config = kwargs.get("config")
        if isinstance(config, PreTrainedConfig) and config.model_type != cls.config_class.model_type:
            raise ValueError(
                f"{cls.__name__} takes no {type(config).__name__}: leave config out, "
                f"or give what {cls.config_class.__name__}.from_pretrained(...) reads there"
            )
        names = {r"^(vit|beit|swin)\.": f"{cls.base_model_prefix}."} | NATIVE_NAMES
        kwargs["key_mapping"] = names | (kwargs.get("key_mapping") or {})
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # Otherwise it would be saved under the names that it was loaded from, and no trainer could resume from that.
        model._weight_conversions = []
        return loaded

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False):
        # For code outside transformers, modules without a parameter of their own would be passed over: blocks, heads
        # and whole models, which set the tensors of their parts. Loaded tensors are safe from `initialization` anyway.
        super()._initialize_weights(module, is_custom_code=False)


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


__all__ = ["VisionBackbone", "VisionPreTrainedModel"]
