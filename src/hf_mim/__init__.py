"""
Masked image modeling for the Hugging Face stack: iBOT (also with Swin Transformers), BEiT v2 and dBOT.

Importing the package registers its models with the Auto classes of transformers.
"""

import importlib
from typing import TYPE_CHECKING


try:
    from transformers.utils import is_torchvision_available

    from .auto import register
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
        "the installed torchvision does not match torch, so transformers cannot be imported: run "
        "`pip uninstall torchvision`, or install the build that matches"
    ) from error

if TYPE_CHECKING or is_torchvision_available():
    from .modeling.image_processing_mim import Beitv2ImageProcessor, DBotImageProcessor, IBotImageProcessor

if TYPE_CHECKING:
    from .data.collators import Beitv2Collator, DBotCollator, IBotCollator, VQKDCollator
    from .data.datasets import ViewsDataset
    from .data.masking import BlockMaskGenerator, MaskGenerator
    from .data.sources import load_image_dataset
    from .data.views import CropViews, MultiCropViews
    from .evaluation.evaluate_knn import evaluate_knn
    from .hub.convert.checkpoint import convert_checkpoint
    from .hub.export import export_native
    from .training.arguments import MIMTrainingArguments
    from .training.beitv2_arguments import Beitv2TrainingArguments
    from .training.beitv2_trainer import Beitv2Trainer
    from .training.dbot_arguments import DBotTrainingArguments
    from .training.dbot_symmetric_arguments import DBotSymmetricTrainingArguments
    from .training.dbot_symmetric_trainer import DBotSymmetricTrainer
    from .training.dbot_trainer import DBotTrainer
    from .training.ibot_arguments import IBotTrainingArguments
    from .training.ibot_trainer import IBotTrainer
    from .training.optimization import layer_decay_groups
    from .training.teachers import FeatureTeacher, load_teacher
    from .training.trainer import MIMTrainer
    from .training.vqkd_arguments import VQKDTrainingArguments
    from .training.vqkd_trainer import VQKDTrainer


__version__ = "0.2.0"

register()

# Training, evaluation and export import matplotlib, datasets and accelerate: they are imported when first used.
_LAZY = {
    "Beitv2Collator": "data.collators",
    "Beitv2Trainer": "training.beitv2_trainer",
    "Beitv2TrainingArguments": "training.beitv2_arguments",
    "BlockMaskGenerator": "data.masking",
    "CropViews": "data.views",
    "DBotCollator": "data.collators",
    "DBotSymmetricTrainer": "training.dbot_symmetric_trainer",
    "DBotSymmetricTrainingArguments": "training.dbot_symmetric_arguments",
    "DBotTrainer": "training.dbot_trainer",
    "DBotTrainingArguments": "training.dbot_arguments",
    "FeatureTeacher": "training.teachers",
    "IBotCollator": "data.collators",
    "IBotTrainer": "training.ibot_trainer",
    "IBotTrainingArguments": "training.ibot_arguments",
    "MIMTrainer": "training.trainer",
    "MIMTrainingArguments": "training.arguments",
    "MaskGenerator": "data.masking",
    "MultiCropViews": "data.views",
    "VQKDCollator": "data.collators",
    "VQKDTrainer": "training.vqkd_trainer",
    "VQKDTrainingArguments": "training.vqkd_arguments",
    "ViewsDataset": "data.datasets",
    "convert_checkpoint": "hub.convert.checkpoint",
    "evaluate_knn": "evaluation.evaluate_knn",
    "export_native": "hub.export",
    "layer_decay_groups": "training.optimization",
    "load_image_dataset": "data.sources",
    "load_teacher": "training.teachers",
}

__all__ = [
    "Beitv2Backbone",
    "Beitv2Collator",
    "Beitv2Config",
    "Beitv2ForImageClassification",
    "Beitv2ForPreTraining",
    "Beitv2ImageProcessorPil",
    "Beitv2Model",
    "Beitv2Trainer",
    "Beitv2TrainingArguments",
    "BlockMaskGenerator",
    "CropViews",
    "DBotBackbone",
    "DBotCollator",
    "DBotConfig",
    "DBotForImageClassification",
    "DBotForPreTraining",
    "DBotImageProcessorPil",
    "DBotModel",
    "DBotSymmetricTrainer",
    "DBotSymmetricTrainingArguments",
    "DBotTrainer",
    "DBotTrainingArguments",
    "FeatureTeacher",
    "IBotBackbone",
    "IBotCollator",
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
    "IBotTrainer",
    "IBotTrainingArguments",
    "MIMTrainer",
    "MIMTrainingArguments",
    "MaskGenerator",
    "MultiCropViews",
    "VQKDCollator",
    "VQKDConfig",
    "VQKDModel",
    "VQKDTrainer",
    "VQKDTrainingArguments",
    "ViewsDataset",
    "convert_checkpoint",
    "evaluate_knn",
    "export_native",
    "layer_decay_groups",
    "load_image_dataset",
    "load_teacher",
]
if is_torchvision_available():
    __all__ += ["Beitv2ImageProcessor", "DBotImageProcessor", "IBotImageProcessor"]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f"hf_mim.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'hf_mim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
