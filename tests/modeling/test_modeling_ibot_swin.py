"""The general model checks, and what is particular to iBOT's Swin classes beside their golden numbers."""

import pytest
import torch
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from hf_mim import (
    IBotImageProcessorPil,
    IBotSwinBackbone,
    IBotSwinConfig,
    IBotSwinForImageClassification,
    IBotSwinForPreTraining,
    IBotSwinModel,
)
from hf_mim.modeling.modeling_ibot_swin import repeat_mask
from hf_mim.modeling.window_attention_ibot_swin import from_windows, shift_mask, to_windows
from tests.testing.deployed_checks import ClassifierChecks
from tests.testing.ibot_models import masks
from tests.testing.ibot_pretraining_checks import IBotPreTrainingChecks
from tests.testing.model_checks import ModelChecks, assert_same, assert_same_weights


def tiny_config(**overrides) -> IBotSwinConfig:
    """Maps of 8 and 4 patches in windows of 3: both are padded, and moved in the second block."""
    settings = dict(
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=3,
        mlp_ratio=2.0,
        image_size=32,
        initializer_range=0.2,
        drop_path_rate=0.0,
        out_dim=20,
        patch_out_dim=12,
        head_hidden_size=24,
        head_bottleneck_size=10,
    )
    return IBotSwinConfig(**settings | overrides)


VARIANTS = (
    {},
    {"linear_init": "xavier_uniform", "window_size": 4},
    {"qkv_bias": False, "num_channels": 1, "depths": [1, 2, 1], "num_heads": [1, 2, 4]},
)


class IBotSwinChecks(ModelChecks):
    variants = VARIANTS
    unused_in_training = {"ibot.embeddings.mask_token"}

    def make_config(self, **overrides):
        return tiny_config(**overrides)

    def inputs(self, config):
        generator = torch.Generator().manual_seed(0)
        shape = (3, config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": torch.randn(shape, generator=generator)}

    @torch.no_grad()
    def test_hidden_states_and_attentions(self):
        model = self.make_model(attention="eager")
        inputs = self.inputs(model.config)
        default = model(**inputs)
        assert "hidden_states" not in default and "attentions" not in default
        output = model(**inputs, output_hidden_states=True, output_attentions=True)
        rows = len(output.hidden_states[0])
        assert [tuple(state.shape) for state in output.hidden_states] == [(rows, 64, 16)] * 3 + [(rows, 16, 32)] * 2
        # 8 patches in 3 windows of 3 a side, 4 in 2.
        shapes = [tuple(weights.shape) for weights in output.attentions]
        assert shapes == [(9 * rows, 2, 9, 9)] * 2 + [(4 * rows, 4, 9, 9)] * 2
        for weights in output.attentions:
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        selected = model(**inputs, output_hidden_states=[0, -1]).hidden_states
        assert [i for i, state in enumerate(selected) if state is not None] == [0, 4]
        assert_same([selected[0], selected[4]], [output.hidden_states[0], output.hidden_states[4]])


class TestIBotSwinModel(IBotSwinChecks):
    model_class = IBotSwinModel
    unused_in_training = set()

    def inputs(self, config):
        cells = config.image_size // config.token_stride
        return super().inputs(config) | {"bool_masked_pos": masks((3, cells**2))}

    def test_export(self):
        self.check_export()

    @torch.no_grad()
    def test_the_first_token_is_the_mean_of_the_others(self):
        model = self.make_model()
        output = model(**self.inputs(model.config))
        assert output.last_hidden_state.shape == (3, 17, 32)
        torch.testing.assert_close(output.pooler_output, output.last_hidden_state[:, 1:].mean(1))
        assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])
        norms = model.layernorm.weight, model.layernorm.bias
        normed = (output.last_hidden_state[:, 1:] - norms[1]) / norms[0]
        torch.testing.assert_close(normed.mean(-1), torch.zeros(3, 16), rtol=0, atol=1e-5)

    @torch.no_grad()
    def test_wanted_tokens(self):
        model = self.make_model()
        inputs = self.inputs(model.config)
        indices = torch.tensor([0, 17, 34, 5, 50])
        output = model(**inputs, token_indices=indices)
        assert output.pooler_output is None
        assert_same(output.last_hidden_state, model(**inputs).last_hidden_state.flatten(0, 1)[indices])

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
    def test_a_masked_cell_is_not_seen(self):
        model = self.make_model()
        inputs = self.inputs(model.config)
        changed = inputs["pixel_values"].clone()
        changed[:, :, :8, :8] = 7.0  # cell 0, which is masked
        assert_same(model(changed, inputs["bool_masked_pos"]), model(**inputs))
        assert not torch.equal(model(changed).pooler_output, model(inputs["pixel_values"]).pooler_output)
        # The same mask cell by cell and patch by patch.
        patches = repeat_mask(inputs["bool_masked_pos"], 8)
        assert patches.sum() == 4 * inputs["bool_masked_pos"].sum()
        assert_same(model(inputs["pixel_values"], patches), model(**inputs))

    @torch.no_grad()
    def test_windows_stay_for_other_sizes(self):
        # With windows of 4, those of 32 pixels: 8 patches in moved windows, 4 patches in one window that stays.
        model = self.make_model(attention="eager", window_size=4)
        assert model.config.stage_windows == [(4, 2), (4, 0)]
        images = torch.randn(1, 3, 44, 44)
        output = model(images, output_attentions=True)
        # 11 patches need 3 windows a side, then 6 need 2.
        assert [len(weights) for weights in output.attentions] == [9, 9, 4, 4]
        assert output.last_hidden_state.shape == (1, 1 + 36, 32)

    def test_clear_errors(self):
        model = self.make_model()
        with pytest.raises(ValueError, match="have 4 channels, the model was built for 3"):
            model(torch.zeros(1, 4, 32, 32))
        with pytest.raises(ValueError, match="30x30 is not a multiple of the patch size 4"):
            model(torch.zeros(1, 3, 30, 30))
        with pytest.raises(ValueError, match="image size 32x40 is not square"):
            model(torch.zeros(1, 3, 32, 40))
        for shape in ((2, 9), (2, 15), (2, 4, 4), (2, 0)):
            with pytest.raises(ValueError, match=r"bool_masked_pos has shape .* 8x8 patches: .* where n divides 8"):
                model(torch.zeros(2, 3, 32, 32), torch.zeros(shape, dtype=torch.bool))
        with pytest.raises(ValueError, match=r"bool_masked_pos has shape \(1, 64\).*\(2, 64\)"):
            model(torch.zeros(2, 3, 32, 32), torch.zeros(1, 16, dtype=torch.bool))
        with pytest.raises(ValueError, match=r"n must lie in 1\.\.4.*got 5"):
            model.get_intermediate_layers(torch.zeros(1, 3, 32, 32), n=5)


class TestIBotSwinBackbone(IBotSwinChecks):
    model_class = IBotSwinBackbone

    @pytest.mark.slow
    def test_compile(self):
        super().test_compile()

    def make_config(self, **overrides):
        stages = len(overrides.get("depths", [2, 2]))
        return tiny_config(**{"out_features": ["stem", "stage1", f"stage{stages}"]} | overrides)

    @pytest.mark.slow
    def test_export(self):
        self.check_export()

    @torch.no_grad()
    def test_feature_maps_are_the_hidden_states(self):
        model = self.make_model(out_features=["stem", "stage1", "stage2"])
        inputs = self.inputs(model.config)
        assert model.channels == [16, 16, 32]
        states = model.ibot(**inputs, output_hidden_states=True).hidden_states
        maps = model(**inputs).feature_maps
        expected = [states[0], states[2], model.ibot.layernorm(states[4])]
        for feature_map, state, side in zip(maps, expected, (8, 8, 4), strict=True):
            assert feature_map.shape == (3, state.shape[-1], side, side)
            assert torch.equal(feature_map[:, :, 1, 3], state[:, side + 3])

    @torch.no_grad()
    def test_from_config_and_from_a_folder(self, tmp_path):
        model = AutoBackbone.from_config(self.make_config(out_indices=[1, 2], out_features=None))
        assert isinstance(model, IBotSwinBackbone) and model.out_features == ["stage1", "stage2"]
        model.save_pretrained(tmp_path)
        loaded = IBotSwinBackbone.from_pretrained(tmp_path, out_features=["stage2"]).eval()
        inputs = self.inputs(model.config)
        (feature_map,) = loaded(**inputs).feature_maps
        assert_same(feature_map, model.eval()(**inputs).feature_maps[1])

    def test_semantic_segmentation_with_upernet(self):
        config = UperNetConfig(
            backbone_config=self.make_config(
                depths=[1, 1, 1, 1],
                num_heads=[1, 2, 4, 8],
                embed_dim=8,
                image_size=64,
                out_features=["stage1", "stage2", "stage3", "stage4"],
            ),
            hidden_size=16,
            num_labels=5,
            use_auxiliary_head=False,
        )
        torch.manual_seed(0)
        model = UperNetForSemanticSegmentation(config)
        assert isinstance(model.backbone, IBotSwinBackbone)
        images, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64))
        model.train()(images, labels=labels).loss.backward()
        without = {n for n, p in model.backbone.named_parameters() if p.grad is None or not p.grad.any()}
        assert {n for n in without if not n.endswith("k_proj.bias")} == {"ibot.embeddings.mask_token"}


class TestIBotSwinForImageClassification(ClassifierChecks, IBotSwinChecks):
    model_class = IBotSwinForImageClassification
    one_block = {}

    @pytest.mark.slow
    def test_compile(self):
        super().test_compile()

    @pytest.mark.slow
    def test_export(self):
        self.check_export()

    @torch.no_grad()
    def test_the_head_takes_the_mean(self):
        model = self.make_model()
        inputs = self.inputs(model.config)
        patches = model.ibot(**inputs).last_hidden_state[:, 1:]
        output = model(**inputs, labels=torch.tensor([1, 3, 0]))
        assert_same(output.logits, model.classifier(patches.mean(1)), atol=1e-6)
        expected = torch.nn.functional.cross_entropy(output.logits, torch.tensor([1, 3, 0]))
        torch.testing.assert_close(output.loss, expected)


class TestIBotSwinForPreTraining(IBotPreTrainingChecks, IBotSwinChecks):
    model_class = IBotSwinForPreTraining
    head_variants = ({}, {"head_norm": "bn", "shared_head": False}, {"head_bottleneck_size": 0})
    variants = (*VARIANTS, *head_variants[1:])
    unused_in_training = set()
    checkpointing_tolerance = 1e-5

    @pytest.mark.slow
    def test_compile(self):
        super().test_compile()

    def inputs(self, config):
        generator = torch.Generator().manual_seed(0)
        channels, size = config.num_channels, config.image_size
        # Local views of 5 patches a side: their map is padded to be halved.
        return {
            "pixel_values": torch.randn(3, 2, channels, size, size, generator=generator),
            "bool_masked_pos": masks((3, 2, (size // config.token_stride) ** 2)),
            "local_pixel_values": torch.randn(3, 2, channels, 20, 20, generator=generator),
        }

    def test_every_class_loads_from_a_pretraining_checkpoint(self, tmp_path):
        model = self.make_model()
        model.save_pretrained(tmp_path)
        IBotImageProcessorPil().save_pretrained(tmp_path)
        assert isinstance(AutoImageProcessor.from_pretrained(tmp_path, backend="pil"), IBotImageProcessorPil)
        for auto_class, cls in (
            (AutoModel, IBotSwinModel),
            (IBotSwinBackbone, IBotSwinBackbone),
            (AutoModelForPreTraining, IBotSwinForPreTraining),
        ):
            loaded, report = auto_class.from_pretrained(tmp_path, output_loading_info=True)
            assert type(loaded) is cls and not any(report.values()), report
            assert_same_weights(loaded.base_model, model.ibot)
        classifier, report = AutoModelForImageClassification.from_pretrained(
            tmp_path, num_labels=5, output_loading_info=True
        )
        assert type(classifier) is IBotSwinForImageClassification
        assert set(report.pop("missing_keys")) == {"classifier.weight", "classifier.bias"}
        assert not any(report.values()), report
        assert_same_weights(classifier.ibot, model.ibot)
        config = AutoConfig.from_pretrained(tmp_path)
        assert type(config) is IBotSwinConfig and config.out_dim == 20
        assert config.to_dict() == model.config.to_dict() | {"_name_or_path": str(tmp_path)}

    @pytest.mark.parametrize("cells", [4, 9, 64])
    def test_wrong_masks_are_named(self, cells):
        """The encoder takes 4 cells or all 64 patches, but the losses are those of its 16 tokens."""
        model = self.make_model()
        inputs = self.training_inputs(model.config) | {"bool_masked_pos": masks((3, 2, cells))}
        with pytest.raises(ValueError, match=rf"bool_masked_pos has shape \(3, 2, {cells}\), expected \(3, 2, 16\)"):
            model(**inputs)


def test_windows_hold_neighbors_and_can_be_put_back():
    patches = torch.arange(36).view(1, 6, 6, 1)
    windows = to_windows(patches, 3)
    assert windows.shape == (1, 4, 9, 1)
    assert windows[0, 1].flatten().tolist() == [3, 4, 5, 9, 10, 11, 15, 16, 17]
    assert torch.equal(from_windows(windows, 3), patches)


def test_shift_mask_parts_opposite_edges():
    mask = shift_mask(6, 3, 1, torch.zeros(1))
    assert mask.shape == (4, 9, 9) and set(mask.unique().tolist()) == {-100.0, 0.0}
    # The first window lies inside the map; in the second, the last column comes from the left edge.
    assert not mask[0].any()
    column = torch.arange(9) % 3
    assert torch.equal(mask[1] != 0, (column[:, None] == 2) != (column == 2))
    # In the last window, four parts come from the four corners.
    corner = 2 * (torch.arange(9) // 3 == 2) + (column == 2).long()
    assert torch.equal(mask[3] != 0, corner[:, None] != corner)


def test_drop_path_rate_grows_over_all_stages():
    model = IBotSwinModel(tiny_config(depths=[2, 3], drop_path_rate=0.2))
    rates = [block.drop_path.rate for stage in model.encoder.layers for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"depths": [2, 2, 6]}, r"one positive number per stage, got \[2, 2, 6\] and \[3, 6, 12, 24\]"),
        ({"depths": [], "num_heads": []}, "one positive number per stage"),
        ({"depths": [2, 0], "num_heads": [1, 2]}, "one positive number per stage"),
        ({"num_heads": [5, 6, 12, 24]}, r"width of stage 1 \(96\) must be a multiple of its num_heads \(5\)"),
        ({"window_size": 0}, "window_size must be at least 1"),
        ({"mlp_ratio": 0}, "mlp_ratio must be positive"),
        ({"image_size": [224, 192]}, r"image_size \(\[224, 192\]\) must be square"),
        ({"image_size": 222}, "must be a multiple of patch_size"),
        ({"image_size": 16}, r"image_size \(16\) must be at least 32: 4 stages halve the feature map 3 times"),
        ({"drop_path_rate": 1.0}, "drop_path_rate must lie in"),
        ({"out_dim": 1}, "out_dim must be at least 2"),
        ({"head_norm": "group"}, "head_norm must be one of"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(Exception, match=message):
        IBotSwinConfig(**fields)


def test_published_sizes():
    windows = {7: [(7, 3), (7, 3), (7, 3), (7, 0)], 14: [(14, 7), (14, 7), (14, 0), (7, 0)]}
    for window_size, expected in windows.items():
        config = IBotSwinConfig(window_size=window_size)
        assert config.stage_windows == expected
        assert (config.hidden_size, config.num_hidden_layers, config.token_stride) == (768, 12, 32)
        assert config.layer_norm_eps == 1e-6 and config.drop_path_rate == 0.1
