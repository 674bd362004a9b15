"""The general model checks, and what is particular to each dBOT class beside its golden numbers."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)

from hf_mim import DBotBackbone, DBotConfig, DBotForImageClassification, DBotForPreTraining, DBotModel
from hf_mim.modeling.modeling_dbot import sincos_positions
from hf_mim.modeling.modeling_dbot_pretraining import normalize_targets
from tests.testing.dbot_models import tiny_config
from tests.testing.deployed_checks import BackboneChecks, ClassifierChecks
from tests.testing.model_checks import (
    ModelChecks,
    assert_same,
    assert_same_step,
    assert_same_weights,
    gradients_of,
    tensors_of,
)


def image_shape(config: DBotConfig) -> tuple[int, int, int]:
    return (config.num_channels, *(config.patch_size * side for side in config.grid_size))


def noise_for(config: DBotConfig, batch_size: int = 3) -> torch.Tensor:
    rows, columns = config.grid_size
    return torch.rand(batch_size, rows * columns, generator=torch.Generator().manual_seed(2))


ENCODER_VARIANTS = (
    {},
    {"trainable_position_embeddings": True, "layer_scale_init_value": 0.1},
    {"use_mean_pooling": True},
    {"qkv_bias": False, "image_size": [16, 40], "num_channels": 1},
    {"num_channels": 4, "num_hidden_layers": 2, "image_size": [40, 16], "trainable_position_embeddings": True},
)
PRETRAINING_VARIANTS = (
    *(overrides for overrides in ENCODER_VARIANTS if "use_mean_pooling" not in overrides),
    {"norm_targets": False, "decoder_num_hidden_layers": 1, "decoder_intermediate_size": 20, "target_dim": 5},
)


class DBotChecks(ModelChecks):
    variants = ENCODER_VARIANTS

    def make_config(self, **overrides):
        return tiny_config(**overrides)

    def inputs(self, config):
        generator = torch.Generator().manual_seed(0)
        return {"pixel_values": torch.randn(3, *image_shape(config), generator=generator)}


class TestDBotModel(DBotChecks):
    model_class = DBotModel

    def training_inputs(self, config):
        return self.inputs(config) | {"noise": noise_for(config)}

    def test_export(self):
        self.check_export()

    @torch.no_grad()
    def test_pooler_output(self):
        model = self.make_model()
        output = model(**self.inputs(model.config))
        assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])
        model = self.make_model(use_mean_pooling=True)
        output = model(**self.inputs(model.config))
        patches = output.last_hidden_state[:, 1:]
        assert_same(output.pooler_output, model.pooler.layernorm(patches.mean(dim=1)))

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
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_noise_that_keeps_everything_only_sorts(self, attention):
        model = self.make_model(attention, mask_ratio=0)
        inputs = self.inputs(model.config)
        plain = model(**inputs)
        output = model(**inputs, noise=noise_for(model.config))
        assert not output.mask.any() and plain.mask is None and plain.ids_restore is None
        restored = output.last_hidden_state[:, 1:].take_along_dim(output.ids_restore[..., None], dim=1)
        assert_same(output.pooler_output, plain.pooler_output, atol=1e-5)
        assert_same(restored, plain.last_hidden_state[:, 1:], atol=1e-5)
        in_order = torch.arange(9.0).expand(3, -1)
        assert_same(model(**inputs, noise=in_order).last_hidden_state, plain.last_hidden_state)
        nothing = torch.zeros(3, 9, dtype=torch.bool)
        assert_same(model(**inputs, bool_masked_pos=nothing).last_hidden_state, plain.last_hidden_state)

    @torch.no_grad()
    def test_removed_patches_are_not_seen(self):
        model = self.make_model()
        images, noise = self.inputs(model.config)["pixel_values"], noise_for(model.config)
        output = model(images, noise)
        pixels = output.mask.view(3, 1, 3, 3).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
        assert output.mask.sum(dim=1).tolist() == [6, 6, 6]
        assert_same(model(images.masked_fill(pixels, 7.0), noise), output)
        changed = model(images.masked_fill(~pixels, 7.0), noise)
        assert (changed.pooler_output - output.pooler_output).abs().min(dim=1).values.max() > 0

    @torch.no_grad()
    def test_a_mask_instead_of_noise(self):
        model = self.make_model(mask_ratio=0.1)
        images, noise = self.inputs(model.config)["pixel_values"], noise_for(model.config)
        mask = noise.argsort(dim=1) % 3 == 1
        output = model(images, bool_masked_pos=mask)
        assert torch.equal(output.mask, mask)
        ids_keep = (~mask).nonzero()[:, 1].view(3, 6)
        assert torch.equal(output.ids_restore.argsort(dim=1)[:, :6], ids_keep)
        ordered = torch.where(mask, 9.0, torch.arange(9.0))
        model.config.mask_ratio = 1 / 3
        assert_same(model(images, ordered).last_hidden_state, output.last_hidden_state)

    @torch.no_grad()
    @pytest.mark.parametrize("size", [(24, 24), (8, 72), (56, 16)])
    def test_fixed_positions_fit_every_size(self, size):
        """Whatever `image_size` is, and when the model was loaded in half of its precision or on the meta device."""
        model, other = self.make_model(), self.make_model(image_size=list(size))
        images = torch.randn(2, 3, *size)
        assert_same(model(images), other(images))
        positions = model.embeddings.positions((size[0] // 8, size[1] // 8))
        assert_same(positions, sincos_positions(32, (size[0] // 8, size[1] // 8)))
        assert "position_embeddings" not in "".join([*model.state_dict(), *dict(model.named_buffers())])

    @torch.no_grad()
    def test_a_trainable_table_starts_as_the_fixed_one(self, tmp_path):
        model = self.make_model()
        model.save_pretrained(tmp_path)
        loaded, report = DBotModel.from_pretrained(
            tmp_path, trainable_position_embeddings=True, output_loading_info=True
        )
        assert not any(report.values()), report
        assert loaded.embeddings.position_embeddings.requires_grad
        inputs = self.inputs(model.config)
        assert_same(loaded.eval()(**inputs), model(**inputs))

    def test_resizing_a_trainable_table(self):
        model = self.make_model(trainable_position_embeddings=True)
        images = torch.randn(2, 3, 40, 16)
        expected = model(images).last_hidden_state
        expected.sum().backward()
        assert model.embeddings.position_embeddings.grad.abs().sum() > 0
        model.resize_position_tables((40, 16))
        assert model.config.image_size == (40, 16) and model.embeddings.position_embeddings.shape == (1, 11, 32)
        assert_same(model(images).last_hidden_state, expected, atol=1e-6)
        fixed = self.make_model()
        fixed.resize_position_tables(40)
        assert fixed.config.grid_size == (5, 5)
        for size in (20, (16, 20), (16, 16, 16)):
            with pytest.raises(ValueError, match="must be a multiple of patch_size"):
                fixed.resize_position_tables(size)

    @torch.no_grad()
    def test_teaching(self):
        model = self.make_model()
        images = self.inputs(model.config)["pixel_values"]
        output = model(images, output_hidden_states=True)
        assert_same(model.teach(images), output.hidden_states[-1])
        assert_same(model.teach(images, layernorm=True), output.last_hidden_state)
        without_blocks = self.make_model(num_hidden_layers=0)
        assert_same(without_blocks.teach(images), without_blocks.embeddings(images))

    def test_clear_errors(self):
        model = self.make_model()
        images = torch.zeros(2, 3, 24, 24)
        with pytest.raises(ValueError, match="have 4 channels, the model was built for 3"):
            model(torch.zeros(1, 4, 24, 24))
        with pytest.raises(ValueError, match="24x20 is not a multiple of the patch size 8"):
            model(torch.zeros(1, 3, 24, 20))
        with pytest.raises(ValueError, match=r"noise has shape \(2, 16\).*\(2, 9\)"):
            model(images, torch.zeros(2, 16))
        with pytest.raises(ValueError, match=r"bool_masked_pos has shape \(2, 3, 3\).*\(2, 9\)"):
            model(images, bool_masked_pos=torch.zeros(2, 3, 3, dtype=torch.bool))
        uneven = torch.zeros(2, 9, dtype=torch.bool)
        uneven[1, :2] = True
        with pytest.raises(ValueError, match="the same number of patches in every image, got 0 to 2"):
            model(images, bool_masked_pos=uneven)
        with pytest.raises(ValueError, match="give one of them"):
            model(images, torch.zeros(2, 9), bool_masked_pos=uneven)


class TestDBotBackbone(BackboneChecks, DBotChecks):
    model_class = DBotBackbone
    # Feature maps hold patches, so that the norm of the mean patch has no part in them.
    variants = tuple(overrides for overrides in ENCODER_VARIANTS if "use_mean_pooling" not in overrides)

    def test_without_blocks(self):
        with pytest.raises(ValueError, match="a backbone needs blocks"):
            DBotBackbone(tiny_config(num_hidden_layers=0))


class TestDBotForImageClassification(ClassifierChecks, DBotChecks):
    model_class = DBotForImageClassification
    variants = (*ENCODER_VARIANTS, {"num_labels": 0})

    def make_model(self, attention="sdpa", **overrides):
        model = super().make_model(attention, **overrides)
        if model.num_labels:
            # A new classifier's logits are so small that rounding would be most of them.
            torch.nn.init.normal_(model.classifier.weight)
        return model

    @torch.no_grad()
    def test_the_head_takes_the_pooled_features(self):
        for overrides in ({}, {"use_mean_pooling": True}):
            model = self.make_model(**overrides)
            inputs = self.inputs(model.config)
            labels = torch.tensor([1, 3, 0])
            output = model(**inputs, labels=labels)
            assert_same(output.logits, model.classifier(model.dbot(**inputs).pooler_output))
            torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))

    def test_a_new_classifier_is_small(self):
        torch.manual_seed(0)
        classifier = DBotForImageClassification(tiny_config(num_labels=500)).classifier
        assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not classifier.bias.any()


class TestDBotForPreTraining(DBotChecks):
    model_class = DBotForPreTraining
    variants = PRETRAINING_VARIANTS

    def inputs(self, config):
        return super().inputs(config) | {"noise": noise_for(config)}

    def training_inputs(self, config):
        rows, columns = config.grid_size
        generator = torch.Generator().manual_seed(3)
        labels = torch.randn(3, 1 + rows * columns, config.target_dim, generator=generator)
        return self.inputs(config) | {"labels": labels}

    def test_loss_on_the_rows_that_carry_it_equals_the_full_computation(self):
        """Value and gradients, against a decoder that predicts every token and a loss that is masked afterwards."""
        for overrides in self.variants:
            model = self.make_model(**overrides)
            inputs = self.training_inputs(model.config)

            def full(pixel_values, noise, labels, model=model):
                outputs = model.dbot(pixel_values, noise)
                prediction = model.decoder(outputs.last_hidden_state, outputs.ids_restore, model.config.grid_size)
                targets = normalize_targets(labels) if model.config.norm_targets else labels
                difference = (prediction - targets).abs()
                errors = torch.where(difference < 2, difference.square() / 4, difference - 1).mean(dim=2)
                weights = torch.nn.functional.pad(outputs.mask.float(), (1, 0), value=1.0)
                return (errors * weights).sum() / weights.sum()

            model.zero_grad()
            expected = full(**inputs)
            expected.backward()
            gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
            assert_same_step(gradients_of(model, inputs), (expected.detach(), gradients), 1e-6)

    @torch.no_grad()
    def test_parts_of_the_loss(self):
        model = self.make_model()
        inputs = self.training_inputs(model.config)
        output = model(**inputs)
        assert output.prediction.shape == (3, 7, 20)
        torch.testing.assert_close(output.loss, (output.loss_cls + 6 * output.loss_patch) / 7)
        # Neither the order of the removed patches nor the features of the kept ones matter.
        inputs["noise"] = torch.where(output.mask, 2 - inputs["noise"], inputs["noise"])
        inputs["labels"][:, 1:][~output.mask] = 100.0
        assert_same([model(**inputs).loss, model(**inputs).prediction], [output.loss, output.prediction])

    @torch.no_grad()
    def test_labels_without_cls_tokens(self):
        model = self.make_model()
        inputs = self.training_inputs(model.config)
        expected = model(**inputs)
        output = model(**inputs | {"labels": inputs["labels"][:, 1:]})
        assert output.loss == output.loss_patch == expected.loss_patch and output.loss_cls is None
        assert torch.equal(output.prediction, expected.prediction)

    @torch.no_grad()
    def test_all_patches_kept(self):
        model = self.make_model(mask_ratio=0)
        output = model(**self.training_inputs(model.config))
        assert output.prediction.shape == (3, 1, 20) and not output.mask.any()
        assert output.loss == output.loss_cls and output.loss_patch == 0

    @torch.no_grad()
    def test_a_mask_instead_of_noise(self):
        model = self.make_model()
        inputs = self.training_inputs(model.config)
        output = model(**inputs)
        del inputs["noise"]
        again = model(**inputs, bool_masked_pos=output.mask)
        assert torch.equal(again.mask, output.mask)
        # The kept patches stand in another order, which changes the rounding only.
        assert_same([again.loss, again.prediction], [output.loss, output.prediction], atol=1e-5)

    @torch.no_grad()
    def test_noise_is_drawn_when_there_is_none(self):
        model = self.make_model()
        inputs = self.training_inputs(model.config)
        del inputs["noise"]
        masks = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            masks.append(model(**inputs).mask)
            assert masks[-1].sum(dim=1).tolist() == [6, 6, 6]
        assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
        torch.manual_seed(0)
        assert torch.equal(model(**inputs, noise=torch.rand(3, 9)).mask, masks[0])

    @torch.no_grad()
    def test_rectangular_images_of_another_size(self):
        model, other = self.make_model(), self.make_model(image_size=[40, 16])
        inputs = self.training_inputs(other.config)
        assert_same(model(**inputs), other(**inputs))

    def test_stochastic_depth_of_the_decoder(self):
        settings = dict(num_hidden_layers=2, decoder_num_hidden_layers=3, drop_path_rate=0.2)
        for rate, top in ((None, 0.2), (0, 0.0), (0.5, 0.5)):
            model = DBotForPreTraining(tiny_config(**settings, decoder_drop_path_rate=rate))
            assert [layer.drop_path.rate for layer in model.dbot.layers] == pytest.approx([0, 0.2])
            assert [layer.drop_path.rate for layer in model.decoder.layers] == pytest.approx([0, top / 2, top])

    @torch.no_grad()
    def test_attention_of_the_decoder_follows_the_model(self):
        model = self.make_model("sdpa")
        model.set_attn_implementation("eager")
        layers = [*model.dbot.layers, *model.decoder.layers]
        assert {layer.attention.config._attn_implementation for layer in layers} == {"eager"}

    @torch.no_grad()
    def test_encoder_backbone_and_classifier_load_from_a_pretraining_checkpoint(self, tmp_path):
        model = self.make_model()
        model.save_pretrained(tmp_path)
        image = super().inputs(model.config)
        features = model.dbot(**image)
        for auto_class in (AutoModel, DBotModel):
            encoder, report = auto_class.from_pretrained(tmp_path, output_loading_info=True)
            assert type(encoder) is DBotModel and not any(report.values()), report
            assert_same_weights(encoder, model.dbot)
            assert_same(encoder.eval()(**image), features)
        backbone, report = DBotBackbone.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values()), report
        assert_same_weights(backbone.dbot, model.dbot)
        classifier, report = AutoModelForImageClassification.from_pretrained(
            tmp_path,
            num_labels=5,
            use_mean_pooling=True,
            trainable_position_embeddings=True,
            output_loading_info=True,
        )
        assert type(classifier) is DBotForImageClassification
        new = {"classifier.weight", "classifier.bias", "dbot.pooler.layernorm.weight", "dbot.pooler.layernorm.bias"}
        assert set(report.pop("missing_keys")) == new
        assert not any(report.values()), report
        again = AutoModelForPreTraining.from_pretrained(tmp_path)
        assert type(again) is DBotForPreTraining
        assert_same_weights(again, model)
        config = AutoConfig.from_pretrained(tmp_path)
        assert type(config) is DBotConfig and config.target_dim == 20

    def test_clear_errors(self):
        model = self.make_model()
        inputs = self.training_inputs(model.config)
        with pytest.raises(ValueError, match=r"labels have shape \(3, 8, 20\).*\(3, 10, 20\).*\(3, 9, 20\)"):
            model(**inputs | {"labels": inputs["labels"][:, 2:]})
        with pytest.raises(ValueError, match="noise has shape"):
            model(**inputs | {"noise": inputs["noise"][:, :4]})
        with pytest.raises(ValueError, match="use_mean_pooling is for fine-tuning"):
            DBotForPreTraining(tiny_config(use_mean_pooling=True))


def test_outputs_hold_no_empty_tensors():
    """A guard of the checks above: they compare something for each class."""
    for checks in (TestDBotModel, TestDBotBackbone, TestDBotForImageClassification, TestDBotForPreTraining):
        model = checks().make_model()
        assert all(tensor.numel() > 0 for tensor in tensors_of(model(**checks().inputs(model.config))))
