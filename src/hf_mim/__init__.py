"""
Masked image modelling for the Hugging Face stack: iBOT (also with Swin Transformers), BEiT v2 and dBOT.

Importing the package registers its models with the Auto classes of transformers.
"""

import importlib


try:
    from transformers import (
        AutoBackbone,
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForMaskedImageModeling,
        AutoModelForPreTraining,
    )
    from transformers.utils import is_torchvision_available

    from .modeling.configuration_beitv2 import Beitv2Config
    from .modeling.configuration_dbot import DBotConfig
    from .modeling.configuration_ibot import IBotConfig
    from .modeling.configuration_ibot_swin import IBotSwinConfig
    from .modeling.configuration_vqkd import VQKDConfig
    from .modeling.image_processing_pil_mim import (
        Beitv2ImageProcessorPil,
        DBotImageProcessorPil,
        IBotImageProcessorPil,
    )
    from .modeling.modeling_beitv2 import Beitv2Backbone, Beitv2ForImageClassification, Beitv2Model
    from .modeling.modeling_beitv2_pretraining import Beitv2ForPreTraining
    from .modeling.modeling_dbot import DBotBackbone, DBotForImageClassification, DBotModel
    from .modeling.modeling_dbot_pretraining import DBotForPreTraining
    from .modeling.modeling_ibot import IBotBackbone, IBotForImageClassification, IBotModel
    from .modeling.modeling_ibot_pretraining import IBotForPreTraining
    from .modeling.modeling_ibot_swin import (
        IBotSwinBackbone,
        IBotSwinForImageClassification,
        IBotSwinForPreTraining,
        IBotSwinModel,
    )
    from .modeling.modeling_vqkd import VQKDModel
except (ImportError, RuntimeError) as error:
    if "torchvision" not in f"{error} {error.__cause__}":
        raise
    raise ImportError(
        "the installed torchvision does not match torch, so that transformers cannot be imported: run "
        "`pip uninstall torchvision`, or install the build that matches"
    ) from error


__version__ = "0.1.0"

AutoConfig.register("ibot", IBotConfig)
AutoModel.register(IBotConfig, IBotModel)
AutoModelForPreTraining.register(IBotConfig, IBotForPreTraining)
AutoModelForImageClassification.register(IBotConfig, IBotForImageClassification)
AutoBackbone.register(IBotConfig, IBotBackbone)

AutoConfig.register("ibot_swin", IBotSwinConfig)
AutoModel.register(IBotSwinConfig, IBotSwinModel)
AutoModelForPreTraining.register(IBotSwinConfig, IBotSwinForPreTraining)
AutoModelForImageClassification.register(IBotSwinConfig, IBotSwinForImageClassification)
AutoBackbone.register(IBotSwinConfig, IBotSwinBackbone)

AutoConfig.register("beitv2", Beitv2Config)
AutoModel.register(Beitv2Config, Beitv2Model)
AutoModelForPreTraining.register(Beitv2Config, Beitv2ForPreTraining)
AutoModelForMaskedImageModeling.register(Beitv2Config, Beitv2ForPreTraining)
AutoModelForImageClassification.register(Beitv2Config, Beitv2ForImageClassification)
AutoBackbone.register(Beitv2Config, Beitv2Backbone)

AutoConfig.register("dbot", DBotConfig)
AutoModel.register(DBotConfig, DBotModel)
AutoModelForPreTraining.register(DBotConfig, DBotForPreTraining)
AutoModelForImageClassification.register(DBotConfig, DBotForImageClassification)
AutoBackbone.register(DBotConfig, DBotBackbone)

AutoConfig.register("vqkd", VQKDConfig)
AutoModel.register(VQKDConfig, VQKDModel)
AutoModelForPreTraining.register(VQKDConfig, VQKDModel)

_ibot_processors = {"pil": IBotImageProcessorPil}
_beitv2_processors = {"pil": Beitv2ImageProcessorPil}
_dbot_processors = {"pil": DBotImageProcessorPil}
if is_torchvision_available():
    from .modeling.image_processing_mim import Beitv2ImageProcessor, DBotImageProcessor, IBotImageProcessor

    _ibot_processors["torchvision"] = IBotImageProcessor
    _beitv2_processors["torchvision"] = Beitv2ImageProcessor
    _dbot_processors["torchvision"] = DBotImageProcessor
AutoImageProcessor.register(IBotConfig, image_processor_classes=_ibot_processors)
AutoImageProcessor.register(IBotSwinConfig, image_processor_classes=_ibot_processors)
AutoImageProcessor.register(Beitv2Config, image_processor_classes=_beitv2_processors)
AutoImageProcessor.register(DBotConfig, image_processor_classes=_dbot_processors)
# With a mean and standard deviation of 0.5, which preprocessor_config.json holds.
AutoImageProcessor.register(VQKDConfig, image_processor_classes=_beitv2_processors)

# Training and export pull in matplotlib, datasets and accelerate: they are imported when they are first used.
_LAZY = {
    "MIMTrainer": "training.trainer",
    "MIMTrainingArguments": "training.arguments",
    "IBotTrainer": "training.ibot_trainer",
    "IBotTrainingArguments": "training.ibot_arguments",
    "IBotCollator": "data.collators",
    "Beitv2Collator": "data.collators",
    "Beitv2Trainer": "training.beitv2_trainer",
    "Beitv2TrainingArguments": "training.beitv2_arguments",
    "DBotCollator": "data.collators",
    "DBotTrainer": "training.dbot_trainer",
    "DBotTrainingArguments": "training.dbot_arguments",
    "DBotSymmetricTrainer": "training.dbot_symmetric_trainer",
    "DBotSymmetricTrainingArguments": "training.dbot_symmetric_arguments",
    "BlockMaskGenerator": "data.masking",
    "CropViews": "data.views",
    "FeatureTeacher": "training.teachers",
    "ViewsDataset": "data.datasets",
    "VQKDCollator": "data.collators",
    "VQKDTrainer": "training.vqkd_trainer",
    "VQKDTrainingArguments": "training.vqkd_arguments",
    "convert_checkpoint": "hub.convert.checkpoint",
    "export_native": "hub.export",
    "layer_decay_groups": "training.optimization",
    "load_teacher": "training.teachers",
}

__all__ = [
    "Beitv2Backbone",
    "Beitv2Config",
    "Beitv2ForImageClassification",
    "Beitv2ForPreTraining",
    "Beitv2ImageProcessorPil",
    "Beitv2Model",
    "DBotBackbone",
    "DBotConfig",
    "DBotForImageClassification",
    "DBotForPreTraining",
    "DBotImageProcessorPil",
    "DBotModel",
    "IBotBackbone",
    "IBotConfig",
    "IBotForImageClassification",
    "IBotForPreTraining",
    "IBotImageProcessorPil",
    "IBotModel",
    "IBotSwinBackbone",
    "IBotSwinConfig",
    "IBotSwinForImageClassification",
    "IBotSwinForPreTraining",
    "IBotSwinModel",
    "VQKDConfig",
    "VQKDModel",
    *_LAZY,
]
if "torchvision" in _ibot_processors:
    __all__ += ["Beitv2ImageProcessor", "DBotImageProcessor", "IBotImageProcessor"]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f"hf_mim.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'hf_mim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
