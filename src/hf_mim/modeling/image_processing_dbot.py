"""Image processor of dBOT on torchvision."""

from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling


class DBotImageProcessor(TorchvisionBackend):
    """
    The test transform of fine-tuning (`util/datasets.py`, crop 0.875): shorter side to 256 pixels (bicubic), central
    crop of 224, ImageNet mean and standard deviation. Images of any mode become RGB first.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 256}
    crop_size = {"height": 224, "width": 224}
    default_to_square = False
    do_convert_rgb = True
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True


__all__ = ["DBotImageProcessor"]
