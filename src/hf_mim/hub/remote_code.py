"""Add modeling code to a saved model, so that it loads with `trust_remote_code=True` without this package."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..auto import IMAGE_PROCESSORS, MODELS
from ..utils.files import replaced_file
from ..utils.layout import TEACHER_FOLDER


MODELING = Path(__file__).parents[1] / "modeling"
AutoMap = Mapping[str, str | dict[str, str]]


def _file_and_name(cls: type) -> str:
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


# The `auto_map` in config.json for each model type.
AUTO_MAPS: dict[str, AutoMap] = {
    config_class.model_type: {
        "AutoConfig": _file_and_name(config_class),
        **{auto_class.__name__: _file_and_name(model_class) for auto_class, model_class in models.items()},
    }
    for config_class, models in MODELS.items()
}
# The `auto_map` in preprocessor_config.json for each `image_processor_type`, which does not include the backend.
PROCESSOR_MAPS: dict[str, AutoMap] = {
    torchvision.__name__: {
        "AutoImageProcessor": {"torchvision": _file_and_name(torchvision), "pil": _file_and_name(pil)}
    }
    for pil, torchvision in IMAGE_PROCESSORS.values()
}


def add_code(folder: Path | str) -> list[str]:
    """
    Add code to a saved model of this package, so that it loads without the package.

    `from_pretrained` of the Auto classes and `pipeline` then accept the folder with `trust_remote_code=True`, for
    every head of the model type. The code files go to the root of the folder. An `auto_map` with the class for each
    Auto class is added to `config.json` and, where they exist, to `preprocessor_config.json` (for both backends) and
    `teacher/config.json`. The teacher is loaded with `subfolder="teacher"` and uses the same code files. If the
    package is imported, its own classes are used instead.

    Args:
        folder (`Path` or `str`): Folder of the saved model.

    Returns:
        `list[str]`: Names of the code files, in alphabetical order.

    Raises:
        OSError: If there is no `config.json`, or one of the JSON files cannot be read.
        ValueError: If it is not a model of this package. Models of transformers load without code.
    """
    folder = Path(folder)
    if not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG_NAME}: pass the folder of a saved model")
    model_type = _read(folder / CONFIG_NAME).get("model_type")
    if model_type not in AUTO_MAPS:
        raise ValueError(
            f"{folder} holds a model of type {model_type!r}, which loads without the code of this package; only "
            f"{', '.join(AUTO_MAPS)} need it"
        )

    auto_maps = {}
    for file in (folder / CONFIG_NAME, folder / TEACHER_FOLDER / CONFIG_NAME):
        if file.is_file() and (auto_map := AUTO_MAPS.get(_read(file).get("model_type", ""))):
            auto_maps[file] = auto_map
    file = folder / IMAGE_PROCESSOR_NAME
    if file.is_file() and (auto_map := PROCESSOR_MAPS.get(_read(file).get("image_processor_type", ""))):
        auto_maps[file] = auto_map

    code = sorted({file for auto_map in auto_maps.values() for file in _files_of(auto_map)})
    # Copy the code first: a configuration that references missing code cannot be loaded.
    for file in code:
        with replaced_file(folder / file.name) as copy:
            shutil.copyfile(file, copy)
    for file, auto_map in auto_maps.items():
        settings = _read(file) | {"auto_map": auto_map}
        with replaced_file(file) as copy:
            copy.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [file.name for file in code]


def _files_of(auto_map: AutoMap) -> set[Path]:
    """Return the files of all classes in the map, and the files that they import."""
    files = set()
    for classes in auto_map.values():
        for name in classes.values() if isinstance(classes, dict) else [classes]:
            file = MODELING / f"{name.partition('.')[0]}.py"
            files |= {file, *map(Path, get_relative_import_files(file))}
    return files


def _read(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"{file} is not a JSON file: {error}") from error
