"""What has to be true of a folder before it goes to the Hub, found without asking the Hub."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..methods import has_online_teacher
from ..utils.console import first_line
from ..utils.layout import CENTERS_FILE, TEACHER_FOLDER


TEXT_FILES = (".json", ".md", ".yaml")
# An absolute path of at least two parts, one below a home folder, a Windows drive or a file:// address. A slash after
# a letter, as in and/or and https://host/page, begins none.
MACHINE_PATH = re.compile(
    r"(?:(?<=[\s\"'`=:,;(\[{<>|])|^)(?:/[\w.@+-]+/[\w.@+-]|~[\w.-]*/[\w.]|[A-Za-z]:\\+\w|file://)[^\s\"'`)\]<>}|]*",
    re.MULTILINE,
)
# As the Hub gives them out.
ACCESS_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
PASSWORD = re.compile(r"://[^\s/@\"'`]+:[^\s/@\"'`]+@")
# Of which none holds text that would have to be read.
PICTURE_FILES = (".png", ".jpg", ".jpeg", ".gif", ".webp")
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)[^)]*\)|<img[^>]*\ssrc=[\"']([^\"']+)[\"']")


@dataclass(frozen=True)
class ModelFacts:
    """What a checked folder holds: class and number of parameters of its model, and the licence of its card."""

    architecture: str
    parameters: int
    license: str | None


def check_repo_id(repo_id: str):
    """Raise `ValueError` unless `repo_id` is a name that the Hub takes, with the user or organisation before it."""
    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise ValueError(f"the repository must be ORGANISATION/NAME or USER/NAME, got {repo_id!r}")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name for a repository: {error}") from error


def check_upload(folder: Path, shown_as: str) -> ModelFacts:
    """
    Make sure that a folder can be published as it is: model, image processor and teacher load with nothing missing
    and nothing left over, the card's metadata are valid and its pictures are there, no file names a path of this
    machine or holds an access token.

    Args:
        folder (`Path`): What goes into the repository, and nothing else.
        shown_as (`str`): Name of the folder in messages.

    Raises:
        ValueError, OSError: For the first of these that is not so; names the file and says what would be right.
    """
    card = check_card(folder, shown_as)
    for file in sorted(path for path in folder.rglob("*") if path.suffix in TEXT_FILES):
        name = f"{shown_as}/{file.relative_to(folder)}"
        check_text(_read(file, name), name)
    model = check_model(folder, shown_as)
    if not (folder / IMAGE_PROCESSOR_NAME).is_file():
        raise ValueError(f"{shown_as} has no {IMAGE_PROCESSOR_NAME}: save the image processor of the model there")
    try:
        AutoImageProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = first_line(error).replace(str(folder), shown_as)
        raise ValueError(f"{shown_as}/{IMAGE_PROCESSOR_NAME} gives no image processor: {reason}") from error
    if (folder / TEACHER_FOLDER / CONFIG_NAME).is_file():
        teacher = check_model(folder / TEACHER_FOLDER, f"{shown_as}/{TEACHER_FOLDER}")
        centers = folder / TEACHER_FOLDER / CENTERS_FILE
        if has_online_teacher(teacher.config.model_type) and not centers.is_file():
            raise ValueError(
                f"{shown_as}/{TEACHER_FOLDER} has no {CENTERS_FILE}, without which training cannot go on from it: "
                "add the file, or remove the folder"
            )
    license_name = card.data.get("license")
    if license_name == "other":
        license_name = card.data.get("license_name") or license_name
    return ModelFacts(type(model).__name__, model.num_parameters(), license_name)


def read_config(folder: Path, shown_as: str) -> PreTrainedConfig:
    """The configuration of a folder; raises `ValueError` when it cannot be read, or is of a model nobody knows."""
    name = f"{shown_as}/{CONFIG_NAME}"
    try:
        model_type = json.loads(_read(folder / CONFIG_NAME, name)).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{name} is no configuration: {error}") from error
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"{name} is of a model of type {model_type!r}, which neither transformers nor hf_mim has")
    return AutoConfig.from_pretrained(folder)


def check_safetensors(folder: Path):
    """Raise `ValueError` when a folder has no weights, or only pickled ones."""
    if not list(folder.glob("*.safetensors")):
        suffixes = (".bin", ".pt", ".pth", ".pkl")
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in suffixes)
        pickles = [name for name in pickles if name != "training_args.bin"]
        found = f", only {pickles[0]}, a pickle, which can run code where it is loaded" if pickles else ""
        raise ValueError(f"{folder} has no weights in *.safetensors{found}: save the model with save_pretrained")


def check_model(folder: Path, shown_as: str) -> PreTrainedModel:
    """Load the model of a folder; raises `ValueError` when a tensor is missing, left over or of another shape."""
    architecture = (read_config(folder, shown_as).architectures or [""])[0]
    auto_class: type[_BaseAutoModelClass] = AutoModel
    if architecture.endswith("ForImageClassification"):
        auto_class = AutoModelForImageClassification
    elif architecture.endswith("ForPreTraining"):
        auto_class = AutoModelForPreTraining
    try:
        model, report = auto_class.from_pretrained(folder, output_loading_info=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ValueError(f"{shown_as} does not load: {error}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            example = sorted(map(str, report[kind]))[0]
            raise ValueError(
                f"{shown_as} does not load as {type(model).__name__}: {len(report[kind])} "
                f"{kind.split('_')[0]} tensors, such as {example}"
            )
    return model


def check_card(folder: Path, shown_as: str) -> ModelCard:
    """The card of a folder; raises `ValueError` when its metadata are not valid, or a picture of it is missing."""
    name = f"{shown_as}/README.md"
    try:
        text = _read(folder / "README.md", name)
    except FileNotFoundError:
        raise ValueError(f"{name} is missing: the card says what the model is, and under which licence") from None
    try:
        card = ModelCard(text)
    except Exception as error:  # whatever YAML or the parts of a model-index raise
        raise ValueError(f"the metadata of {name} are not valid: {error}") from error
    metadata = metadata_load(folder / "README.md")
    if not metadata:
        raise ValueError(f"{name} has no metadata: it must begin with a block of YAML between two lines of ---")
    for field in ("license", "library_name", "pipeline_tag"):
        if not isinstance(metadata.get(field, ""), str):
            raise ValueError(f"the metadata of {name} are not valid: {field} must be text, got {metadata[field]!r}")
    tags = metadata.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError(f"the metadata of {name} are not valid: tags must be a list of words, got {tags!r}")
    for picture in shown_pictures(text):
        if Path(picture).is_absolute() or ".." in Path(picture).parts:
            raise ValueError(f"{name} shows {picture}, which lies elsewhere: bring the picture into the folder")
        if Path(picture).suffix.lower() not in PICTURE_FILES:
            raise ValueError(f"{name} shows {picture}: pictures of a card must be one of {', '.join(PICTURE_FILES)}")
        if not (folder / picture).is_file():
            raise ValueError(f"{name} shows {picture}, which is not there: add it, or take it out of the card")
    return card


def shown_pictures(card: str) -> list[str]:
    """The files that a card shows, as paths from its folder on; addresses of other places are left out."""
    found = [markdown or html for markdown, html in PICTURE.findall(card)]
    return [picture for picture in found if not re.match(r"[a-z]+:", picture)]


def check_text(text: str, name: str):
    """Raise `ValueError` when `text` names a path of this machine, or holds an access token; `name` is the file's."""
    if secret := ACCESS_TOKEN.search(text):
        raise ValueError(
            f"{name}, line {_line(secret)}, holds an access token of the Hub ({secret[0][:6]}...): take it out, and "
            "revoke it if others could have seen it"
        )
    if password := PASSWORD.search(text):
        raise ValueError(
            f"{name}, line {_line(password)}, holds an address with a password: take it out, and change the password"
        )
    if found := MACHINE_PATH.search(text):
        raise ValueError(
            f"{name}, line {_line(found)}: {found[0]} is a path of this machine, which nobody else has: write a name "
            "in its place"
        )


def _line(found: re.Match) -> int:
    return found.string.count("\n", 0, found.start()) + 1


def _read(file: Path, name: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not text in UTF-8: {error.reason} in byte {error.start:,}") from error
