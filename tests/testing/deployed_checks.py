"""Checks of the classes that are deployed, backbones and classifiers, whatever the method."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers import AutoBackbone, UperNetConfig, UperNetForSemanticSegmentation

from tests.testing.model_checks import assert_same, assert_same_weights, gradients_of


class BackboneChecks:
    """Beside a subclass of `ModelChecks` whose models have three blocks of width 32 and patches of 8 pixels."""

    # `ModelChecks` compiles the whole encoder; here one block is enough, and with inductor all of them.
    one_block = {"num_hidden_layers": 1}
    # Of the logits of a segmentation model that was saved and loaded.
    segmentation_tolerance = 1e-7

    def make_config(self, **overrides):
        return super().make_config(**{"out_features": ["stem", "stage2"]} | overrides)

    def test_every_parameter_gets_a_gradient(self):
        for overrides in self.variants:
            stages = ["stage1", f"stage{overrides.get('num_hidden_layers', 3)}"]
            model = self.make_model(**overrides, out_features=stages).train()
            _, gradients = gradients_of(model, self.inputs(model.config))
            assert {name for name, gradient in gradients.items() if gradient is None} == self.unused_in_training

    def test_compile(self):
        self.check_compiled("aot_eager", 1e-5, out_features=["stem", "stage1"], **self.one_block)

    def test_export(self):
        self.check_export()

    @torch.no_grad()
    @pytest.mark.parametrize("apply_layernorm", [True, False])
    def test_feature_maps_are_the_hidden_states(self, apply_layernorm):
        model = self.make_model(image_size=[16, 40], apply_layernorm=apply_layernorm)
        inputs = self.inputs(model.config)
        assert model.channels == [32, 32]
        states = model.base_model(**inputs, output_hidden_states=True).hidden_states
        maps = model(**inputs).feature_maps
        expected = [model.base_model.layernorm(states[i]) if apply_layernorm else states[i] for i in (0, 2)]
        for feature_map, state in zip(maps, expected, strict=True):
            assert feature_map.shape == (3, 32, 2, 5)
            assert torch.equal(feature_map[:, :, 1, 3], state[:, 1 + 5 + 3])
        model.config.reshape_hidden_states = False
        assert_same(model(**inputs).feature_maps, expected)

    @torch.no_grad()
    def test_from_config_and_from_a_folder(self, tmp_path):
        model = AutoBackbone.from_config(self.make_config(out_indices=[1, 3], out_features=None))
        assert isinstance(model, self.model_class) and model.out_features == ["stage1", "stage3"]
        model.save_pretrained(tmp_path)
        loaded = self.model_class.from_pretrained(tmp_path, out_features=["stage2"]).eval()
        inputs = self.inputs(model.config)
        (feature_map,) = loaded(**inputs).feature_maps
        model.config.out_features = ["stage2"]
        assert_same(feature_map, model.eval()(**inputs).feature_maps)

    def segmentation_backbone(self):
        """Configuration of a backbone with four feature maps for images of 32x48 pixels."""
        return self.make_config(out_features=["stem", "stage1", "stage2", "stage3"])

    def test_semantic_segmentation_with_upernet(self, tmp_path):
        backbone = self.segmentation_backbone()
        config = UperNetConfig(backbone_config=backbone, hidden_size=16, num_labels=5, use_auxiliary_head=False)
        torch.manual_seed(0)
        model = UperNetForSemanticSegmentation(config)
        assert isinstance(model.backbone, self.model_class)
        images, labels = torch.randn(2, 3, 32, 48), torch.randint(0, 5, (2, 32, 48))
        model.train()(images, labels=labels).loss.backward()
        without = {n for n, p in model.backbone.named_parameters() if p.grad is None or not p.grad.any()}
        # The gradient of a key bias is zero but for rounding.
        assert {name for name in without if not name.endswith("k_proj.bias")} == self.unused_in_training

        expected = model.eval()(images).logits
        assert expected.shape == (2, 5, 32, 48)
        model.save_pretrained(tmp_path)
        loaded, report = UperNetForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values()), report
        assert_same_weights(loaded, model)
        assert_same(loaded.eval()(images).logits, expected, rtol=1e-4, atol=self.segmentation_tolerance)


class ClassifierChecks:
    """Beside a subclass of `ModelChecks` whose models have 32 features."""

    one_block = {"num_hidden_layers": 1}

    def make_config(self, **overrides):
        return super().make_config(**{"num_labels": 4} | overrides)

    def training_inputs(self, config):
        labels = torch.tensor([1, 3, 0]) if config.num_labels else None
        return self.inputs(config) | ({} if labels is None else {"labels": labels})

    def test_compile(self):
        self.check_compiled("aot_eager", 1e-5, **self.one_block)

    def test_export(self):
        self.check_export()

    def test_problem_types(self):
        one_hot = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0]])
        cases = [
            ("single_label_classification", 4, torch.tensor([1, 3, 0]), cross_entropy),
            ("multi_label_classification", 4, one_hot, binary_cross_entropy_with_logits),
            ("regression", 4, one_hot * 2.5, mse_loss),
            ("regression", 1, torch.tensor([0.5, -1.0, 2.0]), lambda x, y: mse_loss(x[:, 0], y)),
        ]
        for problem_type, num_labels, labels, loss in cases:
            model = self.make_model(problem_type=problem_type, num_labels=num_labels)
            output = model(**self.inputs(model.config), labels=labels)
            torch.testing.assert_close(output.loss, loss(output.logits, labels))
            output.loss.backward()

    def check_new_head(self, model):
        """What a method's new classifier starts with."""

    def test_another_number_of_classes(self, tmp_path):
        self.make_model(num_labels=4).save_pretrained(tmp_path)
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            self.model_class.from_pretrained(tmp_path, num_labels=7)
        model, report = self.model_class.from_pretrained(
            tmp_path, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
        )
        assert model.classifier.weight.shape == (7, 32)
        assert {key for key, *_ in report["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
        self.check_new_head(model)
