"""Which class each Auto class of transformers loads: the table from which models are registered and published."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForPreTraining,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.utils import is_torchvision_available

from .modeling.configuration_beitv2 import Beitv2Config
from .modeling.configuration_dbot import DBotConfig
from .modeling.configuration_ibot import IBotConfig
from .modeling.configuration_ibot_swin import IBotSwinConfig
from .modeling.configuration_vqkd import VQKDConfig
from .modeling.image_processing_mim import Beitv2ImageProcessor, DBotImageProcessor, IBotImageProcessor
from .modeling.image_processing_pil_mim import Beitv2ImageProcessorPil, DBotImageProcessorPil, IBotImageProcessorPil
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


MODELS: dict[type[PreTrainedConfig], dict[type[_BaseAutoModelClass], type[PreTrainedModel]]] = {
    IBotConfig: {
        AutoModel: IBotModel,
        AutoModelForPreTraining: IBotForPreTraining,
        AutoModelForImageClassification: IBotForImageClassification,
        AutoBackbone: IBotBackbone,
    },
    IBotSwinConfig: {
        AutoModel: IBotSwinModel,
        AutoModelForPreTraining: IBotSwinForPreTraining,
        AutoModelForImageClassification: IBotSwinForImageClassification,
        AutoBackbone: IBotSwinBackbone,
    },
    Beitv2Config: {
        AutoModel: Beitv2Model,
        AutoModelForPreTraining: Beitv2ForPreTraining,
        AutoModelForMaskedImageModeling: Beitv2ForPreTraining,
        AutoModelForImageClassification: Beitv2ForImageClassification,
        AutoBackbone: Beitv2Backbone,
    },
    DBotConfig: {
        AutoModel: DBotModel,
        AutoModelForPreTraining: DBotForPreTraining,
        AutoModelForImageClassification: DBotForImageClassification,
        AutoBackbone: DBotBackbone,
    },
    VQKDConfig: {
        AutoModel: VQKDModel,
        AutoModelForPreTraining: VQKDModel,
    },
}
# The image processors of each model on Pillow and on torchvision. The tokenizer's have a mean and standard deviation
# of 0.5, which its preprocessor_config.json holds.
IMAGE_PROCESSORS: dict[type[PreTrainedConfig], tuple[type[BaseImageProcessor], type[BaseImageProcessor]]] = {
    IBotConfig: (IBotImageProcessorPil, IBotImageProcessor),
    IBotSwinConfig: (IBotImageProcessorPil, IBotImageProcessor),
    Beitv2Config: (Beitv2ImageProcessorPil, Beitv2ImageProcessor),
    DBotConfig: (DBotImageProcessorPil, DBotImageProcessor),
    VQKDConfig: (Beitv2ImageProcessorPil, Beitv2ImageProcessor),
}


def register():
    """Register all models and image processors with the Auto classes of transformers."""
    for config_class, models in MODELS.items():
        AutoConfig.register(config_class.model_type, config_class)
        for auto_class, model_class in models.items():
            auto_class.register(config_class, model_class)
    for config_class, (pil, torchvision) in IMAGE_PROCESSORS.items():
        backends = {"pil": pil} | ({"torchvision": torchvision} if is_torchvision_available() else {})
        AutoImageProcessor.register(config_class, image_processor_classes=backends)
