"""The checkpoints that the authors publish: where they lie, what they are, and what the authors report of them."""

import re
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

import yaml
from transformers import PreTrainedModel

from ..modeling.configuration_ibot_swin import IBotSwinConfig
from ..modeling.configuration_vqkd import VQKDConfig
from ..utils.console import did_you_mean


# What the authors measure, as the tables call it.
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


# Width, blocks and attention heads; of Swin the width of the last stage, and the others by stages.
ARCHITECTURES = {
    "ViT-S": (384, "12", "6"),
    "ViT-B": (768, "12", "12"),
    "ViT-L": (1024, "24", "16"),
    "ViT-H": (1280, "32", "16"),
    "Swin-T": (768, "2-2-6-2", "3-6-12-24"),
}


@dataclass(frozen=True)
class PublishedTeacher:
    """A network that others learned from: its name, the page of its authors, their licence, its id on the Hub."""

    name: str
    page: str
    license: str
    hub_id: str


@dataclass(frozen=True)
class CatalogueEntry:
    """
    A published checkpoint.

    Attributes:
        name (`str`): As in `hf-mim convert NAME`; that of the recipe, where the recipe trains such a model.
        method (`str`): iBOT, BEiT v2 or dBOT.
        paper, page (`str`): Addresses of the paper and of the authors' repository.
        license (`str`): Licence of that repository, by its identifier on the Hub. None states another one for weights.
        files (`str`): Address of the folder of their files.
        family (`str`): Family of the converter.
        architecture (`str`): Such as `"ViT-B/16"`; of Swin, the number is the window.
        data (`str`): What it was pre-trained on.
        image_size (`int`): Side in pixels of the images that its tables of positions are for.
        masks (`str`, *optional*): `"block"` or `"random"`; a tokenizer has none.
        epochs (`int`, *optional*): Of the pre-training, where the authors' repository states them.
        network (`str`, *optional*): Which of iBOT's networks `encoder_file` holds and the figures belong to.
        teacher (`PublishedTeacher`, *optional*): The network whose features were learned, directly or as codes.
        first_teacher (`str`, *optional*): The teacher of dBOT's first stage, where it is not a published one.
        classes (`int`, *optional*): Classes of a classifier.
        finetuned_on (`str`, *optional*): Data and epochs of a classifier's training.
        note (`str`, *optional*): What else sets it apart.
        file (`str`, *optional*): The one that holds most; None where only `share` has it.
        encoder_file (`str`, *optional*): A smaller one with the encoder alone.
        share (`str`, *optional*): Page of a cloud share, from which a person has to fetch the file.
        reported (`dict[str, float]`): Figures of the authors in percent, by the names in `FIGURES`.
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
        """Address of `file`."""
        return None if self.file is None else self.files + self.file

    @property
    def encoder_url(self) -> str | None:
        """Address of `encoder_file`."""
        return None if self.encoder_file is None else self.files + self.encoder_file


@cache
def load_catalogue() -> dict[str, CatalogueEntry]:
    """All entries by name, in the order of `catalogue.yaml`."""
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
    The published checkpoint of this name.

    Raises:
        ValueError: If there is none; the nearest name is in the message.
    """
    catalogue = load_catalogue()
    if name not in catalogue:
        raise ValueError(
            f"{name}: no such file, and no published checkpoint of that name{did_you_mean(name, catalogue)} "
            "(hf-mim convert --list names all)"
        )
    return catalogue[name]


def format_catalogue() -> str:
    """The table that `hf-mim convert --list` prints, one line per checkpoint, and what its columns mean."""
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
            "hf-mim convert NAME OUT downloads and converts one. The figures are the authors', of ImageNet-1K unless",
            "they name other data, and of the network in brackets. The authors' pages, and the licences of their",
            "repositories, which state no others for the weights:",
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
    """The same of a published checkpoint."""
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
