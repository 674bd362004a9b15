"""
Masked image modelling for the Hugging Face stack: iBOT with Vision Transformers.

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
        AutoModelForPreTraining,
    )
    from transformers.utils import is_torchvision_available

    from .modeling.configuration_ibot import IBotConfig
    from .modeling.image_processing_pil_ibot import IBotImageProcessorPil
    from .modeling.modeling_ibot import IBotBackbone, IBotForImageClassification, IBotModel
    from .modeling.modeling_ibot_pretraining import IBotForPreTraining
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

_processors = {"pil": IBotImageProcessorPil}
if is_torchvision_available():
    from .modeling.image_processing_ibot import IBotImageProcessor

    _processors["torchvision"] = IBotImageProcessor
AutoImageProcessor.register(IBotConfig, image_processor_classes=_processors)

# Training and export pull in matplotlib, datasets and accelerate: they are imported when they are first used.
_LAZY = {
    "MIMTrainer": "training.trainer",
    "MIMTrainingArguments": "training.arguments",
    "IBotTrainer": "training.ibot_trainer",
    "IBotTrainingArguments": "training.ibot_arguments",
    "IBotCollator": "data.collator_ibot",
    "Beitv2Collator": "data.collator_beitv2",
    "VQKDCollator": "data.collator_vqkd",
    "export_native": "hub.export",
}

__all__ = [
    "IBotBackbone",
    "IBotConfig",
    "IBotForImageClassification",
    "IBotForPreTraining",
    "IBotImageProcessorPil",
    "IBotModel",
    *_LAZY,
]
if "torchvision" in _processors:
    __all__.append("IBotImageProcessor")


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f"hf_mim.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'hf_mim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
