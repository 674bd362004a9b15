"""How dBOT's tensors start, and start again at a new stage (SPEC 2.1, 2.2 and 5.1)."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mim import DBotForPreTraining
from hf_mim.modeling.modeling_dbot import sincos_positions
from tests.testing.dbot_models import tiny_config


def uniform_bound(fan_in: int, fan_out: int) -> float:
    return (6 / (fan_in + fan_out)) ** 0.5


def assert_initialized(weights: dict[str, torch.Tensor]):
    """Every tensor has the distribution of the original code (SPEC 2.1); the patch projection's bias is left out."""
    for name, tensor in weights.items():
        rows, kind = tensor.shape[0], name.split(".")[-2]
        if name.endswith(("cls_token", "mask_token")):
            assert tensor.std().item() == pytest.approx(0.02, rel=0.25), name
            assert abs(tensor.mean().item()) < 5 * 0.02 / tensor.numel() ** 0.5, name
        elif "layernorm" in name:
            assert (tensor == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias"):
            assert name.endswith("projection.bias") or not tensor.any(), name
        else:
            fan_out = 3 * rows if kind in ("q_proj", "k_proj", "v_proj") else rows
            bound = uniform_bound(tensor[0].numel(), fan_out)
            assert 0.98 * bound < tensor.abs().max().item() <= bound, name
            assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name


class TestInitialisation:
    @staticmethod
    def model(**overrides) -> DBotForPreTraining:
        torch.manual_seed(0)
        sizes = dict(hidden_size=128, intermediate_size=192, decoder_hidden_size=96, target_dim=64)
        return DBotForPreTraining(tiny_config(**sizes | overrides))

    def test_a_new_model(self):
        model = self.model()
        assert_initialized(model.state_dict())
        bound = (3 * 8 * 8) ** -0.5
        bias = model.dbot.embeddings.patch_embeddings.projection.bias
        assert 0.9 * bound < bias.abs().max() <= bound

    @pytest.mark.parametrize("source", ["new", "loaded"])
    def test_reinitialisation(self, tmp_path, source):
        """Draws everything but one bias; the parameters stay the ones that an optimizer knows."""
        model = self.model(trainable_position_embeddings=True, layer_scale_init_value=0.1)
        if source == "loaded":
            model.save_pretrained(tmp_path)
            model = DBotForPreTraining.from_pretrained(tmp_path)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.add_(1.0)
        before = copy.deepcopy(model.state_dict())
        torch.manual_seed(1)
        model.reinitialize()
        kept = "dbot.embeddings.patch_embeddings.projection.bias"
        for name, parameter in model.named_parameters():
            assert parameter is parameters[name]
            assert torch.equal(parameter, before[name]) == (name == kept), name
        special = ("position_embeddings", "lambda_1", "lambda_2", kept)
        table = model.dbot.embeddings.position_embeddings
        assert torch.equal(table.data, sincos_positions(128, (3, 3)))
        assert all((layer.lambda_1 == 0.1).all() for layer in model.decoder.layers)
        assert_initialized({k: v for k, v in model.state_dict().items() if not k.endswith(special)})

        again = self.model(trainable_position_embeddings=True, layer_scale_init_value=0.1)
        torch.manual_seed(1)
        again.reinitialize()
        for name, tensor in again.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]) or name == kept


class TestPositions:
    @settings(deadline=None, max_examples=40)
    @given(quarter=st.integers(1, 9), rows=st.integers(1, 12), columns=st.integers(1, 12))
    def test_by_the_formula(self, quarter, rows, columns):
        """Every entry is a sine or a cosine of the patch's column (first half of the channels) or row."""
        table = sincos_positions(4 * quarter, (rows, columns))
        assert table.shape == (1, 1 + rows * columns, 4 * quarter) and not table[0, 0].any()
        row, column = rows - 1, columns // 2
        entry = table[0, 1 + row * columns + column].double()
        frequencies = [10000 ** (-j / quarter) for j in range(quarter)]
        for half, place in ((0, column), (1, row)):
            angles = torch.tensor([place * frequency for frequency in frequencies], dtype=torch.float64)
            expected = torch.cat((angles.sin(), angles.cos()))
            actual = entry[2 * quarter * half :][: 2 * quarter]
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
