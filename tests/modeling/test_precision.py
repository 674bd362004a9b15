"""A float64 model computes in float64, its losses too; losses of half-precision logits are computed in float32."""

import functools
import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch.utils._python_dispatch import TorchDispatchMode

from hf_mim import (
    Beitv2Config,
    Beitv2ForPreTraining,
    DBotConfig,
    DBotForPreTraining,
    IBotConfig,
    IBotForPreTraining,
    IBotSwinConfig,
    IBotSwinForPreTraining,
    VQKDConfig,
    VQKDModel,
)
from hf_mim.modeling import modeling_dbot, modeling_dbot_pretraining
from hf_mim.modeling.layers import interpolate_position_table, resize_position_table
from hf_mim.modeling.modeling_beitv2_pretraining import code_loss, feature_loss
from hf_mim.modeling.modeling_dbot import sincos_positions
from hf_mim.modeling.modeling_ibot_pretraining import cls_loss, patch_loss
from hf_mim.training.ibot_targets import sinkhorn_knopp


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
HEADS = {"out_dim": 10, "patch_out_dim": 10, "head_hidden_size": 12, "head_bottleneck_size": 8}


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class OnlyDouble(TorchDispatchMode):
    """Fails at the first operation with a floating-point result of fewer digits."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **kwargs or {})
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                assert tensor.dtype == torch.float64, function
        return output


def ibot(config, model):
    mask = torch.rand(2, 2, 25 if model is IBotForPreTraining else 9) < 0.4
    targets = {"target_cls": doubles(2, 2, 10).softmax(-1), "target_patch": doubles(int(mask.sum()), 10).softmax(-1)}
    side = 20 if model is IBotForPreTraining else 24
    views = {"pixel_values": doubles(2, 2, 3, side, side), "local_pixel_values": doubles(2, 1, 3, 16, 16)}
    return model(config), {**views, **targets, "bool_masked_pos": mask}


def beitv2(**options):
    config = Beitv2Config(**SIZES, vocab_size=12, early_layers=1, head_layers=1, **options)
    mask = torch.rand(2, 16) < 0.4
    labels = torch.randint(12, (2, 16))
    return Beitv2ForPreTraining(config), {
        "pixel_values": doubles(2, 3, 16, 16),
        "bool_masked_pos": mask,
        "labels": labels,
    }


def dbot(**options):
    decoder = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    inputs = {"pixel_values": doubles(2, 3, 16, 16), "noise": torch.rand(2, 16).double(), "labels": doubles(2, 17, 16)}
    return DBotForPreTraining(DBotConfig(**SIZES, **decoder, **options)), inputs


def vqkd():
    sizes = {"codebook_size": 12, "codebook_dim": 4, "target_dim": 6, "decoder_num_hidden_layers": 1}
    model = VQKDModel(VQKDConfig(**SIZES, **sizes, kmeans_init=False))
    return model, {"pixel_values": doubles(2, 3, 16, 16), "labels": doubles(2, 16, 6)}


SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 3, "image_size": 24, "patch_size": 4}
MODELS = {
    "ibot": lambda: ibot(IBotConfig(**SIZES | HEADS), IBotForPreTraining),
    "ibot_swin": lambda: ibot(IBotSwinConfig(**SWIN | HEADS), IBotSwinForPreTraining),
    "beitv2": beitv2,
    "beitv2, relative positions": lambda: beitv2(use_relative_position_bias=True),
    "dbot": dbot,
    "dbot, normalized targets": lambda: dbot(norm_targets=True),
    "vqkd": vqkd,
}


@pytest.mark.parametrize("name", MODELS)
def test_float64_model(name, monkeypatch):
    """
    Forward pass in float64 from the first operation to the loss, gradients included.

    Only dBOT's position table is rounded to float32 when it is built, as in the original.
    """
    tables = functools.cache(sincos_positions)
    for module in (modeling_dbot, modeling_dbot_pretraining):
        monkeypatch.setattr(module, "sincos_positions", tables)
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    model = model.double().eval()
    model(**inputs)
    with OnlyDouble():
        loss = model(**inputs).loss
        loss.backward()
    assert loss.dtype == torch.float64 and loss.isfinite()


def test_patch_loss():
    mask = torch.zeros(1, 1, 9, dtype=torch.bool)
    mask[..., :3] = True
    uniform = torch.full((3, 7), 1 / 7, dtype=torch.float64)
    loss = patch_loss(torch.zeros(3, 7, dtype=torch.float64), uniform, mask, 0.1)
    assert loss.item() == pytest.approx(math.log(7), abs=1e-15)


def test_cls_loss():
    logits, targets = doubles(2, 3, 5), doubles(2, 2, 5).softmax(-1)
    scores = log_softmax(logits.numpy() / 0.1, axis=-1)
    pairs = [-(targets[:, q].numpy() * scores[:, v]).sum(-1) for q in range(2) for v in range(3) if v != q]
    assert cls_loss(logits, targets, 0.1).item() == pytest.approx(np.mean(pairs), rel=1e-14)


def test_code_loss():
    logits, codes = doubles(3, 7), torch.tensor([0, 1, 6])
    loss, accuracy = code_loss(logits, codes)
    expected = -log_softmax(logits.numpy(), axis=1)[range(3), codes].mean()
    assert loss.item() == pytest.approx(expected, rel=1e-15)
    hits = (logits.argmax(1) == codes).sum().item()
    assert accuracy.dtype == torch.float64 and accuracy.item() == hits / 3


@pytest.mark.parametrize("kind", ["negcosine", "l2", "l1", "smooth_l1"])
def test_feature_loss(kind):
    one, other = doubles(2, 5, 7)
    a, b = one.numpy(), other.numpy()
    distance = np.abs(a - b)
    expected = {
        "negcosine": 1 - (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)),
        "l2": distance**2,
        "l1": distance,
        "smooth_l1": np.where(distance < 2, distance**2 / 4, distance - 1),
    }[kind].mean()
    assert feature_loss(one, other, kind).item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(dtype):
    """The loss is that of the rounded logits in float32, not that of a softmax in half precision."""
    logits, codes = doubles(40, 500).to(dtype), torch.arange(40)
    expected, _ = code_loss(logits.double(), codes)
    loss, _ = code_loss(logits, codes)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("resize", [interpolate_position_table, resize_position_table])
def test_position_tables(resize):
    """A table is linear in its entries: what is added far below the digits of float32 is still there."""
    table = doubles(1, 17, 3)
    small = 1e-12 * torch.ones_like(table)
    difference = resize(table + small, (4, 4), (6, 6)) - resize(table, (4, 4), (6, 6))
    torch.testing.assert_close(difference, 1e-12 * torch.ones_like(difference), rtol=1e-3, atol=0)


def test_sinkhorn_knopp():
    targets = sinkhorn_knopp(doubles(8, 5), 0.05, iterations=200)
    assert targets.dtype == torch.float64
    torch.testing.assert_close(targets.sum(1), torch.ones(8, dtype=torch.float64), rtol=1e-14, atol=0)
