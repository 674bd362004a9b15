"""The general model checks, and what is particular to each iBOT class beside its golden numbers."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)

from hf_mim import IBotBackbone, IBotConfig, IBotForImageClassification, IBotForPreTraining, IBotModel
from hf_mim.modeling.layers import DropPathResidual
from tests.testing.deployed_checks import BackboneChecks, ClassifierChecks
from tests.testing.ibot_models import (
    ENCODER_VARIANTS,
    IBotChecks,
    IBotForPreTrainingChecks,
    IBotModelChecks,
    tiny_config,
)
from tests.testing.model_checks import assert_same, assert_same_weights, tensors_of


class TestIBotModel(IBotModelChecks):
    def test_compile(self):
        # The pre-training model compiles all blocks.
        self.check_compiled("aot_eager", 1e-5, num_hidden_layers=1)

    def test_export(self):
        self.check_export()

    @torch.no_grad()
    def test_pooler_output_is_the_first_token(self):
        for overrides in self.variants:
            model = self.make_model(**overrides)
            output = model(**self.inputs(model.config))
            assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])

    @torch.no_grad()
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("option", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
    def test_dropout_acts_in_training_only(self, option, attention):
        model = self.make_model(attention, **{option: 0.5})
        inputs = self.inputs(model.config)
        assert_same(model(**inputs), self.make_model(attention)(**inputs))
        outputs = []
        for seed in (0, 1, 0):
            torch.manual_seed(seed)
            outputs.append(model.train()(**inputs).last_hidden_state)
        assert_same(outputs[0], outputs[2])
        assert (outputs[0] - outputs[1]).abs().max() > 0.1

    @torch.no_grad()
    def test_a_masked_patch_is_not_seen(self):
        model = self.make_model()
        inputs = self.inputs(model.config)
        changed = inputs["pixel_values"].clone()
        changed[:, :, :8, :8] = 7.0  # patch 0, which is masked
        assert_same(model(changed, inputs["bool_masked_pos"]), model(**inputs))
        assert not torch.equal(model(changed).pooler_output, model(inputs["pixel_values"]).pooler_output)

    def test_clear_errors(self):
        model = self.make_model()
        with pytest.raises(ValueError, match="have 4 channels, the model was built for 3"):
            model(torch.zeros(1, 4, 24, 24))
        with pytest.raises(ValueError, match="24x20 is not a multiple of the patch size 8"):
            model(torch.zeros(1, 3, 24, 20))
        with pytest.raises(ValueError, match=r"bool_masked_pos has shape \(2, 3, 3\).*\(2, 9\)"):
            model(torch.zeros(2, 3, 24, 24), torch.zeros(2, 3, 3, dtype=torch.bool))
        with pytest.raises(ValueError, match=r"n must lie in 1\.\.3.*got 4"):
            model.get_intermediate_layers(torch.zeros(1, 3, 24, 24), n=4)


class TestIBotBackbone(BackboneChecks, IBotChecks):
    model_class = IBotBackbone
    # Feature maps hold patches after the final norm, so the norm of the mean patch has no part in them.
    variants = tuple(overrides for overrides in ENCODER_VARIANTS if "use_mean_pooling" not in overrides)


class TestIBotForImageClassification(ClassifierChecks, IBotChecks):
    model_class = IBotForImageClassification
    variants = (*ENCODER_VARIANTS, {"num_labels": 0})

    @torch.no_grad()
    def test_the_head_takes_token_0(self):
        model = self.make_model(use_mean_pooling=True)
        inputs = self.inputs(model.config)
        patches = model.ibot(**inputs).last_hidden_state[:, 1:]
        assert_same(model(**inputs).logits, model.classifier(model.ibot.fc_norm(patches.mean(1))), atol=1e-6)


class TestIBotForPreTraining(IBotForPreTrainingChecks):
    @torch.no_grad()
    def test_encoder_backbone_and_classifier_load_from_a_pretraining_checkpoint(self, tmp_path):
        model = self.make_model()
        model.save_pretrained(tmp_path)
        image = {"pixel_values": self.inputs(model.config)["pixel_values"][:, 0]}
        features = model.ibot(**image)
        for auto_class, cls in ((AutoModel, IBotModel), (IBotModel, IBotModel)):
            encoder, report = auto_class.from_pretrained(tmp_path, output_loading_info=True)
            assert type(encoder) is cls and not any(report.values()), report
            assert_same_weights(encoder, model.ibot)
            assert_same(encoder.eval()(**image), features)
        backbone, report = IBotBackbone.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values()), report
        assert_same_weights(backbone.ibot, model.ibot)
        classifier, report = AutoModelForImageClassification.from_pretrained(
            tmp_path, num_labels=5, output_loading_info=True
        )
        assert type(classifier) is IBotForImageClassification
        assert set(report.pop("missing_keys")) == {"classifier.weight", "classifier.bias"}
        assert not any(report.values()), report
        assert_same_weights(classifier.ibot, model.ibot)
        assert classifier.classifier.weight.shape == (5, 32)

        again = AutoModelForPreTraining.from_pretrained(tmp_path)
        assert type(again) is IBotForPreTraining
        assert_same_weights(again, model)
        config = AutoConfig.from_pretrained(tmp_path)
        assert type(config) is IBotConfig and config.out_dim == 20

    def test_pretraining_goes_on_from_an_encoder(self, tmp_path):
        encoder = TestIBotModel().make_model()
        encoder.save_pretrained(tmp_path)
        model, report = IBotForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
        assert_same_weights(model.ibot, encoder)
        assert {key.split(".")[0] for key in report["missing_keys"]} == {"head"}

    def test_a_patch_projection_without_bottleneck_starts_as_in_torch(self):
        config = self.make_config(head_bottleneck_size=0, shared_head=False)
        projection = IBotForPreTraining(config).head.patch_projection
        bound = config.head_hidden_size**-0.5
        for tensor in (projection.weight, projection.bias):
            assert 0.8 * bound < tensor.abs().max() <= bound

    def test_clear_errors(self):
        model = self.make_model()
        inputs = self.training_inputs(model.config)
        with pytest.raises(ValueError, match=r"\[B, G, C, H, W\], got shape \(3, 3, 24, 24\)"):
            model(**inputs | {"pixel_values": inputs["pixel_values"][:, 0]})
        for name in ("target_cls", "target_patch"):
            with pytest.raises(ValueError, match="must be given together"):
                model(**inputs | {name: None})
        with pytest.raises(ValueError, match="bool_masked_pos has shape"):
            model(**inputs | {"bool_masked_pos": inputs["bool_masked_pos"][:, :, :4]})


class TestMLP:
    def test_gradients_are_those_of_the_plain_layers(self):
        mlp = TestIBotModel().make_model().layers[0].mlp.train()
        calls = []
        mlp.fc2.register_forward_hook(lambda *args: calls.append(1))
        tokens = torch.randn(2, 7, 32, requires_grad=True)
        parameters = (tokens, *mlp.parameters())
        plain = mlp.fc2(mlp.activation_fn(mlp.fc1(tokens)))
        expected = torch.autograd.grad(plain.square().sum(), parameters)
        calls.clear()
        output = mlp(tokens)
        assert torch.equal(output, plain)
        assert_same(torch.autograd.grad(output.square().sum(), parameters), expected, rtol=1e-5, atol=1e-6)
        # The backward pass computes the activation again, not the layer behind it.
        assert len(calls) == 1


class TestDropPath:
    def test_rate_grows_linearly_from_zero(self):
        model = IBotModel(tiny_config(num_hidden_layers=5, drop_path_rate=0.2))
        assert [layer.drop_path.rate for layer in model.layers] == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
        assert IBotModel(tiny_config(num_hidden_layers=1, drop_path_rate=0.2)).layers[0].drop_path.rate == 0.0

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_whole_samples_are_dropped_and_the_others_scaled(self, dtype):
        torch.manual_seed(0)
        branch = torch.randn(4000, 3, 5).to(dtype)
        out = DropPathResidual(0.25).train()(branch, lambda x: x) - branch
        kept = (out != 0).flatten(1)
        assert out.dtype == dtype and (kept.all(1) | ~kept.any(1)).all()
        survivors = kept.any(1)
        # 4000 draws: five standard deviations.
        assert survivors.float().mean().item() == pytest.approx(0.75, abs=5 * (0.75 * 0.25 / 4000) ** 0.5)
        expected = branch[survivors] * torch.tensor(1 / 0.75).to(dtype)
        torch.testing.assert_close(out[survivors], expected)

    def test_the_branches_of_a_block_are_dropped_independently(self):
        torch.manual_seed(0)
        model = IBotModel(tiny_config(num_hidden_layers=2, drop_path_rate=0.5)).train()
        output = model(torch.randn(1, 3, 24, 24).expand(400, -1, -1, -1), output_hidden_states=True)
        # Neither, one, the other or both branches of the last block: four different outputs of one image.
        distinct = torch.unique((output.hidden_states[2] - output.hidden_states[1])[:, 1, :4].round(decimals=4), dim=0)
        assert len(distinct) == 4
        assert (output.hidden_states[1] - output.hidden_states[1][:1]).abs().max() < 1e-5

    @pytest.mark.parametrize("rate", [0.01, 0.5, 0.999])
    @pytest.mark.parametrize("batch_size", [1, 6])
    def test_skipping_dropped_samples_equals_multiplying_them_by_zero(self, rate, batch_size):
        linear = torch.nn.Linear(5, 5)
        drop_path = DropPathResidual(rate).train()
        tokens = torch.randn(batch_size, 3, 5, requires_grad=True)

        def branch(x, output_attentions=False):
            return linear(x).tanh()

        results = []
        # Attention weights are recorded of every sample, so that none is skipped.
        for every_sample in (False, True):
            torch.manual_seed(1)
            output = drop_path(tokens, branch, output_attentions=every_sample)
            gradients = torch.autograd.grad(output.square().sum(), (tokens, *linear.parameters()))
            results.append((output, *gradients))
        assert_same(*results, rtol=1e-5, atol=1e-6)

    def test_a_block_that_every_sample_drops_has_gradients_of_zero(self):
        model = IBotModel(tiny_config(num_hidden_layers=2, drop_path_rate=0.9999)).train()
        model(torch.randn(1, 3, 24, 24)).last_hidden_state.square().sum().backward()
        assert all((parameter.grad == 0).all() for parameter in model.layers[1].parameters())
        assert model.layers[0].attention.q_proj.weight.grad.abs().sum() > 0

    @torch.no_grad()
    def test_recorded_attention_is_that_of_every_sample(self):
        model = TestIBotModel().make_model("eager", drop_path_rate=0.9).train()
        attentions = model(torch.randn(4, 3, 24, 24), output_attentions=True).attentions
        assert [weights.shape for weights in attentions] == [(4, 4, 10, 10)] * 3

    @torch.no_grad()
    def test_nothing_is_dropped_in_eval_mode(self):
        branch = torch.randn(8, 3, 5)
        assert torch.equal(DropPathResidual(0.9).eval()(torch.zeros(8, 3, 5), lambda x: branch), branch)


def test_outputs_hold_no_empty_tensors():
    """A guard of the checks above: they compare something for each class."""
    for checks in (TestIBotModel, TestIBotBackbone, TestIBotForImageClassification, TestIBotForPreTraining):
        model = checks().make_model()
        assert all(tensor.numel() > 0 for tensor in tensors_of(model(**checks().inputs(model.config))))
