"""The catalogue of checkpoints published by the authors: addresses, architectures and reported results."""

import re
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

import yaml
from transformers import PreTrainedModel

from ..modeling.configuration_ibot_swin import IBotSwinConfig
from ..modeling.configuration_vqkd import VQKDConfig
from ..utils.console import did_you_mean


# Results reported by the authors, with their names in tables.
FIGURES = {
    "knn": "k-NN",
    "linear": "linear",
    "finetuned": "fine-tuned",
    "finetuned_256": "fine-tuned at 256 px",
    "finetuned_384": "fine-tuned at 384 px",
    "finetuned_512": "fine-tuned at 512 px",
    "top1": "top-1",
    "top5": "top-5",
    "coco_box_ap": "COCO box AP",
    "ade20k_miou": "ADE20K mIoU",
    "codes_used": "codes in use",
}


# Width, blocks and attention heads. For Swin, the width is that of the last stage, and the others are per stage.
ARCHITECTURES = {
    "ViT-S": (384, "12", "6"),
    "ViT-B": (768, "12", "12"),
    "ViT-L": (1024, "24", "16"),
    "ViT-H": (1280, "32", "16"),
    "Swin-T": (768, "2-2-6-2", "3-6-12-24"),
}


@dataclass(frozen=True)
class PublishedTeacher:
    """A teacher network: its name, the page of its authors, its license, and its id on the Hub."""

    name: str
    page: str
    license: str
    hub_id: str


@dataclass(frozen=True)
class CatalogueEntry:
    """
    A published checkpoint.

    Attributes:
        name (`str`): Name for `hf-mim convert NAME`. Equal to the name of the recipe that trains such a model, if any.
        method (`str`): iBOT, BEiT v2 or dBOT.
        paper (`str`): URL of the paper.
        page (`str`): URL of the authors' repository.
        license (`str`): Hub identifier of that repository's license. No repository states a separate license for
            weights.
        files (`str`): URL of the folder with the files.
        family (`str`): Family of the converter.
        architecture (`str`): Such as `"ViT-B/16"`. For Swin, the number is the window size.
        data (`str`): The pre-training dataset.
        image_size (`int`): Image size in pixels of the position tables.
        masks (`str`, *optional*): `"block"` or `"random"`. None for a tokenizer.
        epochs (`int`, *optional*): Number of pre-training epochs, if the authors' repository states it.
        network (`str`, *optional*): The iBOT network that `encoder_file` holds and the results belong to.
        teacher (`PublishedTeacher`, *optional*): The network whose features were learned, directly or as codes.
        first_teacher (`str`, *optional*): The teacher of dBOT's first stage, if it is not a published network.
        classes (`int`, *optional*): Number of classes of a classifier.
        finetuned_on (`str`, *optional*): Dataset and epochs of a classifier's fine-tuning.
        note (`str`, *optional*): Other distinguishing features.
        file (`str`, *optional*): The most complete file. None if it is only available from `share`.
        encoder_file (`str`, *optional*): A smaller file with only the encoder.
        share (`str`, *optional*): Page of a cloud share where the file has to be downloaded by hand.
        reported (`dict[str, float]`): Results of the authors in percent, by the names in `FIGURES`.
    """

    name: str
    method: str
    paper: str
    page: str
    license: str
    files: str
    family: str
    architecture: str
    data: str
    image_size: int = 224
    masks: str | None = None
    epochs: int | None = None
    network: str | None = None
    teacher: PublishedTeacher | None = None
    first_teacher: str | None = None
    classes: int | None = None
    finetuned_on: str | None = None
    note: str | None = None
    file: str | None = None
    encoder_file: str | None = None
    share: str | None = None
    reported: dict[str, float] = field(default_factory=dict)

    @property
    def url(self) -> str | None:
        """URL of `file`."""
        return None if self.file is None else self.files + self.file

    @property
    def encoder_url(self) -> str | None:
        """URL of `encoder_file`."""
        return None if self.encoder_file is None else self.files + self.encoder_file


@cache
def load_catalogue() -> dict[str, CatalogueEntry]:
    """Return all entries by name, in the order of `catalogue.yaml`."""
    file = resources.files("hf_mim.hub") / "catalogue.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    teachers = {name: PublishedTeacher(**facts) for name, facts in content["teachers"].items()}
    catalogue = {}
    for name, facts in content["checkpoints"].items():
        source = dict(content["sources"][facts.pop("source")])
        if "teacher" in facts:
            facts["teacher"] = teachers[facts["teacher"]]
        catalogue[name] = CatalogueEntry(name=name, **source, **facts)
    return catalogue


def find_entry(name: str) -> CatalogueEntry:
    """
    Return the published checkpoint with this name.

    Raises:
        ValueError: If there is none. The message suggests the closest name.
    """
    catalogue = load_catalogue()
    if name not in catalogue:
        raise ValueError(
            f"{name}: no such file, and no published checkpoint of that name{did_you_mean(name, catalogue)} "
            "(hf-mim convert --list shows them all)"
        )
    return catalogue[name]


def format_catalogue() -> str:
    """Format the table of `hf-mim convert --list`: one line per checkpoint, followed by notes and sources."""
    header = ("NAME", "ARCHITECTURE", "MASKS", "TRAINED ON", "EPOCHS", "HOLDS", "THE AUTHORS REPORT (%)")
    rows = [header] + [
        (
            entry.name,
            entry.architecture,
            entry.masks or "-",
            entry.data,
            str(entry.epochs or "-"),
            _holds(entry),
            _figures(entry),
        )
        for entry in load_catalogue().values()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    sources = dict.fromkeys(
        f"  {entry.method:<9}{entry.page} ({entry.license})" for entry in load_catalogue().values()
    )
    return "\n".join(
        [
            *lines,
            "",
            "hf-mim convert NAME OUT downloads and converts a checkpoint. The results are the authors', measured on",
            "ImageNet-1K unless another dataset is named, for the network in parentheses. The authors' repositories",
            "and their licenses (no repository states a separate license for weights):",
            *sources,
        ]
    )


def _figures(entry: CatalogueEntry) -> str:
    figures = ", ".join(f"{FIGURES[key]} {value:.1f}" for key, value in entry.reported.items()) or "-"
    return f"{figures} ({entry.network})" if entry.network else figures


def _holds(entry: CatalogueEntry) -> str:
    if entry.share:
        return "in a cloud share"
    if entry.family == VQKDConfig.model_type:
        return "tokenizer"
    if entry.classes:
        return f"classifier, {entry.classes:,}"
    return "student and teacher" if entry.network else "pre-training model"


def check_published(entry: CatalogueEntry, model: PreTrainedModel, family: str, network: str | None, source: str):
    """
    Check that a converted model can be the published checkpoint, so that its card does not describe another model.

    Only the family, the sizes and the network are compared; the values of the weights are not known.

    Args:
        entry (`CatalogueEntry`): The published checkpoint.
        model (`PreTrainedModel`): The converted model.
        family (`str`): Family of its converter.
        network (`str`, *optional*): `"student"` or `"teacher"` if the file held only one of iBOT's networks.
        source (`str`): Name of the file.

    Raises:
        ValueError: If the family or the sizes differ, or the authors' results belong to the other network.
    """
    found, wanted = f"{family}, {describe_sizes(model)}", f"{entry.family}, {published_sizes(entry)}"
    without_name = "; to convert it as an unpublished file, run `hf-mim convert FILE OUT`"
    if found != wanted:
        raise ValueError(f"{source} is not {entry.name}: it is {found}; the published one is {wanted}{without_name}")
    if entry.network is not None and network not in (None, entry.network):
        mark = "a mask token, so it is a student" if network == "student" else "no mask token, so it is a teacher"
        raise ValueError(
            f"{source} is not {entry.name}: it has {mark}, but the published encoder is the {entry.network}'s"
            f"{without_name}"
        )


def describe_sizes(model: PreTrainedModel) -> str:
    """Describe the sizes of a model, as in `"12 blocks, width 768, 12 heads, patches of 16, ..."`."""
    config = model.config
    if isinstance(config, IBotSwinConfig):
        blocks, heads = "-".join(map(str, config.depths)), "-".join(map(str, config.num_heads))
        parts = [f"windows of {config.window_size}"]
    else:
        blocks, heads, parts = config.num_hidden_layers, config.num_attention_heads, []
    if isinstance(config, VQKDConfig):
        parts.append(f"decoder of {config.decoder_num_hidden_layers}")
    if type(model).__name__.endswith("ForImageClassification"):
        parts.append(f"{config.num_labels:,} classes")
    images = " x ".join(str(side * config.patch_size) for side in config.grid_size)
    return _described(blocks, config.hidden_size, heads, config.patch_size, images, parts)


def published_sizes(entry: CatalogueEntry) -> str:
    """Describe the sizes of a published checkpoint, in the same form as [`describe_sizes`]."""
    found = re.match(r"(.+?)/(\d+)", entry.architecture)
    assert found is not None
    name, number = found.groups()
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
