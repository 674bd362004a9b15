"""Image processors based on torchvision: the same settings under the names of three methods."""

from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling


class MIMImageProcessor(TorchvisionBackend):
    """
    Converts images to RGB, resizes the shorter side to 256 pixels (bicubic), crops the central 224 x 224 pixels, and
    normalizes with the mean and standard deviation of ImageNet.
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


class IBotImageProcessor(MIMImageProcessor):
    """[`MIMImageProcessor`] with the settings of iBOT's evaluation (`evaluation/eval_knn.py`)."""


class Beitv2ImageProcessor(MIMImageProcessor):
    """[`MIMImageProcessor`] with the settings of BEiT v2's fine-tuning (`datasets.py`, crop ratio 0.875)."""


class DBotImageProcessor(MIMImageProcessor):
    """[`MIMImageProcessor`] with the settings of dBOT's fine-tuning (`util/datasets.py`, crop ratio 0.875)."""


__all__ = ["Beitv2ImageProcessor", "DBotImageProcessor", "IBotImageProcessor"]
