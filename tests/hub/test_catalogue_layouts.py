"""Whether a file can be the published checkpoint of a name: by full-size layouts, which take no memory."""

import re

import pytest
import torch

from hf_mim import convert_checkpoint
from hf_mim.hub.catalogue import CatalogueEntry, check_published, load_catalogue
from hf_mim.modeling.modeling_dbot import sincos_positions
from tests.testing.official_ibot import released_weights
from tests.testing.official_listings import SWIN, beitv2_checkpoint, dbot_checkpoint, tensors, vqkd_checkpoint


CATALOGUE = load_catalogue()
SIZES = {"ViT-S": "small", "ViT-B": "base", "ViT-L": "large", "ViT-H": "huge"}


def layout(entry: CatalogueEntry) -> dict[str, torch.Tensor]:
    """Names and shapes of the entry's file; of iBOT those of one network."""
    if entry.family == "ibot_swin":
        keys = SWIN["student"] | (SWIN["window_14"] if entry.architecture.endswith("14") else {})
        return {
            k: torch.empty(shape, device="meta")
            for k, shape in keys.items()
            if "backbone." in k and not k.endswith("index")
        }
    size = SIZES[entry.architecture[:5]]
    if entry.family == "ibot":
        return released_weights(size, entry.network or "student")
    if entry.family == "vqkd":
        return vqkd_checkpoint(f"{3 if '3-block' in entry.architecture else 1}x768x12_clip", None)
    if entry.family == "beitv2":
        weights = beitv2_checkpoint(
            f"{'finetune' if entry.classes else 'pretrain'}_{size}_"
            + ("rel_pos_per_layer" if entry.classes else "cls_pt")
        )
    elif entry.teacher is not None:
        weights = dbot_checkpoint(f"beit_{'finetune' if entry.classes else 'pretrain'}_{size}")
    else:
        weights = dbot_checkpoint(f"finetune_{size}_global_pool" if entry.classes else f"pretrain_{size}")
    if entry.classes == 21841:
        weights |= tensors({"head.weight": [21841, weights["head.weight"].shape[1]], "head.bias": [21841]})
    if entry.image_size == 448:
        if "pos_embed" in weights:
            weights["pos_embed"] = sincos_positions(1280, (32, 32))
        for key, tensor in list(weights.items()):
            if key.endswith("relative_position_bias_table"):
                weights[key] = torch.empty(63 * 63 + 3, tensor.shape[1], device="meta")
            elif key.endswith("relative_position_index"):
                del weights[key]
    return weights


def like(entry: CatalogueEntry) -> tuple:
    return entry.family, entry.architecture, entry.image_size, entry.classes


@pytest.mark.parametrize("entry", {like(entry): entry for entry in CATALOGUE.values()}.values(), ids=lambda e: e.name)
def test_the_published_layouts_and_no_others(entry):
    converted = convert_checkpoint(layout(entry), entry.family)
    fits = []
    for other in CATALOGUE.values():
        try:
            check_published(other, converted.model, converted.family, None, "a.pth")
            fits.append(other.name)
        except ValueError as error:
            assert re.match(f"a.pth is not {other.name}: it is {entry.family}, .* published one is", str(error))
    assert fits == [other.name for other in CATALOGUE.values() if like(other) == like(entry)]


def test_number_of_heads():
    entry = CATALOGUE["ibot-vits16"]
    model = convert_checkpoint(layout(entry), num_attention_heads=12).model
    with pytest.raises(ValueError, match="12 blocks, width 384, 12 heads, .* published one is .* width 384, 6 heads"):
        check_published(entry, model, "ibot", "teacher", "a.pth")
