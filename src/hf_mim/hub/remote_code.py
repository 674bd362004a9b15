"""Code beside the weights, with which `trust_remote_code=True` loads our models where this package is absent."""

import json
import shutil
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..utils.files import replaced_file
from ..utils.layout import TEACHER_FOLDER


MODELING = Path(__file__).parents[1] / "modeling"
# Per model type, what each Auto class loads: file and class.
AUTO_MAPS = {
    "ibot": {
        "AutoConfig": "configuration_ibot.IBotConfig",
        "AutoModel": "modeling_ibot.IBotModel",
        "AutoModelForPreTraining": "modeling_ibot_pretraining.IBotForPreTraining",
        "AutoModelForImageClassification": "modeling_ibot.IBotForImageClassification",
        "AutoBackbone": "modeling_ibot.IBotBackbone",
    },
    "ibot_swin": {
        "AutoConfig": "configuration_ibot_swin.IBotSwinConfig",
        "AutoModel": "modeling_ibot_swin.IBotSwinModel",
        "AutoModelForPreTraining": "modeling_ibot_swin.IBotSwinForPreTraining",
        "AutoModelForImageClassification": "modeling_ibot_swin.IBotSwinForImageClassification",
        "AutoBackbone": "modeling_ibot_swin.IBotSwinBackbone",
    },
    "beitv2": {
        "AutoConfig": "configuration_beitv2.Beitv2Config",
        "AutoModel": "modeling_beitv2.Beitv2Model",
        "AutoModelForPreTraining": "modeling_beitv2_pretraining.Beitv2ForPreTraining",
        "AutoModelForMaskedImageModeling": "modeling_beitv2_pretraining.Beitv2ForPreTraining",
        "AutoModelForImageClassification": "modeling_beitv2.Beitv2ForImageClassification",
        "AutoBackbone": "modeling_beitv2.Beitv2Backbone",
    },
    "dbot": {
        "AutoConfig": "configuration_dbot.DBotConfig",
        "AutoModel": "modeling_dbot.DBotModel",
        "AutoModelForPreTraining": "modeling_dbot_pretraining.DBotForPreTraining",
        "AutoModelForImageClassification": "modeling_dbot.DBotForImageClassification",
        "AutoBackbone": "modeling_dbot.DBotBackbone",
    },
    "vqkd": {
        "AutoConfig": "configuration_vqkd.VQKDConfig",
        "AutoModel": "modeling_vqkd.VQKDModel",
        "AutoModelForPreTraining": "modeling_vqkd.VQKDModel",
    },
}
# Per `image_processor_type`, which does not tell the backend: the class of each.
IMAGE_PROCESSORS = {
    "IBotImageProcessor": {
        "torchvision": "image_processing_mim.IBotImageProcessor",
        "pil": "image_processing_pil_mim.IBotImageProcessorPil",
    },
    "Beitv2ImageProcessor": {
        "torchvision": "image_processing_mim.Beitv2ImageProcessor",
        "pil": "image_processing_pil_mim.Beitv2ImageProcessorPil",
    },
    "DBotImageProcessor": {
        "torchvision": "image_processing_mim.DBotImageProcessor",
        "pil": "image_processing_pil_mim.DBotImageProcessorPil",
    },
}


def add_code(folder: Path | str) -> list[str]:
    """
    Makes a folder in which a model of this package was saved loadable without the package: `from_pretrained` of the
    Auto classes and `pipeline` then take it with `trust_remote_code=True`, for every head that the model type has.

    The code lies flat in the folder. `config.json` says what each Auto class loads, and so do
    `preprocessor_config.json`, for both backends, and `teacher/config.json`, where they are there and of this package.
    The code is not repeated in `teacher/`, which is loaded with `subfolder="teacher"`. Where the package is imported,
    its own classes are still the ones that are used.

    Returns:
        Names of the files of code, in alphabetical order.

    Raises:
        OSError: If there is no `config.json`, or one of the JSON files cannot be read.
        ValueError: If the model is none of this package: transformers loads its own without code.
    """
    folder = Path(folder)
    if not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG_NAME}: code belongs beside a model that was saved there")
    model_type = _read(folder / CONFIG_NAME).get("model_type")
    if model_type not in AUTO_MAPS:
        raise ValueError(
            f"{folder} holds a model of type {model_type!r}, which loads without the code of this package: only "
            f"{', '.join(AUTO_MAPS)} need it"
        )

    auto_maps = {}
    for file in (folder / CONFIG_NAME, folder / TEACHER_FOLDER / CONFIG_NAME):
        if file.is_file() and (auto_map := AUTO_MAPS.get(_read(file).get("model_type"))):
            auto_maps[file] = auto_map
    file = folder / IMAGE_PROCESSOR_NAME
    if file.is_file() and (classes := IMAGE_PROCESSORS.get(_read(file).get("image_processor_type"))):
        auto_maps[file] = {"AutoImageProcessor": classes}

    code = sorted({file for auto_map in auto_maps.values() for file in _files_of(auto_map)})
    # The code first: a configuration that names code which is not there cannot be loaded.
    for file in code:
        with replaced_file(folder / file.name) as copy:
            shutil.copyfile(file, copy)
    for file, auto_map in auto_maps.items():
        settings = _read(file) | {"auto_map": auto_map}
        with replaced_file(file) as copy:
            copy.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [file.name for file in code]


def _files_of(auto_map: dict[str, str | dict[str, str]]) -> set[Path]:
    """The files of all classes in the map, and those which they import."""
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
