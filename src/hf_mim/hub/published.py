"""Whether a converted file can be the published checkpoint whose name it is given."""

import re

from transformers import PreTrainedModel

from .catalogue import ARCHITECTURES, CatalogueEntry


def check_published(entry: CatalogueEntry, model: PreTrainedModel, family: str, network: str | None, source: str):
    """
    Make sure that a card does not say of another model what is true of a published one.

    Args:
        entry (`CatalogueEntry`): The published checkpoint.
        model (`PreTrainedModel`): What was converted.
        family (`str`): Family of its converter.
        network (`str`, *optional*): `"student"` or `"teacher"`, where the file held one of iBOT's networks alone.
        source (`str`): Name of the file.

    Raises:
        ValueError: For another family, other sizes, or the network to which the authors' figures do not belong. That
            the values are those of the authors cannot be known.
    """
    found, wanted = f"{family}, {describe_sizes(model)}", f"{entry.family}, {published_sizes(entry)}"
    without_name = "; as a file of its own it is converted by `hf-mim convert FILE OUT`"
    if found != wanted:
        raise ValueError(f"{source} is not {entry.name}: it is {found}; the published one is {wanted}{without_name}")
    if entry.network is not None and network not in (None, entry.network):
        mark = "a mask token, as students do" if network == "student" else "no mask token, as teachers do"
        raise ValueError(
            f"{source} is not {entry.name}: it has {mark}, and the published encoder is the {entry.network}'s"
            f"{without_name}"
        )


def describe_sizes(model: PreTrainedModel) -> str:
    """What the shapes of a model's weights say: `"12 blocks, width 768, 12 heads, patches of 16, ..."`."""
    config = model.config
    if config.model_type == "ibot_swin":
        blocks, heads = "-".join(map(str, config.depths)), "-".join(map(str, config.num_heads))
        parts = [f"windows of {config.window_size}"]
    else:
        blocks, heads, parts = config.num_hidden_layers, config.num_attention_heads, []
    if config.model_type == "vqkd":
        parts.append(f"decoder of {config.decoder_num_hidden_layers}")
    if type(model).__name__.endswith("ForImageClassification"):
        parts.append(f"{config.num_labels:,} classes")
    images = " x ".join(str(side * config.patch_size) for side in config.grid_size)
    return _described(blocks, config.hidden_size, heads, config.patch_size, images, parts)


def published_sizes(entry: CatalogueEntry) -> str:
    """The same of a published checkpoint."""
    name, number = re.match(r"(.+?)/(\d+)", entry.architecture).groups()
    width, blocks, heads = ARCHITECTURES[name]
    patch_size, parts = number, []
    if name.startswith("Swin"):
        patch_size, parts = "4", [f"windows of {number}"]
    if decoder := re.search(r"(\d+)-block decoder", entry.architecture):
        parts.append(f"decoder of {decoder[1]}")
    if entry.classes is not None:
        parts.append(f"{entry.classes:,} classes")
    return _described(blocks, width, heads, patch_size, f"{entry.image_size} x {entry.image_size}", parts)


def _described(
    blocks: str | int, width: int, heads: str | int, patch_size: str | int, images: str, parts: list[str]
) -> str:
    sizes = [f"{blocks} blocks", f"width {width}", f"{heads} heads", f"patches of {patch_size}", f"images of {images}"]
    return ", ".join([*sizes, *parts])
