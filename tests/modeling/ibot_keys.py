"""Official iBOT weights (SPEC section 7) under the names of this package, for the golden tests."""

import torch


BACKBONE_RENAMES = (
    ("cls_token", "embeddings.cls_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("masked_embed", "embeddings.mask_token"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("blocks.", "layers."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.proj.", ".attention.o_proj."),
    (".gamma_1", ".lambda_1"),
    (".gamma_2", ".lambda_2"),
)


def backbone_state_dict(official: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Bare backbone keys, q, k and v split into their three equal row blocks."""
    converted = {}
    for key, value in official.items():
        for old, new in BACKBONE_RENAMES:
            key = key.replace(old, new)
        if key.startswith("norm."):
            key = f"layer{key}"
        if ".attn.qkv." in key:
            for name, part in zip("qkv", value.chunk(3), strict=True):
                converted[key.replace(".attn.qkv.", f".attention.{name}_proj.")] = part.clone()
        else:
            converted[key] = value.unsqueeze(0) if key.endswith("mask_token") else value
    return converted


def head_state_dict(official: dict[str, torch.Tensor], shared: bool) -> dict[str, torch.Tensor]:
    """Keys of `iBOTHead`; the second name of a shared last layer and of the re-used norm is dropped."""
    linears = sorted({int(k.split(".")[1]) for k, v in official.items() if k.startswith("mlp.") and v.ndim == 2})
    converted = {}
    for key, value in official.items():
        parts = key.split(".")
        if parts[0] == "mlp" and int(parts[1]) in linears:
            converted[f"layers.{linears.index(int(parts[1]))}.{parts[2]}"] = value
        elif parts[0] == "mlp":
            converted[f"norm.{parts[2]}"] = value
        elif parts[0] == "mlp2":
            converted[f"patch_projection.{parts[1]}"] = value
        elif parts[0] == "last_layer" or not shared:
            module = "last_layer" if parts[0] == "last_layer" else "patch_last_layer"
            converted[f"{module}.{'magnitude' if parts[1] == 'weight_g' else 'direction'}"] = value
    return converted


def pretraining_state_dict(official: dict[str, torch.Tensor], shared: bool) -> dict[str, torch.Tensor]:
    """Keys `backbone.*` and `head.*` of a training checkpoint, with or without a leading `module.`."""
    official = {key.removeprefix("module."): value for key, value in official.items()}

    def part(name: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(name): v for k, v in official.items() if k.startswith(name)}

    backbone = backbone_state_dict(part("backbone."))
    head = head_state_dict(part("head."), shared)
    return {f"ibot.{k}": v for k, v in backbone.items()} | {f"head.{k}": v for k, v in head.items()}
