"""Clipping per tensor and the choice of decayed parameters."""

import pytest
import torch

from hf_mim import IBotConfig, IBotForPreTraining
from hf_mim.training.optimization import clip_gradients_per_tensor, decayed_parameter_names


def tiny_model(**options) -> IBotForPreTraining:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    head = {"out_dim": 8, "head_hidden_size": 16, "head_bottleneck_size": 8}
    return IBotForPreTraining(IBotConfig(**sizes, **head, **options))


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 1e6])
def test_clip_equals_clipping_the_fused_tensors(max_norm):
    torch.manual_seed(0)
    model = tiny_model()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * torch.rand(()) * 3
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    total = clip_gradients_per_tensor(model, max_norm)
    everything = torch.cat([gradient.flatten() for gradient in before.values()])
    torch.testing.assert_close(total, everything.norm())
    for name, parameter in model.named_parameters():
        group = [before[name]]
        if "_proj." in name and "o_proj" not in name:
            prefix, kind = name.rsplit("_proj.", 1)[0][:-1], name.rsplit(".", 1)[1]
            group = [before[f"{prefix}{letter}_proj.{kind}"] for letter in "qkv"]
        norm = torch.cat([gradient.flatten() for gradient in group]).norm()
        expected = before[name] * min(1.0, max_norm / (norm.item() + 1e-6))
        torch.testing.assert_close(parameter.grad, expected)


def test_clip_without_gradients():
    assert clip_gradients_per_tensor(tiny_model(), 1.0) == 0


def test_decayed_parameters():
    model = tiny_model(norm_last_layer=False, layer_scale_init_value=0.1)
    decayed = set(decayed_parameter_names(model))
    assert {
        "ibot.embeddings.cls_token",
        "ibot.embeddings.mask_token",
        "ibot.embeddings.position_embeddings",
        "ibot.layers.0.attention.q_proj.weight",
        "head.last_layer.direction",
        "head.last_layer.magnitude",
    } <= decayed
    rest = {name for name, _ in model.named_parameters()} - decayed
    assert all(name.endswith("bias") or "norm" in name or "lambda" in name for name in rest)
    model.requires_grad_(False)
    assert decayed_parameter_names(model) == []
