"""The general model checks, and what is particular to each BEiT v2 class beside its golden numbers."""

import logging

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForPreTraining,
)

from hf_mim import Beitv2Backbone, Beitv2Config, Beitv2ForImageClassification, Beitv2ForPreTraining, Beitv2Model
from hf_mim.modeling.layers import TransformerLayer
from hf_mim.modeling.modeling_beitv2_pretraining import code_loss
from tests.testing.deployed_checks import BackboneChecks, ClassifierChecks
from tests.testing.model_checks import (
    ModelChecks,
    assert_same,
    assert_same_step,
    assert_same_weights,
    gradients_of,
    tensors_of,
)


def tiny_config(**overrides) -> Beitv2Config:
    """Weights far from zero, so that a wrong attention or a wrong position shows in every output."""
    settings = dict(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=24,
        patch_size=8,
        initializer_range=0.2,
        layer_scale_init_value=0.1,
        vocab_size=20,
        target_dim=18,
        early_layers=2,
    )
    return Beitv2Config(**settings | overrides)


def image_shape(config: Beitv2Config) -> tuple[int, int, int]:
    return (config.num_channels, *(config.patch_size * side for side in config.grid_size))


def masks(shape: tuple[int, int]) -> torch.Tensor:
    """About 40 % of the patches, another number in every row; in each one that is masked and one that is not."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.4
    mask[:, 0], mask[:, 1] = True, False
    return mask


PER_BLOCK = {"use_relative_position_bias": True, "use_shared_relative_position_bias": False}
ENCODER_VARIANTS = (
    {},
    {"use_absolute_position_embeddings": True, "use_relative_position_bias": True},
    {"use_absolute_position_embeddings": True, "use_shared_relative_position_bias": False},
    PER_BLOCK | {"layer_scale_init_value": 0, "qkv_bias": False},
    {"image_size": [16, 40], "num_channels": 1},
)
MEAN_POOLING = {"use_mean_pooling": True}
HEAD_VARIANTS = (
    {"head_layers": 0},
    {"head_layers": 1, "shared_lm_head": False},
    {"early_layers": 3, "head_layers": 3},
    PER_BLOCK | {"head_layers": 1, "early_layers": 1},
)


class Beitv2Checks(ModelChecks):
    variants = ENCODER_VARIANTS

    def make_config(self, **overrides):
        return tiny_config(**overrides)

    def inputs(self, config):
        generator = torch.Generator().manual_seed(0)
        return {"pixel_values": torch.randn(3, *image_shape(config), generator=generator)}


class TestBeitv2Model(Beitv2Checks):
    model_class = Beitv2Model

    def test_compile(self):
        # The pre-training model compiles all blocks.
        self.check_compiled("aot_eager", 1e-5, num_hidden_layers=1, early_layers=1)

    def inputs(self, config):
        rows, columns = config.grid_size
        return super().inputs(config) | {"bool_masked_pos": masks((3, rows * columns))}

    def test_export(self):
        self.check_export()

    @torch.no_grad()
    def test_pooling(self):
        model = self.make_model()
        output = model(**self.inputs(model.config))
        assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])
        model = self.make_model(**MEAN_POOLING)
        output = model(**self.inputs(model.config), output_hidden_states=True)
        assert torch.equal(output.last_hidden_state, output.hidden_states[-1])
        pooled = model.pooler.layernorm(output.last_hidden_state[:, 1:].mean(1))
        assert_same(output.pooler_output, pooled, atol=1e-6)

    @torch.no_grad()
    @pytest.mark.parametrize("option", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
    def test_dropout_acts_in_training_only(self, option):
        model = self.make_model(**{option: 0.5})
        inputs = self.inputs(model.config)
        assert_same(model(**inputs), self.make_model()(**inputs))
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

    @torch.no_grad()
    @pytest.mark.parametrize("overrides", [{}, MEAN_POOLING])
    def test_wanted_tokens_are_those_of_the_full_computation(self, overrides):
        model = self.make_model(**overrides)
        inputs = self.inputs(model.config)
        indices = torch.tensor([0, 10, 20, 3, 29, 12])
        full = model(**inputs)
        output = model(**inputs, token_indices=indices, patch_aggregation=True)
        assert_same(output.last_hidden_state, full.last_hidden_state.flatten(0, 1)[indices], atol=1e-5)
        assert output.pooler_output is None
        states = model(**inputs, output_hidden_states=True).hidden_states
        assert_same(output.aggregation_hidden_states[:, :1], states[3][:, :1], atol=1e-5)
        assert_same(output.aggregation_hidden_states[:, 1:], states[2][:, 1:])
        assert "aggregation_hidden_states" not in full and "position_bias" not in full

    def test_under_autocast(self):
        """The bias comes from a float32 table, the queries are in half precision."""
        for attention in ("eager", "sdpa"):
            model = self.make_model(attention, use_relative_position_bias=True).train()
            inputs = self.inputs(model.config)
            expected = model(**inputs).last_hidden_state
            with torch.autocast("cpu", torch.bfloat16):
                output = model(**inputs).last_hidden_state
            assert (output - expected).norm() < 0.05 * expected.norm()
            output.float().square().sum().backward()
            assert model.shared_position_bias.relative_position_bias_table.grad.abs().sum() > 0

    def test_flash_and_flex_attention_are_refused(self):
        for name in ("flash_attention_2", "flex_attention"):
            with pytest.raises((ValueError, ImportError)):
                Beitv2Model(tiny_config(attn_implementation=name))

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
        with pytest.raises(ValueError, match="mask token"):
            Beitv2Model(tiny_config(), use_mask_token=False)(torch.zeros(1, 3, 24, 24), torch.ones(1, 9) > 0)


class TestBeitv2Backbone(BackboneChecks, Beitv2Checks):
    model_class = Beitv2Backbone
    one_block = {"num_hidden_layers": 1, "early_layers": 1}
    segmentation_tolerance = 1e-6


class TestBeitv2ForImageClassification(ClassifierChecks, Beitv2Checks):
    model_class = Beitv2ForImageClassification
    one_block = {"num_hidden_layers": 1, "early_layers": 1}
    variants = (*ENCODER_VARIANTS, MEAN_POOLING, MEAN_POOLING | PER_BLOCK, {"num_labels": 0})

    @torch.no_grad()
    def test_the_head_takes_the_pooled_token(self):
        for overrides in ({}, MEAN_POOLING):
            model = self.make_model(**overrides)
            inputs = self.inputs(model.config)
            pooled = model.beitv2(**inputs).pooler_output
            assert_same(model(**inputs).logits, model.classifier(pooled), atol=1e-6)

    def check_new_head(self, model):
        """The head starts a thousand times smaller than other layers."""
        assert 0 < model.classifier.weight.abs().max() < 1e-3


class TestBeitv2ForPreTraining(Beitv2Checks):
    model_class = Beitv2ForPreTraining
    variants = ({}, {"image_size": [16, 40], "use_absolute_position_embeddings": True}, *HEAD_VARIANTS)

    def inputs(self, config):
        rows, columns = config.grid_size
        return super().inputs(config) | {"bool_masked_pos": masks((3, rows * columns))}

    def training_inputs(self, config):
        inputs = self.inputs(config)
        generator = torch.Generator().manual_seed(3)
        labels = torch.randint(0, config.vocab_size, inputs["bool_masked_pos"].shape, generator=generator)
        return inputs | {"labels": labels}

    @pytest.mark.parametrize("overrides", [{}, *HEAD_VARIANTS])
    def test_no_parameter_is_left_out_when_nothing_is_masked(self, overrides):
        """Distributed training waits forever for a parameter without a gradient."""
        model = self.make_model(**overrides).train()
        inputs = self.training_inputs(model.config)
        inputs["bool_masked_pos"].zero_()
        output = model(**inputs)
        assert output.loss == 0 and output.accuracy_mim == 0
        _, gradients = gradients_of(model, inputs)
        assert all(gradient is not None for gradient in gradients.values())

    def written_out(self, model, pixel_values, bool_masked_pos, labels):
        """Loss, logits and accuracies with every layer run on every token, as in the original's forward pass."""
        config, encoder = model.config, model.beitv2
        grid = tuple(side // config.patch_size for side in pixel_values.shape[2:])
        bias = None if encoder.shared_position_bias is None else encoder.shared_position_bias(grid)
        states = encoder.embeddings(pixel_values, bool_masked_pos)
        for i, layer in enumerate(encoder.layers):
            states = layer(states, bias, grid=grid)
            if i + 1 == config.early_layers:
                early = states[:, 1:]
        branches = [(states, encoder.layernorm, model.lm_head)]
        if config.head_layers:
            states = torch.cat((states[:, :1], early), dim=1)
            for layer in model.head_layers:
                states = layer(states, bias, grid=grid)
            norm = encoder.layernorm if config.shared_lm_head else model.head_layernorm
            branches.append((states, norm, model.lm_head if config.shared_lm_head else model.head_lm_head))
        logits = [lm_head(norm(states)[:, 1:][bool_masked_pos]) for states, norm, lm_head in branches]
        codes = labels[bool_masked_pos]
        losses = [cross_entropy(each, codes) for each in logits]
        accuracies = [(each.argmax(-1) == codes).float().mean() for each in logits]
        return [sum(losses), *losses, *accuracies, *logits]

    def test_against_the_forward_pass_written_out(self):
        for overrides in self.variants:
            model = self.make_model(**overrides)
            inputs = self.training_inputs(model.config)
            expected = self.written_out(model, **inputs)
            assert_same(model(**inputs), expected, rtol=1e-5, atol=1e-5)
            weights = list(model.parameters())
            expected = torch.autograd.grad(expected[0], weights)
            assert_same(torch.autograd.grad(model(**inputs).loss, weights), expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("overrides", [{}, *HEAD_VARIANTS])
    def test_wanted_tokens_alone_drop_the_same_samples(self, overrides):
        """With a recorded last state all tokens go through the last block."""
        model = self.make_model(drop_path_rate=0.5, **overrides).train()
        inputs = self.training_inputs(model.config)
        everything = gradients_of(model, inputs | {"output_hidden_states": True})
        assert_same_step(gradients_of(model, inputs), everything, 1e-5)

    @torch.no_grad()
    def test_only_wanted_tokens_pass_the_last_layers(self):
        model = self.make_model().train()
        inputs = self.training_inputs(model.config)
        masked, rows = int(inputs["bool_masked_pos"].sum()), {}
        modules = {
            "last": model.beitv2.layers[-1].mlp,
            "last of head": model.head_layers[-1].mlp,
            "first of head": model.head_layers[0].mlp,
            "lm_head": model.lm_head,
        }
        for name, module in modules.items():
            module.register_forward_pre_hook(lambda m, args, name=name: rows.update({name: args[0][..., 0].numel()}))
        model(**inputs)
        assert rows == {"last": 3 + masked, "last of head": masked, "first of head": 30, "lm_head": masked}

    @torch.no_grad()
    def test_given_mask_indices_change_nothing(self):
        model = self.make_model()
        inputs = self.training_inputs(model.config)
        indices = inputs["bool_masked_pos"].flatten().nonzero().squeeze(1)
        assert_same(model(**inputs, mask_indices=indices), model(**inputs))

    @torch.no_grad()
    def test_without_a_mask_nothing_is_predicted(self):
        model = self.make_model()
        output = model(self.inputs(model.config)["pixel_values"])
        assert output.logits.shape == output.logits_cls.shape == (0, 20) and output.loss is None

    @torch.no_grad()
    def test_encoder_backbone_and_classifier_load_from_a_pretraining_checkpoint(self, tmp_path, caplog):
        model = self.make_model(shared_lm_head=False)
        model.save_pretrained(tmp_path)
        image = {"pixel_values": self.inputs(model.config)["pixel_values"]}
        features = model.beitv2(**image)
        encoder, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert type(encoder) is Beitv2Model and not any(report.values()), report
        assert_same_weights(encoder, model.beitv2)
        assert_same(encoder.eval()(**image), features)

        without_mask_token = {k: v for k, v in encoder.state_dict().items() if k != "embeddings.mask_token"}
        backbone, report = Beitv2Backbone.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values()), report
        assert_same(list(backbone.beitv2.state_dict().values()), list(without_mask_token.values()))
        classifier, report = AutoModelForImageClassification.from_pretrained(
            tmp_path, num_labels=5, output_loading_info=True
        )
        assert type(classifier) is Beitv2ForImageClassification
        assert set(report.pop("missing_keys")) == {"classifier.weight", "classifier.bias"}
        assert not any(report.values()), report
        assert_same(list(classifier.beitv2.state_dict().values()), list(without_mask_token.values()))

        for auto_class in (AutoModelForPreTraining, AutoModelForMaskedImageModeling):
            again = auto_class.from_pretrained(tmp_path)
            assert type(again) is Beitv2ForPreTraining
            assert_same_weights(again, model)
        config = AutoConfig.from_pretrained(tmp_path)
        assert type(config) is Beitv2Config and config.vocab_size == 20

    def test_pretraining_goes_on_from_an_encoder(self, tmp_path):
        encoder = TestBeitv2Model().make_model()
        encoder.save_pretrained(tmp_path)
        model, report = Beitv2ForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
        assert_same_weights(model.beitv2, encoder)
        assert {key.split(".")[0] for key in report["missing_keys"]} == {"lm_head", "head_layers"}

    def test_clear_errors(self):
        model = self.make_model()
        inputs = self.training_inputs(model.config)
        with pytest.raises(ValueError, match="labels need bool_masked_pos"):
            model(inputs["pixel_values"], labels=inputs["labels"])
        with pytest.raises(ValueError, match=r"labels have shape \(3, 4\).*\(3, 9\)"):
            model(**inputs | {"labels": inputs["labels"][:, :4]})
        with pytest.raises(ValueError, match="bool_masked_pos has shape"):
            model(**inputs | {"bool_masked_pos": inputs["bool_masked_pos"][:, :4]})
        with pytest.raises(ValueError, match=r"early_layers \(4\) must be at most num_hidden_layers \(3\)"):
            Beitv2ForPreTraining(tiny_config(early_layers=4))
        Beitv2ForPreTraining(tiny_config(early_layers=4, head_layers=0))
        with pytest.raises(ValueError, match="use_mean_pooling is for fine-tuning"):
            Beitv2ForPreTraining(tiny_config(use_mean_pooling=True))


class TestFeatureRegression:
    """A teacher's features in place of codes; the numbers of the original are in test_dbot_golden.py."""

    @staticmethod
    def model_and_inputs(**overrides):
        checks = TestBeitv2ForPreTraining()
        model = checks.make_model(**overrides).train()
        features = torch.randn(3, 9, 18, generator=torch.Generator().manual_seed(5))
        return model, checks.inputs(model.config) | {"labels": features}

    @pytest.mark.parametrize("kind", ["negcosine", "l2", "l1", "smooth_l1"])
    @pytest.mark.parametrize("masked", [True, False])
    def test_every_parameter_gets_a_gradient(self, kind, masked):
        model, inputs = self.model_and_inputs(regression_loss=kind)
        inputs["bool_masked_pos"] &= masked
        loss, gradients = gradients_of(model, inputs)
        assert (loss > 0) == masked
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())

    @torch.no_grad()
    def test_loss_of_each_branch(self):
        model, inputs = self.model_and_inputs(regression_loss="negcosine")
        output = model(**inputs)
        features = inputs["labels"][inputs["bool_masked_pos"]]
        for loss, logits in ((output.loss_mim, output.logits), (output.loss_mim_cls, output.logits_cls)):
            cosine = (logits * features).sum(1) / logits.norm(dim=1) / features.norm(dim=1)
            torch.testing.assert_close(loss, 1 - cosine.mean())
        assert output.loss == output.loss_mim + output.loss_mim_cls
        assert output.accuracy_mim is None and output.accuracy_mim_cls is None
        # Features of patches that the student sees do not matter.
        inputs["labels"][~inputs["bool_masked_pos"]] = 100.0
        assert model(**inputs).loss == output.loss

    def test_features_need_the_width_of_the_head(self):
        model, inputs = self.model_and_inputs(regression_loss="l2")
        with pytest.raises(ValueError, match=r"labels have shape \(3, 9\), expected \(3, 9, 18\)"):
            model(**inputs | {"labels": inputs["labels"][..., 0]})
        model, inputs = self.model_and_inputs()
        with pytest.raises(ValueError, match=r"labels have shape \(3, 9, 18\), expected \(3, 9\)"):
            model(**inputs)


class TestFineTuningFromPreTraining:
    """The lines that the classifier's docstring recommends, against the original loader's steps (SPEC 4.2)."""

    @pytest.fixture()
    def folder(self, tmp_path):
        TestBeitv2ForPreTraining().make_model(use_absolute_position_embeddings=True).save_pretrained(tmp_path)
        return tmp_path

    @torch.no_grad()
    def test_mean_pooling_starts_with_a_new_norm(self, folder, caplog):
        with caplog.at_level(logging.WARNING):
            model, report = Beitv2ForImageClassification.from_pretrained(
                folder, use_mean_pooling=True, num_labels=5, output_loading_info=True
            )
        new = {"beitv2.pooler.layernorm.weight", "beitv2.pooler.layernorm.bias"}
        assert set(report.pop("missing_keys")) == new | {"classifier.weight", "classifier.bias"}
        assert not any(report.values()), report
        assert (model.beitv2.pooler.layernorm.weight == 1).all() and (model.beitv2.pooler.layernorm.bias == 0).all()
        pretrained = Beitv2ForPreTraining.from_pretrained(folder).state_dict()
        for name, tensor in model.beitv2.state_dict().items():
            if not name.startswith("pooler"):
                assert torch.equal(tensor, pretrained[f"beitv2.{name}"]), name

    @torch.no_grad()
    def test_per_block_tables_start_equal_and_then_differ(self, folder):
        model = Beitv2ForImageClassification.from_pretrained(folder, num_labels=5).eval()
        images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
        expected, shared = model(images).logits, model.beitv2.shared_position_bias.relative_position_bias_table
        model.unshare_relative_position_bias()
        assert_same(model(images).logits, expected, atol=1e-6)
        assert model.config.use_relative_position_bias and not model.config.use_shared_relative_position_bias
        tables = [layer.relative_position_bias.relative_position_bias_table for layer in model.beitv2.layers]
        assert all(torch.equal(table, shared) for table in tables)
        tables[0].add_(1.0)
        assert torch.equal(tables[1], shared)
        model.save_pretrained(folder / "unshared")
        loaded, report = Beitv2ForImageClassification.from_pretrained(folder / "unshared", output_loading_info=True)
        assert not any(report.values()), report
        assert_same(loaded.eval()(images).logits, model(images).logits)
        with pytest.raises(ValueError, match="no shared table"):
            model.unshare_relative_position_bias()

    @torch.no_grad()
    def test_own_and_shared_tables_add_up(self):
        for checks in (TestBeitv2Model(), TestBeitv2ForPreTraining()):
            model = checks.make_model(use_relative_position_bias=True)
            inputs = checks.training_inputs(model.config)
            expected = model(**inputs)
            model.unshare_relative_position_bias()
            assert_same(model(**inputs), expected, rtol=1e-5, atol=1e-5)

    @torch.no_grad()
    def test_an_encoder_does_not_take_the_table_from_its_head_branch(self, folder):
        model = Beitv2ForPreTraining.from_pretrained(folder).eval()
        inputs = TestBeitv2ForPreTraining().training_inputs(model.config)
        expected = model(**inputs)
        with pytest.raises(ValueError, match="call this method on the whole model"):
            model.beitv2.unshare_relative_position_bias()
        assert_same(model(**inputs), expected)
        model.unshare_relative_position_bias()
        assert_same(model(**inputs), expected, atol=1e-5)
        encoder = Beitv2Model.from_pretrained(folder)
        encoder.unshare_relative_position_bias()
        assert encoder.shared_position_bias is None
        # Without a head branch there is nobody else.
        plain = TestBeitv2ForPreTraining().make_model(head_layers=0)
        plain.beitv2.unshare_relative_position_bias()
        assert plain.beitv2.shared_position_bias is None

    @torch.no_grad()
    @pytest.mark.parametrize("overrides", [{}, PER_BLOCK])
    @pytest.mark.parametrize("size", [40, [16, 40]])
    def test_another_size_for_good(self, folder, overrides, size):
        """Relative tables as on the fly; absolute ones to a size instead of by a factor."""
        model = Beitv2ForImageClassification.from_pretrained(folder, num_labels=5).eval()
        if overrides:
            model.unshare_relative_position_bias()
        height, width = (size, size) if isinstance(size, int) else size
        images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
        embeddings = model.beitv2.embeddings
        table = embeddings.position_embeddings.clone()
        on_the_fly = model(images).logits
        model.resize_position_tables(size)
        assert model.config.image_size == size and model.config.grid_size == (height // 8, width // 8)
        patches = table[:, 1:].unflatten(1, (3, 3)).permute(0, 3, 1, 2)
        patches = torch.nn.functional.interpolate(patches, size=(height // 8, width // 8), mode="bicubic")
        expected = torch.cat((table[:, :1], patches.flatten(2).transpose(1, 2)), dim=1)
        torch.testing.assert_close(embeddings.position_embeddings, expected)
        # The same relative tables: with the absolute table put to zero, both ways agree.
        reference = Beitv2ForImageClassification.from_pretrained(folder, num_labels=5).eval()
        reference.classifier = model.classifier
        for each in (model, reference):
            each.beitv2.embeddings.position_embeddings.zero_()
        assert_same(model(images).logits, reference(images).logits, atol=1e-6)
        assert not torch.allclose(on_the_fly, model(images).logits)
        model.save_pretrained(folder / "resized")
        loaded = Beitv2ForImageClassification.from_pretrained(folder / "resized").eval()
        assert_same(loaded(images).logits, model(images).logits)

    def test_sizes_that_do_not_fit(self, folder):
        model = Beitv2ForImageClassification.from_pretrained(folder, num_labels=5)
        for size in (20, [24, 4], [24, 24, 24]):
            with pytest.raises(ValueError, match="must be a multiple of patch_size"):
                model.resize_position_tables(size)
        assert model.config.image_size == 24


class TestOtherSizes:
    @torch.no_grad()
    @pytest.mark.parametrize("overrides", ENCODER_VARIANTS)
    def test_every_size_works_without_a_flag(self, overrides):
        model = TestBeitv2Model().make_model(**overrides)
        for height, width in ((8, 8), (24, 24), (32, 16), (40, 64)):
            images = torch.randn(2, model.config.num_channels, height, width)
            output = model(images).last_hidden_state
            assert output.shape == (2, 1 + height * width // 64, 32) and output.isfinite().all()

    @torch.no_grad()
    def test_as_many_patches_in_another_shape_are_another_grid(self):
        """The original takes the table of 2 x 8 patches for 4 x 4 ones as it is (SPEC quirk 19)."""
        model = TestBeitv2Model().make_model(image_size=32, **ENCODER_VARIANTS[2])
        square = model.embeddings.position_embeddings
        model.embeddings.patch_embeddings.projection.weight.zero_()
        model.embeddings.patch_embeddings.projection.bias.zero_()
        wide = model.embeddings(torch.zeros(1, 3, 16, 64))
        assert wide.shape == square.shape and not torch.allclose(wide[:, 1:], square[:, 1:], atol=1e-3)

    def test_gradients_reach_the_tables(self):
        model = TestBeitv2Model().make_model(**ENCODER_VARIANTS[1]).train()
        _, gradients = gradients_of(model, {"pixel_values": torch.randn(2, 3, 40, 16)})
        for name in ("shared_position_bias.relative_position_bias_table", "embeddings.position_embeddings"):
            assert gradients[name].abs().sum() > 0

    @pytest.mark.slow
    @torch.no_grad()
    def test_compiled(self):
        model = TestBeitv2Model().make_model(**ENCODER_VARIANTS[1])
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for shape in ((2, 3, 24, 24), (2, 3, 40, 16), (2, 3, 32, 32), (1, 3, 24, 24)):
            images = torch.randn(shape)
            assert_same(compiled(images), model(images), rtol=1e-5, atol=1e-5)


class TestDropPath:
    def test_head_blocks_go_on_where_early_blocks_stop(self):
        config = tiny_config(num_hidden_layers=5, early_layers=4, head_layers=3, drop_path_rate=0.6)
        model = Beitv2ForPreTraining(config)
        assert [layer.drop_path.rate for layer in model.beitv2.layers] == pytest.approx([0, 0.15, 0.3, 0.45, 0.6])
        assert [layer.drop_path.rate for layer in model.head_layers] == pytest.approx([0.4, 0.5, 0.6])


def test_code_loss_is_a_mean_in_single_precision():
    logits = torch.randn(7, 5, dtype=torch.bfloat16)
    codes = torch.arange(7) % 5
    loss, accuracy = code_loss(logits, codes)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy(logits.float(), codes))
    assert accuracy.item() == pytest.approx((logits.argmax(-1) == codes).float().mean().item())


def test_every_block_is_recorded_and_sharded_by_itself():
    model = TestBeitv2ForPreTraining().make_model()
    blocks = {type(module).__name__ for module in model.modules() if isinstance(module, TransformerLayer)}
    assert blocks == set(model._no_split_modules)


def test_outputs_hold_no_empty_tensors():
    """A guard of the checks above: they compare something for each class."""
    for checks in (TestBeitv2Model, TestBeitv2Backbone, TestBeitv2ForImageClassification, TestBeitv2ForPreTraining):
        model = checks().make_model()
        assert all(tensor.numel() > 0 for tensor in tensors_of(model(**checks().inputs(model.config))))
