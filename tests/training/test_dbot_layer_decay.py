"""dBOT's parameter groups against those of the original code (tests/golden/dbot/layer_decay.json)."""

import json

import pytest
import torch

from hf_mim import DBotForImageClassification, DBotForPreTraining
from hf_mim.hub.convert.dbot import rename_dbot
from hf_mim.training.optimization import decayed_parameter_names, layer_decay_groups
from tests.testing.dbot_models import tiny_config
from tests.testing.paths import GOLDEN


CASES = json.loads((GOLDEN / "dbot" / "layer_decay.json").read_text())


def expected_settings(case: str) -> dict[str, list[float]]:
    """Learning rate scale, weight decay and number of the group under our names."""
    settings = {}
    for key, values in CASES[case].items():
        converted = rename_dbot({key: torch.zeros(3)}, trainable_positions=True)
        settings |= dict.fromkeys(converted, values)
    return settings


@pytest.mark.parametrize("pooled, decay", [(True, 0.65), (False, 0.75)])
def test_fine_tuning(pooled, decay):
    config = tiny_config(num_hidden_layers=4, use_mean_pooling=pooled, trainable_position_embeddings=True)
    model = DBotForImageClassification(config)
    groups = layer_decay_groups(model, lr=1e-3, weight_decay=0.05, layer_decay=decay)
    names = {parameter: name for name, parameter in model.named_parameters()}
    expected = expected_settings(f"finetune_tiny_depth4_gp{int(pooled)}_decay{decay}")
    assert set(expected) == set(names.values())
    assert len(groups) == len({group for _, _, group in expected.values()})
    for group in groups:
        members = [expected[names[parameter]] for parameter in group["params"]]
        assert len({number for _, _, number in members}) == 1
        for lr_scale, weight_decay, _ in members:
            assert group["weight_decay"] == weight_decay
            assert group["lr_scale"] == pytest.approx(lr_scale, rel=1e-12)
            assert group["lr"] == pytest.approx(1e-3 * lr_scale, rel=1e-12)


def test_pretraining():
    """CLS token and mask token are decayed here; fixed positions are no parameters."""
    expected = expected_settings("pretrain_tiny_depth2")
    blocks = {name.split(".")[2] for name in expected if name.startswith("decoder.layers.")}
    model = DBotForPreTraining(tiny_config(num_hidden_layers=2, decoder_num_hidden_layers=len(blocks)))
    assert set(expected) == {name for name, _ in model.named_parameters()}
    decayed = {name for name, (_, weight_decay, _) in expected.items() if weight_decay > 0}
    assert set(decayed_parameter_names(model)) == decayed
