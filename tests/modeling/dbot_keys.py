"""Official dBOT weights (SPEC sections 2 and 11) under the names of this package, for the golden tests."""

import torch


RENAMES = (
    ("cls_token", "embeddings.cls_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("blocks.", "layers."),
    ("norm.", "layernorm."),
    ("fc_norm.", "pooler.layernorm."),
    ("head.", "classifier."),
    ("mask_token", "decoder.mask_token"),
    ("decoder_embed.", "decoder.embed."),
    ("decoder_blocks.", "decoder.layers."),
    ("decoder_norm.", "decoder.layernorm."),
    ("decoder_predp.", "decoder.prediction."),
)
INNER_RENAMES = (
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.proj.", ".attention.o_proj."),
)
# Everything else belongs to the encoder.
HEADS = ("decoder.", "classifier.")


def convert_key(key: str) -> str:
    """Our name of any official tensor but the joint query, key and value ones, without the encoder's prefix."""
    for old, new in RENAMES:
        if key.startswith(old):
            key = key.replace(old, new, 1)
            break
    for old, new in INNER_RENAMES:
        key = key.replace(old, new)
    return key


def convert_state_dict(
    official: dict[str, torch.Tensor], encoder_prefix: str = "", trainable_positions: bool = False
) -> dict[str, torch.Tensor]:
    """Query, key and value split into their three row blocks; fixed position tables are computed, and left out."""
    converted = {}
    for key, value in official.items():
        if key == "decoder_pos_embed" or (key == "pos_embed" and not trainable_positions):
            continue
        if ".attn.qkv." in key:
            block, kind = convert_key(key).split(".attn.qkv.")
            parts = {
                f"{block}.attention.{name}_proj.{kind}": part.clone()
                for name, part in zip("qkv", value.chunk(3), strict=True)
            }
        else:
            parts = {convert_key(key): value}
        converted |= {k if k.startswith(HEADS) else encoder_prefix + k: v for k, v in parts.items()}
    return converted
