"""The VQ-KD tokenizer passes the checks of all models, works on other grids, and comes through the Auto classes."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPreTraining
from transformers import initialization as init

from hf_mim import Beitv2ImageProcessorPil, VQKDConfig, VQKDModel
from hf_mim.modeling.layers import interpolate_position_table
from tests.testing.model_checks import ModelChecks, assert_same, tensors_of


SIZES = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "decoder_num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "codebook_size": 12,
    "codebook_dim": 8,
    "target_dim": 24,
}


def images(batch: int = 3, height: int = 16, width: int = 16) -> torch.Tensor:
    return 2 * torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) - 1


class TestVQKDModel(ModelChecks):
    model_class = VQKDModel
    variants = ({}, {"kmeans_init": True}, {"revive_after_steps": 5})

    def make_config(self, **overrides):
        # The checks want a model with a codebook.
        return VQKDConfig(**SIZES | {"kmeans_init": False} | overrides)

    def make_model(self, attention="sdpa", **overrides):
        model = super().make_model(attention, **overrides)
        model.quantizer.codebook.copy_(torch.nn.functional.normalize(model.quantizer.codebook, dim=1))
        model.quantizer.initialized.fill_(True)
        return model

    def inputs(self, config):
        return {"pixel_values": images()}

    def training_inputs(self, config):
        labels = torch.randn(3, 16, config.target_dim, generator=torch.Generator().manual_seed(1))
        return self.inputs(config) | {"labels": labels}

    def test_the_same_twice_and_alone_as_in_a_batch(self):
        model = self.make_model()
        expected = model(**self.training_inputs(model.config))
        assert_same(model(**self.training_inputs(model.config)), expected)
        assert torch.equal(model.decode(expected.codes), model.decode(model.encode(images())))
        for i in range(3):
            alone = model(images()[i : i + 1])
            assert torch.equal(alone.codes[0], expected.codes[i])
            torch.testing.assert_close(alone.features[0], expected.features[i], rtol=1e-5, atol=1e-5)

    @torch.no_grad()
    def test_weights_can_be_made_on_the_meta_device(self):
        """With k-means; a random codebook is not the same twice."""
        for overrides in ({}, {"kmeans_init": True}, {"revive_after_steps": 5}):
            config = self.make_config(**overrides)
            with init.no_init_weights():
                expected = dict(self.model_class(config).named_buffers())
            with torch.device("meta"):
                model = self.model_class(config)
            model.to_empty(device="cpu")
            model.init_weights()
            for name, buffer in model.named_buffers():
                if name.endswith("initialized"):
                    assert buffer == (not config.kmeans_init)
                elif name.endswith("codebook") and not config.kmeans_init:
                    torch.testing.assert_close(buffer.norm(dim=1), torch.ones(12))
                else:
                    assert torch.equal(buffer, expected[name]), name
            output = model.train()(**self.inputs(config))
            assert all(tensor.isfinite().all() for tensor in tensors_of(output))

    @torch.no_grad()
    def test_loading_in_bfloat16(self, tmp_path):
        """The codebook, and the layer before it, stay in float32."""
        model = self.make_model()
        expected = model(images())
        model.save_pretrained(tmp_path)
        loaded = VQKDModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
        for name, tensor in loaded.state_dict().items():
            if name.startswith(("encoder.", "decoder.", "decode_task_layer.")):
                assert tensor.dtype == torch.bfloat16, name
            elif tensor.is_floating_point():
                assert torch.equal(tensor, model.state_dict()[name]), name
        output = loaded(images())
        assert (output.codes == expected.codes).float().mean() > 0.8
        decoded = loaded.decode(expected.codes)
        assert decoded.dtype == torch.bfloat16
        assert (decoded.float() - expected.features).norm() < 0.05 * expected.features.norm()

    @torch.no_grad()
    def test_eager_equals_sdpa(self):
        """In float32; in half precision a patch between two codes may fall to either."""
        eager, sdpa = (self.make_model(attention=name)(images()) for name in ("eager", "sdpa"))
        assert torch.equal(eager.codes, sdpa.codes)
        assert_same(eager.features, sdpa.features, atol=1e-5)


def small_model(**overrides) -> VQKDModel:
    torch.manual_seed(0)
    return VQKDModel(VQKDConfig(**SIZES | {"kmeans_init": False} | overrides)).eval()


@torch.no_grad()
@pytest.mark.parametrize("height, width", [(12, 24), (8, 32), (24, 8)])
def test_grids_that_are_not_square(height, width):
    """The original cannot; 8x32 has as many patches as the 16x16 of the position tables."""
    model = small_model()
    grid = (height // 4, width // 4)
    output = model(images(2, height, width))
    assert output.codes.shape == (2, grid[0] * grid[1])
    assert torch.equal(model.encode(images(2, height, width)), output.codes)
    assert_same(model.decode(output.codes, grid), output.features, atol=1e-5)
    # A model that is made for this size and has the tables that the other interpolates gives the same.
    made = small_model(image_size=(height, width))
    weights = model.state_dict()
    for part in ("encoder", "decoder"):
        key = f"{part}.embeddings.position_embeddings"
        weights[key] = interpolate_position_table(weights[key], (4, 4), grid)
    made.load_state_dict(weights)
    assert torch.equal(made.encode(images(2, height, width)), output.codes)
    assert_same(made.decode(output.codes), output.features, atol=1e-5)


def test_codes_that_do_not_fill_the_grid():
    model = small_model()
    for codes, grid in ((torch.zeros(2, 9, dtype=torch.int64), None), (torch.zeros(16, dtype=torch.int64), (4, 4))):
        with pytest.raises(ValueError, match="do not fill a grid of 4x4"):
            model.decode(codes, grid)
    with pytest.raises(ValueError, match=r"labels have shape \(2, 16, 7\), expected \(2, 16, 24\)"):
        model(images(2), torch.zeros(2, 16, 7))


def test_codes_and_images_that_are_none():
    model = small_model()
    codes = torch.zeros(2, 16, dtype=torch.int64)
    for wrong, found in ((-1, "-1 to 0"), (12, "0 to 12")):
        codes[1, 3] = wrong
        with pytest.raises(ValueError, match=rf"codes must lie in 0\.\.11, got {found}"):
            model.decode(codes)
    for call in (model, model.encode):
        with pytest.raises(ValueError, match=r"pixel_values have dtype uint8, expected .* values in -1\.\.1"):
            call(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="no codebook yet"):
        small_model(kmeans_init=True).decode(codes)


@torch.no_grad()
def test_compiled_and_exported_before_any_other_call():
    torch._dynamo.reset()
    expected = small_model()(images())
    compiled = torch.compile(small_model(), backend="aot_eager", fullgraph=True)(images())
    assert torch.equal(compiled.codes, expected.codes)
    assert_same(compiled.features, expected.features, rtol=1e-5, atol=1e-5)
    exported = torch.export.export(small_model(), (images(),), strict=False).module()(images())
    assert torch.equal(exported.codes, expected.codes)
    assert_same(exported.features, expected.features, rtol=1e-5, atol=1e-5)


def test_accumulated_batches_share_compiled_programs():
    """The vectors that revival collects from batch to batch need no new program each."""
    torch._dynamo.reset()
    model = small_model(revive_after_steps=5).train()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(model.quantizer, backend=counter)
    batches = torch.randn(8, 10, 8, generator=torch.Generator().manual_seed(0))
    # The k-means check asks the device once.
    model.quantizer.check_initialized()
    for features in batches:
        compiled(features)
    assert counter.frame_count <= 3
    normalized = torch.nn.functional.normalize(batches.flatten(0, 1), dim=1)
    torch.testing.assert_close(model.quantizer._samples, normalized)


def test_revival_can_be_switched_on_later(tmp_path):
    """Also in a tokenizer that was saved without the counts of idle steps."""
    model = small_model().train()
    model.quantizer.codebook[1:] = -model.quantizer.codebook[0]
    for _ in range(2):
        model(images())
        model.update_codebook()
    idle = model.quantizer.idle_steps
    assert idle.max() == 2
    model.save_pretrained(tmp_path)
    loaded, report = VQKDModel.from_pretrained(tmp_path, revive_after_steps=3, output_loading_info=True)
    assert not report["missing_keys"] and torch.equal(loaded.quantizer.idle_steps, idle)
    codes = loaded.train()(images()).codes
    unused = loaded.quantizer.idle_steps == 2
    unused[codes.unique()] = False
    before = loaded.quantizer.codebook.clone()
    loaded.update_codebook()
    assert unused.any() and (loaded.quantizer.codebook != before).any(1)[unused].all()

    weights = {name: value for name, value in model.state_dict().items() if name != "quantizer.idle_steps"}
    model.save_pretrained(tmp_path, state_dict=weights)
    loaded, report = VQKDModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not loaded.quantizer.idle_steps.any()
    assert torch.equal(loaded.quantizer.codebook, model.quantizer.codebook)


def test_a_new_tokenizer_learns_its_codebook_first(tmp_path):
    """Without labels too; a saved one needs no second k-means, and evaluation changes nothing."""
    torch.manual_seed(0)
    model = VQKDModel(VQKDConfig(**SIZES)).eval()
    for call in (model, model.encode):
        with pytest.raises(ValueError, match="no codebook yet"):
            call(images())
    output = model.train()(images())
    assert output.loss is None and output.loss_feature is None and output.loss_quantizer > 0
    counts = model.update_codebook()
    assert counts.sum() == 48 and torch.equal(counts, output.codes.flatten().bincount(minlength=12))
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.quantizer.initialized
    before = {key: value.clone() for key, value in loaded.state_dict().items()}
    codes = loaded.encode(images())
    assert torch.equal(codes, model.eval().encode(images()))
    assert_same(loaded(images()).codes, codes)
    assert all(torch.equal(value, before[key]) for key, value in loaded.state_dict().items())


def test_autocast_leaves_codes_alone_where_it_can():
    """What comes before the codebook runs in float32 from the encoder's output on."""
    model = small_model()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        tokens = model.encoder(images()).last_hidden_state
        features = model._to_codebook(tokens)
        output = model(images(), torch.ones(3, 16, 24))
    assert features.dtype == output.loss.dtype == torch.float32
    with torch.no_grad():
        assert_same(features, model._to_codebook(tokens.float()))
        assert_same(output.codes, model.quantizer.encode(features))


def test_initialization():
    """SPEC 2.3: normal 0.02 and no bias in the task layers; that of fine-tuning in encoder and decoder."""
    torch.manual_seed(0)
    model = VQKDModel(VQKDConfig(**SIZES | {"hidden_size": 128, "target_dim": 512}))
    for layer in (model.encode_task_layer[0], model.decode_task_layer[0], model.decode_task_layer[2]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert layer.weight.abs().max() > 0.06 and not layer.bias.any()
    for part, channels in ((model.encoder, 3 * 16), (model.decoder, 8)):
        bound = channels**-0.5
        weight = part.embeddings.patch_embeddings.projection.weight
        assert 0.95 * bound < weight.abs().max() <= bound
        assert part.embeddings.position_embeddings.std().item() == pytest.approx(0.02, rel=0.1)
        assert part.embeddings.mask_token is None and part.layers[0].lambda_1 is None
    assert model.encoder.layers[2].mlp.fc2.weight.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.05)


def test_auto_classes(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    processor = Beitv2ImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), VQKDConfig)
    assert isinstance(AutoModelForPreTraining.from_pretrained(tmp_path), VQKDModel)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    white = Image.fromarray(np.full((20, 30, 3), 255, dtype=np.uint8))
    assert loaded(white, return_tensors="pt")["pixel_values"].unique().tolist() == [1.0]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"codebook_size": 1}, "codebook_size must be at least 2"),
        ({"codebook_decay": 1.5}, r"codebook_decay must lie in \[0, 1\]"),
        ({"commitment_weight": -1.0}, "commitment_weight must not be negative"),
        ({"revive_after_steps": -1}, "revive_after_steps must not be negative"),
        ({"decoder_num_hidden_layers": 0}, "decoder_num_hidden_layers must be at least 1"),
        ({"num_attention_heads": 5}, "hidden_size .768. must be a multiple of num_attention_heads .5."),
        ({"image_size": 100}, "image_size .100. must be a multiple of patch_size .16."),
        ({"image_size": [32, 32, 32]}, "image_size must be one number or .height, width."),
    ],
)
def test_sizes_that_do_not_fit(options, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        VQKDConfig(**options)


def test_configuration_round_trip(tmp_path):
    config = VQKDConfig(image_size=[224, 320], teacher="a-clip", teacher_license="mit")
    assert config.grid_size == (14, 20) and config.intermediate_size == 3072
    config.save_pretrained(tmp_path)
    loaded = VQKDConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
