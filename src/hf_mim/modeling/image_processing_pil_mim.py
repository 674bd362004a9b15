"""Image processors of all methods on Pillow and NumPy: the same settings under three names."""

from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling


class MIMImageProcessorPil(PilBackend):
    """
    Resizes the shorter side to 256 pixels (bicubic), crops the center of 224 pixels, and normalizes with the mean and
    standard deviation of ImageNet. Images of any mode become RGB first.
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


class IBotImageProcessorPil(MIMImageProcessorPil):
    """[`MIMImageProcessorPil`] as iBOT evaluates with it (`evaluation/eval_knn.py`)."""


class Beitv2ImageProcessorPil(MIMImageProcessorPil):
    """[`MIMImageProcessorPil`] as BEiT v2 is fine-tuned with it (`datasets.py`, crop ratio 0.875)."""


class DBotImageProcessorPil(MIMImageProcessorPil):
    """[`MIMImageProcessorPil`] as dBOT is fine-tuned with it (`util/datasets.py`, crop ratio 0.875)."""


__all__ = ["Beitv2ImageProcessorPil", "DBotImageProcessorPil", "IBotImageProcessorPil"]
