"""Official VQ-KD weights (SPEC sections 2 and 6) under the names of this package, for the golden tests."""

import torch

from .beitv2_keys import convert_state_dict


# What belongs to the teacher and to the scaling of its input, and what the original keeps but never uses.
DROPPED = (
    "teacher_model.",
    "scaling_layer.",
    "loss",
    "quantize.embedding.cluster_size",
    "quantize.embedding.embed_avg",
)
QUANTIZER = {
    "quantize.embedding.weight": "quantizer.codebook",
    "quantize.cluster_size": "quantizer.usage",
    "quantize.embedding.initted": "quantizer.initialized",
}


def tokenizer_state_dict(official: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    converted = {}
    for part in ("encoder", "decoder"):
        weights = {k.removeprefix(f"{part}."): v for k, v in official.items() if k.startswith(f"{part}.")}
        # Without pooling, the norm of the mean patch becomes that of every patch.
        weights = {k.replace("fc_norm.", "norm."): v for k, v in weights.items()}
        converted |= {f"{part}.{k}": v for k, v in convert_state_dict(weights).items()}
    for key, value in official.items():
        if key in QUANTIZER:
            converted[QUANTIZER[key]] = value.bool().reshape(()) if key.endswith("initted") else value
        elif not key.startswith(("encoder.", "decoder.", *DROPPED)):
            converted[key] = value
    if "quantizer.codebook" in converted:
        # The original does not count them.
        codebook = converted["quantizer.codebook"]
        converted["quantizer.idle_steps"] = torch.zeros(len(codebook), dtype=torch.int64, device=codebook.device)
    return converted
