"""Check a folder before it is uploaded to the Hub, without contacting the Hub."""

import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from PIL import Image
from safetensors import SafetensorError, safe_open
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
from ..utils.loading import check_finite
from .secrets import find_local_path, find_secret


TEXT_FILES = (".json", ".md", ".yaml")
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
    metadata, and its pictures must exist. Each file must be what its name says. No file may contain a local path, an
    access token or a password, not even among the metadata of weights and pictures.

    Args:
        folder (`Path`): The exact content of the repository.
        shown_as (`str`): Name of the folder in messages.

    Returns:
        [`ModelFacts`]: Facts about the model.

    Raises:
        ValueError, OSError: If a check fails. The message has the file and how to fix it.
    """
    card = check_card(folder, shown_as)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = f"{shown_as}/{file.relative_to(folder)}"
        if file.suffix in TEXT_FILES:
            check_text(_read(file, name), name)
        check_contents(file, name)
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


def check_regular(file: Path, folder: Path) -> None:
    """
    Check that a file may be published from a folder.

    Args:
        file (`Path`): A file in the folder, as its name is given.
        folder (`Path`): The folder.

    Raises:
        ValueError: If it is no regular file, or a link out of the folder.
    """
    real = file.resolve()
    if not real.is_relative_to(folder.resolve()):
        raise ValueError(f"{file} is a link out of {folder}, to {real}: put a copy in its place, or remove it")
    if not real.is_file():
        raise ValueError(f"{file} is not a regular file: remove it")


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
    check_finite(shown_as, model)
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
    if secret := find_secret(text):
        raise ValueError(
            f"{name}, line {secret[1]}, contains an access token or password ({secret[0]}): remove it, and revoke it "
            "if others could have seen it"
        )
    if path := find_local_path(text):
        raise ValueError(
            f"{name}, line {path[1]}: {path[0]} is a local path, which does not exist elsewhere: replace it with a "
            "name"
        )


def check_contents(file: Path, name: str) -> None:
    """
    Check that a file is what its name says, and that its metadata contain no secret and no local path.

    Args:
        file (`Path`): A picture, or a file of weights, of an ONNX model, of JSON or of YAML. Others are not checked.
        name (`str`): Name of the file in messages.

    Raises:
        ValueError: If it is something else, or contains what must not be published.
    """
    suffix = file.suffix.lower()
    texts: dict[str, str] = {}
    try:
        if suffix in PICTURE_FILES:
            texts = _picture_texts(file)
        elif suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                texts = dict(opened.metadata() or {}) | {"names of tensors": "\n".join(opened.keys())}
        elif suffix == ".onnx":
            texts = _onnx_texts(file)
        elif suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif suffix in (".yaml", ".yml"):
            yaml.safe_load(file.read_text(encoding="utf-8"))
    # Each reader raises exceptions of its own.
    except Exception as error:
        raise ValueError(f"{name} is not what its name says: {first_line(error)}") from error
    for key, text in texts.items():
        check_text(text, f"{name} ({key})")


def _picture_texts(file: Path) -> dict[str, str]:
    """Return the texts in a picture. Raise what Pillow raises, or `ValueError` for a picture of another format."""
    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".gif": "GIF", ".webp": "WEBP"}
    wanted = formats[file.suffix.lower()]
    with Image.open(file) as picture:
        found = "JPEG" if picture.format == "MPO" else picture.format
        if found != wanted:
            raise ValueError(f"it is a {found} picture")
        picture.load()
        texts = {str(key): _as_text(value) for key, value in picture.info.items() if isinstance(value, str | bytes)}
        exif = {str(key): _as_text(value) for key, value in picture.getexif().items()}
    return texts | exif


def _onnx_texts(file: Path) -> dict[str, str]:
    """Return the texts in an ONNX model. Raise `ValueError` if it is none."""
    if importlib.util.find_spec("onnx") is None:
        # Field 1 of the protocol buffer, the version of the format, comes first.
        with open(file, "rb") as opened:
            if opened.read(1) != b"\x08":
                raise ValueError("it is no ONNX model")
        return {}
    import onnx

    model = onnx.load(file, load_external_data=False)
    if not model.graph.node:
        raise ValueError("it is an ONNX model without operations")
    texts = {entry.key: entry.value for entry in model.metadata_props}
    return texts | {"description": model.doc_string, "graph": model.graph.doc_string, "name": model.graph.name}


def _as_text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _read(file: Path, name: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not text in UTF-8: {error.reason} in byte {error.start:,}") from error
