"""Check a folder before it is uploaded to the Hub, without contacting the Hub."""

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
# An absolute path of at least two parts, a path below a home folder, a Windows path or a file:// URL. A slash after a
# letter does not start a path, as in "and/or" and https://host/page.
MACHINE_PATH = re.compile(
    r"(?:(?<=[\s\"'`=:,;(\[{<>|])|^)(?:/[\w.@+-]+/[\w.@+-]|~[\w.-]*/[\w.]|[A-Za-z]:\\+\w|file://)[^\s\"'`)\]<>}|]*",
    re.MULTILINE,
)
# The format of the Hub's tokens.
ACCESS_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
PASSWORD = re.compile(r"://[^\s/@\"'`]+:[^\s/@\"'`]+@")
# None of these formats contains text that would have to be checked.
PICTURE_FILES = (".png", ".jpg", ".jpeg", ".gif", ".webp")
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)[^)]*\)|<img[^>]*\ssrc=[\"']([^\"']+)[\"']")


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a checked folder: the model's class and number of parameters, and the license in its card."""

    architecture: str
    parameters: int
    license: str | None


def check_repo_id(repo_id: str):
    """Raise a `ValueError` unless `repo_id` is a valid repository name with a user or organization."""
    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise ValueError(f"the repository must be ORGANIZATION/NAME or USER/NAME, got {repo_id!r}")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is not a valid repository name: {error}") from error


def check_upload(folder: Path, shown_as: str) -> ModelFacts:
    """
    Check that a folder can be published as it is.

    Model, image processor and teacher must load without missing or unexpected tensors. The card must have valid
    metadata, and its pictures must exist. No file may contain a local path or an access token.

    Args:
        folder (`Path`): The exact content of the repository.
        shown_as (`str`): Name of the folder in messages.

    Returns:
        [`ModelFacts`]: Facts about the model.

    Raises:
        ValueError, OSError: If a check fails. The message has the file and how to fix it.
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
        raise ValueError(f"{shown_as}/{IMAGE_PROCESSOR_NAME} does not load as an image processor: {reason}") from error
    if (folder / TEACHER_FOLDER / CONFIG_NAME).is_file():
        teacher = check_model(folder / TEACHER_FOLDER, f"{shown_as}/{TEACHER_FOLDER}")
        centers = folder / TEACHER_FOLDER / CENTERS_FILE
        if has_online_teacher(teacher.config.model_type) and not centers.is_file():
            raise ValueError(
                f"{shown_as}/{TEACHER_FOLDER} has no {CENTERS_FILE}, which is needed to continue training from it: "
                "add the file, or remove the folder"
            )
    license_name = card.data.get("license")
    if license_name == "other":
        license_name = card.data.get("license_name") or license_name
    return ModelFacts(type(model).__name__, model.num_parameters(), license_name)


def read_config(folder: Path, shown_as: str) -> PreTrainedConfig:
    """Return the configuration in a folder. Raise a `ValueError` if it is unreadable or of an unknown type."""
    name = f"{shown_as}/{CONFIG_NAME}"
    try:
        model_type = json.loads(_read(folder / CONFIG_NAME, name)).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{name} is not a valid configuration: {error}") from error
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"{name} has the model type {model_type!r}, which neither transformers nor hf_mim knows")
    return AutoConfig.from_pretrained(folder)


def check_safetensors(folder: Path):
    """Raise a `ValueError` if a folder has no weights, or only pickled ones."""
    if not list(folder.glob("*.safetensors")):
        suffixes = (".bin", ".pt", ".pth", ".pkl")
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in suffixes)
        pickles = [name for name in pickles if name != "training_args.bin"]
        found = f", only the pickle {pickles[0]}, which can run code when it is loaded" if pickles else ""
        raise ValueError(f"{folder} has no weights in *.safetensors{found}: save the model with save_pretrained")


def check_model(folder: Path, shown_as: str) -> PreTrainedModel:
    """Load the model in a folder. Raise a `ValueError` if a tensor is missing, unexpected or of the wrong shape."""
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
    """Return the card of a folder. Raise a `ValueError` if its metadata is invalid or a picture is missing."""
    name = f"{shown_as}/README.md"
    try:
        text = _read(folder / "README.md", name)
    except FileNotFoundError:
        raise ValueError(f"{name} is missing: the card describes the model and states its license") from None
    try:
        card = ModelCard(text)
    except Exception as error:  # whatever YAML or the parts of a model-index raise
        raise ValueError(f"the metadata of {name} are not valid: {error}") from error
    metadata = metadata_load(folder / "README.md")
    if not metadata:
        raise ValueError(f"{name} has no metadata: it must start with a YAML block between two --- lines")
    for field in ("license", "library_name", "pipeline_tag"):
        if not isinstance(metadata.get(field, ""), str):
            raise ValueError(f"the metadata of {name} are not valid: {field} must be text, got {metadata[field]!r}")
    tags = metadata.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError(f"the metadata of {name} are not valid: tags must be a list of words, got {tags!r}")
    for picture in shown_pictures(text):
        if Path(picture).is_absolute() or ".." in Path(picture).parts:
            raise ValueError(f"{name} shows {picture}, which is outside the folder: move the picture into the folder")
        if Path(picture).suffix.lower() not in PICTURE_FILES:
            raise ValueError(f"{name} shows {picture}: pictures of a card must be one of {', '.join(PICTURE_FILES)}")
        if not (folder / picture).is_file():
            raise ValueError(f"{name} shows {picture}, which does not exist: add it, or remove it from the card")
    return card


def shown_pictures(card: str) -> list[str]:
    """Return the pictures in a card, as paths relative to its folder. URLs are left out."""
    found = [markdown or html for markdown, html in PICTURE.findall(card)]
    return [picture for picture in found if not re.match(r"[a-z]+:", picture)]


def check_text(text: str, name: str):
    """Raise a `ValueError` if `text` (of the file `name`) contains a local path, an access token or a password."""
    if secret := ACCESS_TOKEN.search(text):
        raise ValueError(
            f"{name}, line {_line(secret)}, contains a Hub access token ({secret[0][:6]}...): remove it, and "
            "revoke the token if others could have seen it"
        )
    if password := PASSWORD.search(text):
        raise ValueError(
            f"{name}, line {_line(password)}, contains a URL with a password: remove it, and change the password"
        )
    if found := MACHINE_PATH.search(text):
        raise ValueError(
            f"{name}, line {_line(found)}: {found[0]} is a local path, which does not exist elsewhere: replace it "
            "with a name"
        )


def _line(found: re.Match) -> int:
    return found.string.count("\n", 0, found.start()) + 1


def _read(file: Path, name: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not text in UTF-8: {error.reason} in byte {error.start:,}") from error
