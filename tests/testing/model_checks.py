"""Checks that every model class of the package passes, whatever the method."""

import contextlib
import copy
import inspect
from collections.abc import Iterator

import pytest
import torch
from packaging.version import Version
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput


@contextlib.contextmanager
def seeded_inits() -> Iterator[None]:
    """Every initialization draws the same numbers, whichever tensors were initialized before."""
    saved = dict(init.TORCH_INIT_FUNCTIONS)
    for name, function in saved.items():

        def seeded(*args, _function=function, **kwargs):
            torch.manual_seed(0)
            return _function(*args, **kwargs)

        init.TORCH_INIT_FUNCTIONS[name] = seeded
    try:
        yield
    finally:
        init.TORCH_INIT_FUNCTIONS.update(saved)


def tensors_of(output) -> list[torch.Tensor]:
    """All tensors of a (nested) model output, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    if output is None:
        return []
    items = output.to_tuple() if isinstance(output, ModelOutput) else output
    return [tensor for item in items for tensor in tensors_of(item)]


def assert_same(actual, expected, rtol: float = 0.0, atol: float = 0.0):
    """Two model outputs hold the same numbers."""
    actual, expected = tensors_of(actual), tensors_of(expected)
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def assert_same_weights(actual: torch.nn.Module, expected: torch.nn.Module):
    actual, expected = actual.state_dict(), expected.state_dict()
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def loss_of(output: ModelOutput) -> torch.Tensor:
    """The model's loss, or a fixed random projection of everything that it returns."""
    if output.get("loss") is not None:
        return output.loss
    generator = torch.Generator().manual_seed(0)
    return sum((torch.randn(t.shape, generator=generator) * t.float()).mean() for t in tensors_of(output))


def gradients_of(model: PreTrainedModel, inputs: dict, seed: int = 0) -> tuple[torch.Tensor, dict]:
    """Loss of one training step, and the gradient of every parameter (None where there is none)."""
    model.zero_grad()
    torch.manual_seed(seed)
    loss = loss_of(model(**inputs))
    loss.backward()
    return loss.detach(), {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def assert_same_step(actual: tuple[torch.Tensor, dict], expected: tuple[torch.Tensor, dict], tolerance: float):
    torch.testing.assert_close(actual[0], expected[0], rtol=tolerance, atol=tolerance)
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(
            actual[1][name], gradient, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: n + m
        )


class ModelChecks:
    """
    A test class inherits these checks, names the model and says how to configure and to feed it.

    `make_config(**overrides)` gives a configuration of a model below a million parameters; `inputs(config)` the
    arguments of a forward without loss, each with the batch of 3 in front; `training_inputs(config)` adds labels or
    targets. `variants` are sets of overrides under which the model owns other tensors.
    """

    model_class: type[PreTrainedModel]
    variants: tuple[dict, ...] = ({},)
    # Parameters that serve another class of the family, and get no gradient in this one.
    unused_in_training: set[str] = set()
    # Gradients of several views may be added in another order.
    checkpointing_tolerance = 1e-6

    def make_config(self, **overrides) -> PreTrainedConfig:
        raise NotImplementedError

    def inputs(self, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def training_inputs(self, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
        return self.inputs(config)

    def make_model(self, attention: str = "sdpa", **overrides) -> PreTrainedModel:
        """A model in eval mode in which no tensor has the value that its initialization gives it."""
        torch.manual_seed(0)
        model = self.model_class(self.make_config(attn_implementation=attention, **overrides)).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
        return model

    def test_the_model_is_small(self):
        assert sum(p.numel() for p in self.make_model().parameters()) < 1_000_000

    def test_missing_weights_are_initialized_like_new_ones(self):
        for overrides in self.variants:
            config = self.make_config(**overrides)
            with seeded_inits():
                new = self.model_class(copy.deepcopy(config))
                loaded = self.model_class.from_pretrained(None, config=copy.deepcopy(config), state_dict={})
            assert_same_weights(loaded, new)

    def test_missing_weights_leave_the_others_alone(self):
        for overrides in self.variants:
            model = self.make_model(**overrides)
            weights = model.state_dict()
            # Neighbors belong to the same module: each module is once seen with one half of its tensors missing.
            for half in (list(weights)[::2], list(weights)[1::2]):
                # Copies, because the loaded model keeps the tensors that it is given.
                given = {name: weights[name].clone() for name in half}
                loaded = self.model_class.from_pretrained(None, config=model.config, state_dict=given)
                for name in half:
                    assert torch.equal(loaded.state_dict()[name], weights[name]), name

    @torch.no_grad()
    def test_weights_can_be_made_on_the_meta_device(self):
        for overrides in self.variants:
            config = self.make_config(**overrides)
            with init.no_init_weights():
                expected = dict(self.model_class(copy.deepcopy(config)).named_buffers())
            with torch.device("meta"):
                model = self.model_class(copy.deepcopy(config))
            model.to_empty(device="cpu")
            model.init_weights()
            for name, buffer in model.named_buffers():
                assert torch.equal(buffer, expected[name]), name
            output = model.eval()(**self.inputs(config))
            assert all(tensor.isfinite().all() for tensor in tensors_of(output))

    @torch.no_grad()
    def test_save_and_load(self, tmp_path):
        for overrides in self.variants:
            model = self.make_model(**overrides)
            inputs = self.inputs(model.config)
            expected = model(**inputs)
            model.save_pretrained(tmp_path)
            loaded, report = self.model_class.from_pretrained(tmp_path, output_loading_info=True)
            assert not any(report.values()), report
            assert_same_weights(loaded, model)
            assert loaded.config.to_dict() == model.config.to_dict() | {"_name_or_path": str(tmp_path)}
            assert all(p.requires_grad for p in loaded.parameters())
            assert_same(loaded.eval()(**inputs), expected)

    @torch.no_grad()
    def test_loading_in_bfloat16(self, tmp_path):
        model = self.make_model()
        inputs = self.inputs(model.config)
        expected = model(**inputs)
        model.save_pretrained(tmp_path)
        loaded = self.model_class.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
        assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
        for one, other in zip(tensors_of(loaded(**inputs)), tensors_of(expected), strict=True):
            assert one.dtype == (torch.bfloat16 if other.is_floating_point() else other.dtype)
            assert (one.float() - other.float()).norm() < 0.05 * other.float().norm()

    @torch.no_grad()
    def test_the_same_twice_and_alone_as_in_a_batch(self):
        model = self.make_model(drop_path_rate=0.5)
        inputs = self.inputs(model.config)
        expected = tensors_of(model(**inputs))
        assert_same(model(**inputs), expected)
        rows = [tensors_of(model(**{k: v[i : i + 1] for k, v in inputs.items()})) for i in range(3)]
        # What comes per masked patch instead of per image stands in the same order: the rows are put together again.
        for i, whole in enumerate(expected):
            torch.testing.assert_close(torch.cat([row[i] for row in rows]), whole, rtol=1e-5, atol=1e-5)

    @torch.no_grad()
    @pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
    def test_eager_equals_sdpa(self, dtype, tolerance):
        eager, sdpa = (self.make_model(attention=name).to(dtype) for name in ("eager", "sdpa"))
        inputs = self.inputs(eager.config)
        for one, other in zip(tensors_of(eager(**inputs)), tensors_of(sdpa(**inputs)), strict=True):
            assert (one.float() - other.float()).norm() <= tolerance * other.float().norm()
            if dtype == torch.float32:
                torch.testing.assert_close(one, other, rtol=0, atol=tolerance)

    def test_tuple_equals_dict(self):
        model = self.make_model(attention="eager")
        for inputs in (self.inputs(model.config), self.training_inputs(model.config)):
            for extra in ({}, {"output_hidden_states": True, "output_attentions": True}):
                named = model(**inputs, **extra)
                plain = model(**inputs, **extra, return_dict=False)
                assert isinstance(plain, tuple) and len(plain) == len(named.to_tuple())
                assert_same(plain, named)

    @torch.no_grad()
    def test_hidden_states_and_attentions(self):
        model = self.make_model(attention="eager")
        config, inputs = model.config, self.inputs(model.config)
        default = model(**inputs)
        assert "hidden_states" not in default and "attentions" not in default
        output = model(**inputs, output_hidden_states=True, output_attentions=True)
        states, attentions = output.hidden_states, output.attentions
        assert len(states) == config.num_hidden_layers + 1 and len(attentions) == config.num_hidden_layers
        assert len({tuple(state.shape) for state in states}) == 1 and states[0].shape[-1] == config.hidden_size
        rows, length, _ = states[0].shape
        for weights in attentions:
            assert weights.shape == (rows, config.num_attention_heads, length, length)
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))

        for chosen in (-1, [0, 2], [1, -1]):
            selected = model(**inputs, output_hidden_states=chosen).hidden_states
            kept = {index % len(states) for index in ([chosen] if isinstance(chosen, int) else chosen)}
            assert {i for i, state in enumerate(selected) if state is not None} == kept
            assert_same([selected[i] for i in kept], [states[i] for i in kept])

        by_config = self.make_model(attention="eager", output_hidden_states=True, output_attentions=True)
        by_config = by_config(**inputs)
        assert_same(by_config.hidden_states, states)
        assert_same(by_config.attentions, attentions)

    def test_every_parameter_gets_a_gradient(self):
        for overrides in self.variants:
            model = self.make_model(**overrides).train()
            _, gradients = gradients_of(model, self.training_inputs(model.config))
            without = {name for name, gradient in gradients.items() if gradient is None}
            assert without == self.unused_in_training
            for name, gradient in gradients.items():
                # A key bias moves all logits of a query alike: its gradient is zero but for rounding.
                if name not in without and not name.endswith("k_proj.bias"):
                    assert gradient.isfinite().all() and gradient.abs().max() > 0, name

    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_activation_checkpointing_changes_nothing(self, use_reentrant):
        model = self.make_model(drop_path_rate=0.5).train()
        inputs = self.training_inputs(model.config)
        expected = gradients_of(model, inputs)
        calls = []
        block = next(module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
        # Inside the block: its own hooks stay outside of what is computed again.
        next(block.children()).register_forward_pre_hook(lambda *_: calls.append(1))
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": use_reentrant})
        assert model.is_activation_checkpointing
        assert_same_step(gradients_of(model, inputs), expected, self.checkpointing_tolerance)
        recomputed = len(calls)
        calls.clear()
        model.activation_checkpointing_disable()
        assert_same_step(gradients_of(model, inputs), expected, self.checkpointing_tolerance)
        assert recomputed == 2 * len(calls) > 0

    def test_input_embeddings_can_require_gradients(self):
        """What adapters such as LoRA ask for before they train a frozen model with checkpointing."""
        model = self.make_model().train().requires_grad_(False)
        model.enable_input_require_grads()
        assert loss_of(model(**self.training_inputs(model.config))).requires_grad
        model.disable_input_require_grads()

    def check_compiled(self, backend: str, tolerance: float, **overrides):
        # Stochastic depth off: a compiled program draws its random numbers in another order.
        model = self.make_model(drop_path_rate=0.0, **overrides).train()
        inputs = self.training_inputs(model.config)
        if (
            Version(torch.__version__) < Version("2.13")
            and "mask_indices" in inspect.signature(model.forward).parameters
        ):
            # Older compilers cannot count the masked patches. The trainers always pass their positions.
            inputs["mask_indices"] = inputs["bool_masked_pos"].flatten().nonzero().squeeze(1)
        expected = gradients_of(model, inputs)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        model.zero_grad()
        loss = loss_of(compiled(**inputs))
        loss.backward()
        actual = (loss.detach(), {name: p.grad for name, p in model.named_parameters()})
        assert_same_step(actual, expected, tolerance)

    def test_compile(self):
        self.check_compiled("aot_eager", 1e-5)

    @pytest.mark.slow
    def test_compile_with_inductor(self):
        self.check_compiled("inductor", 1e-4)

    def check_export(self):
        """`torch.export` with a free batch size; for the classes that are deployed."""
        model = self.make_model()
        inputs = self.inputs(model.config)
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(
            model, (), inputs, dynamic_shapes={name: {0: batch} for name in inputs}, strict=False
        ).module()
        with torch.no_grad():
            assert_same(program(**inputs), model(**inputs), rtol=1e-5, atol=1e-5)
            pair = {name: tensor[:2] for name, tensor in inputs.items()}
            assert_same(program(**pair), model(**pair), rtol=1e-5, atol=1e-5)
