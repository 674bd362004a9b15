"""Official BEiT v2 weights (SPEC sections 1 and 7) under the names of this package, for the golden tests."""

import torch


RENAMES = (
    ("cls_token", "embeddings.cls_token"),
    ("mask_token", "embeddings.mask_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("rel_pos_bias.", "shared_position_bias."),
    ("blocks.", "layers."),
    ("cls_pt_layers.", "head_layers."),
    ("cls_pt_norm.", "head_layernorm."),
    ("cls_pt_lm_head.", "head_lm_head."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.proj.", ".attention.o_proj."),
    (".attn.q_bias", ".attention.q_proj.bias"),
    (".attn.v_bias", ".attention.v_proj.bias"),
    (".attn.relative_position_bias_table", ".relative_position_bias.relative_position_bias_table"),
    (".gamma_1", ".lambda_1"),
    (".gamma_2", ".lambda_2"),
    ("fc_norm.", "pooler.layernorm."),
)
# Everything else belongs to the encoder.
HEADS = ("lm_head.", "head_layers.", "head_layernorm.", "head_lm_head.", "classifier.")


def convert_key(key: str) -> str:
    """Our name of any official tensor but the joint query, key and value weight, without the encoder's prefix."""
    if key.startswith("norm."):
        return f"layer{key}"
    if key.startswith("head."):
        return key.replace("head.", "classifier.")
    for old, new in RENAMES:
        if key.startswith(old) or (old.startswith(".") and old in key):
            key = key.replace(old, new)
    return key


def convert_state_dict(official: dict[str, torch.Tensor], encoder_prefix: str = "") -> dict[str, torch.Tensor]:
    """Query, key and value split into their three row blocks, and without the indices that the window determines."""
    converted = {}
    for key, value in official.items():
        if key.endswith("relative_position_index"):
            continue
        if key.endswith(".attn.qkv.weight"):
            block = convert_key(key.removesuffix(".attn.qkv.weight"))
            parts = {
                f"{block}.attention.{name}_proj.weight": part.clone()
                for name, part in zip("qkv", value.chunk(3), strict=True)
            }
        else:
            parts = {convert_key(key): value}
        converted |= {k if k.startswith(HEADS) else encoder_prefix + k: v for k, v in parts.items()}
    return converted
