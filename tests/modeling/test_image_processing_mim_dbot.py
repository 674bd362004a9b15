"""The dBOT image processors are those of the other methods, under their own name."""

import numpy as np
import pytest
from transformers import AutoImageProcessor

from hf_mim import DBotConfig, DBotImageProcessorPil
from tests.testing.image_processing import by_hand, generated_image


@pytest.mark.parametrize("size, mode", [((300, 300), "RGB"), ((400, 260), "RGBA"), ((97, 60), "L")])
def test_equals_pillow(size, mode):
    image = generated_image(*size, mode)
    values = DBotImageProcessorPil()(image, return_tensors="np")["pixel_values"]
    assert values.shape == (1, 3, 224, 224)
    np.testing.assert_allclose(values[0], by_hand(image), rtol=0, atol=1e-6)


def test_from_a_folder(tmp_path):
    DBotConfig().save_pretrained(tmp_path)
    processor = DBotImageProcessorPil(crop_size={"height": 64, "width": 32})
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert type(loaded) is DBotImageProcessorPil
    image = generated_image(90, 120)
    np.testing.assert_array_equal(loaded(image)["pixel_values"], processor(image)["pixel_values"])


def test_torchvision_backend():
    pytest.importorskip("torchvision", exc_type=ImportError)
    from hf_mim import DBotImageProcessor

    image = generated_image(300, 260)
    values = DBotImageProcessor()(image, return_tensors="np")["pixel_values"][0]
    difference = np.abs(values - by_hand(image))
    assert difference.max() < 0.1 and difference.mean() < 1e-3
