"""Wanted tokens alone through the end of the encoder: the numbers of the full computation."""

import pytest
import torch

from hf_mim import IBotModel
from hf_mim.modeling.layers import DropPathResidual, wanted_tokens
from tests.testing import ibot_models as ibot
from tests.testing.model_checks import assert_same


WANTED = torch.tensor([0, 10, 20, 30, 3, 9, 17, 21, 22])  # CLS tokens and patches of four views of 1 + 9 tokens


def views() -> torch.Tensor:
    return torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def tokens_and_gradients(model: IBotModel, early: bool, **kwargs) -> list[torch.Tensor]:
    """Wanted tokens and the gradients of a function of them, selected by the model or from the full output."""
    torch.manual_seed(7)
    if early:
        output = model(views(), ibot.masks((4, 9)), token_indices=WANTED, **kwargs)
        assert output.pooler_output is None
        tokens = output.last_hidden_state
    else:
        tokens = model(views(), ibot.masks((4, 9)), **kwargs).last_hidden_state.flatten(0, 1)[WANTED]
    after = torch.rand(())  # as many random numbers are drawn
    weights = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return [tokens, after, *torch.autograd.grad((weights * tokens.tanh()).sum(), list(model.parameters()))]


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5, 0.95])
@pytest.mark.parametrize(
    "overrides",
    [{}, {"layer_scale_init_value": 0.1}, {"use_mean_pooling": True}, {"num_hidden_layers": 1}],
    ids=["plain", "layer scale", "mean pooling", "one block"],
)
def test_values_and_gradients(overrides, drop_path_rate):
    model = ibot.IBotModelChecks().make_model(drop_path_rate=drop_path_rate, **overrides).double().train()
    assert_same(tokens_and_gradients(model, True), tokens_and_gradients(model, False), atol=1e-12)


def test_only_wanted_tokens_pass_the_last_mlp():
    model = ibot.IBotModelChecks().make_model()
    lengths = []
    for layer in model.layers:
        layer.mlp.register_forward_hook(lambda module, args, output: lengths.append(output[..., 0].numel()))
    model(views().float(), token_indices=WANTED)
    assert lengths == [40, 40, len(WANTED)]


@pytest.mark.parametrize("recorded", [True, -1, [0, 3], 0])
def test_recorded_states_and_attentions_are_those_of_all_tokens(recorded):
    model = ibot.IBotModelChecks().make_model("eager", drop_path_rate=0.5).double().train()
    outputs = []
    for indices in (WANTED, None):
        torch.manual_seed(7)
        outputs.append(model(views(), token_indices=indices, output_hidden_states=recorded, output_attentions=True))
    selected, full = outputs
    assert_same(selected.last_hidden_state, full.last_hidden_state.flatten(0, 1)[WANTED], atol=1e-12)
    assert_same(selected.attentions, full.attentions, atol=1e-12)
    assert ("hidden_states" in selected) == ("hidden_states" in full) == (recorded != 0)
    if recorded != 0:
        assert_same(selected.hidden_states, full.hidden_states, atol=1e-12)


@pytest.mark.parametrize("rate", [0.01, 0.5, 0.999])
def test_skipping_the_tokens_of_dropped_samples_equals_multiplying_them_by_zero(rate):
    linear = torch.nn.Linear(5, 5)
    drop_path = DropPathResidual(rate).train()
    tokens = torch.randn(6, 3, 5, requires_grad=True)
    indices = torch.tensor([0, 4, 5, 17, 9, 3])

    def branch(x, output_attentions=False):
        return linear(x).tanh()

    results = []
    for every_sample in (False, True):
        torch.manual_seed(1)
        output = drop_path(tokens, branch, indices, output_attentions=every_sample)
        assert output.shape == (6, 1, 5)
        gradients = torch.autograd.grad(output.square().sum(), (tokens, *linear.parameters()))
        results.append((output, *gradients))
    assert_same(*results, rtol=1e-5, atol=1e-6)


def test_no_wanted_token():
    tokens = torch.randn(6, 3, 5)
    nothing = torch.tensor([], dtype=torch.int64)
    assert DropPathResidual(0.5).train()(tokens, torch.tanh, nothing).shape == (0, 1, 5)


def test_positions_of_wanted_tokens():
    mask = ibot.masks((5, 9))
    positions = wanted_tokens(5, 9, mask.flatten().nonzero().squeeze(1))
    grid = torch.arange(50).view(5, 10)
    assert_same(positions, torch.cat((grid[:, 0], grid[:, 1:][mask])))


@pytest.mark.parametrize("overrides", [{}, {"layer_scale_init_value": 0.1}, *ibot.HEAD_VARIANTS], ids=str)
@pytest.mark.parametrize("local", [True, False])
def test_training_step_equals_that_of_all_tokens(overrides, local):
    """Loss, logits and gradients, against the same model with recorded states, which takes all tokens."""
    checks = ibot.IBotForPreTrainingChecks()
    results = []
    for recorded in (False, True):
        model = checks.make_model(drop_path_rate=0.5, **overrides).double().train()
        inputs = checks.training_inputs(model.config, local=local)
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        torch.manual_seed(7)
        model.config.output_hidden_states = recorded  # of the local views, too
        output = model(**inputs)
        gradients = torch.autograd.grad(output.loss, list(model.parameters()))
        logits = [output.cls_logits, output.patch_logits, output.local_cls_logits]
        results.append([output.loss, logits, gradients, dict(model.head.named_buffers()).values()])
    assert_same(*results, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("overrides", [{}, {"use_mean_pooling": True}, *ibot.HEAD_VARIANTS], ids=str)
def test_teacher_without_the_mean_equals_that_of_all_tokens(overrides):
    checks = ibot.IBotForPreTrainingChecks()
    model = checks.make_model(**overrides).double().train()
    inputs = checks.inputs(model.config)
    indices = inputs["bool_masked_pos"].flatten().nonzero().squeeze(1)
    taught = model.teach(inputs["pixel_values"].double(), indices)
    full = model.teach(inputs["pixel_values"].double(), indices, mean_patch_logit=True)
    for name in ("cls_tokens", "cls_logits", "patch_logits"):
        assert_same(taught[name], full[name], atol=1e-12)
    assert taught.mean_patch_logit is None
