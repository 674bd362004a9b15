"""VQ-KD against numbers of the original code: forwards, gradients, and three steps of training."""

import pytest
import torch

from hf_mim import VQKDConfig, VQKDModel
from hf_mim.hub.convert.vqkd import rename_vqkd


TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


def under(golden: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}


def make_model(
    golden: dict[str, torch.Tensor], decoder_num_hidden_layers: int = 1, target_dim: int = 512
) -> VQKDModel:
    """The model of the golden files with its official weights, in eval mode."""
    model = VQKDModel(
        VQKDConfig(
            image_size=32,
            patch_size=8,
            hidden_size=48,
            num_hidden_layers=2,
            decoder_num_hidden_layers=decoder_num_hidden_layers,
            num_attention_heads=4,
            codebook_size=40,
            codebook_dim=8,
            target_dim=target_dim,
        )
    )
    model.load_state_dict(rename_vqkd(under(golden, "weights/")))
    assert model.quantizer.initialized
    return model.eval()


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("vqkd_clip_eval", {}),
        ("vqkd_clip_imagenet_norm_eval", {}),
        ("vqkd_dino_eval", {"decoder_num_hidden_layers": 3, "target_dim": 768}),
    ],
)
def test_eval_mode(beitv2_golden, name, sizes):
    golden = beitv2_golden(name)
    model = make_model(golden, **sizes)
    pixel_values, labels = golden["out/pre_processed"], golden["in/teacher_features"]
    codes = model.encode(pixel_values)
    assert torch.equal(codes, golden["out/codes"])
    torch.testing.assert_close(model.decode(codes), golden["out/decoded"], **TOLERANCE)
    tokens = model.encoder(pixel_values).last_hidden_state
    torch.testing.assert_close(tokens[:, 1:], golden["out/encoder_patch_tokens"], **TOLERANCE)
    torch.testing.assert_close(model._to_codebook(tokens), golden["out/to_quantizer"], **TOLERANCE)

    output = model(pixel_values, labels)
    assert torch.equal(output.codes, codes)
    torch.testing.assert_close(output.features, golden["out/decoded"], **TOLERANCE)
    for part, expected in (("loss", "total"), ("loss_feature", "rec"), ("loss_quantizer", "quant")):
        torch.testing.assert_close(output[part], golden[f"out/{expected}_loss"], **TOLERANCE)
    output.loss.backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    expected = rename_vqkd(under(golden, "grad/"))
    assert len(expected) >= 7
    for key, value in expected.items():
        torch.testing.assert_close(gradients[key], value, **TOLERANCE, msg=lambda m, k=key: f"{k}: {m}")
    assert not model.quantizer.usage.any()


def test_training_trace(beitv2_golden):
    golden = beitv2_golden("vqkd_train_trace")
    model = make_model(golden)
    decayed = {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and not name.endswith(("cls_token", "position_embeddings"))
    }
    groups = [
        {"params": [p for n, p in model.named_parameters() if (n in decayed) == decays], "weight_decay": decay}
        for decays, decay in ((True, 1e-4), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-8)
    for step, lr in enumerate((1e-3, 2e-3, 1.5e-3)):
        pixel_values, labels = 2 * golden[f"in/images_{step}"] - 1, golden[f"in/teacher_features_{step}"]
        codes = model.eval().encode(pixel_values)
        differing = (codes != golden[f"out/codes_{step}"]).float().mean()
        assert differing == 0 if step == 0 else differing < 0.05
        output = model.train()(pixel_values, labels)
        for part, expected in (("loss", "loss"), ("loss_feature", "rec_loss"), ("loss_quantizer", "quant_loss")):
            torch.testing.assert_close(output[part], golden[f"out/{expected}"][step], atol=2e-5, rtol=0)
        optimizer.zero_grad()
        output.loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        torch.testing.assert_close(norm, golden["out/grad_norm"][step], rtol=1e-3, atol=0)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        model.update_codebook()
        torch.testing.assert_close(model.quantizer.codebook, golden[f"out/codebook_{step}"], atol=2e-4, rtol=0)
        torch.testing.assert_close(model.quantizer.usage, golden[f"out/cluster_size_{step}"], atol=2e-4, rtol=0)
    weights, expected = model.state_dict(), rename_vqkd(under(golden, "final/"))
    assert len(expected) >= 10
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, atol=2e-4, rtol=0, msg=lambda m, k=key: f"{k}: {m}")
