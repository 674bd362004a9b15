"""Official VQ-KD tokenizers through `convert_checkpoint`."""

from argparse import Namespace

import pytest
import torch
from transformers import AutoImageProcessor

from hf_mim import Beitv2ImageProcessorPil, VQKDModel, convert_checkpoint, export_native
from hf_mim.hub.convert.checkpoint import save_converted
from tests.testing.official_listings import (
    VQKD,
    assert_nothing_lost,
    dropped_from,
    vqkd_checkpoint,
    weights_of,
    within,
)


@pytest.mark.parametrize("name", VQKD)
@pytest.mark.parametrize("with_teacher", [True, False])
def test_published_layouts(name, with_teacher):
    teacher = name.split("_")[1]
    official = vqkd_checkpoint(name, teacher if with_teacher else None)
    converted = convert_checkpoint(official)
    model, config = converted.model, converted.config
    # The original does not count the steps without use of each code.
    assert_nothing_lost(official, converted, new=8192)
    assert sum(p.numel() for p in model.parameters()) == VQKD[name]["num_params_trainable"]
    assert config.decoder_num_hidden_layers == int(name[0])
    assert config.target_dim == {"clip": 512, "dino": 768}[teacher]
    assert (config.codebook_size, config.codebook_dim, config.image_size) == (8192, 32, 224)
    assert len(converted.dropped) == (4 if with_teacher else 2)
    count = len(dropped_from(official, converted))
    assert count == ({"clip": 302, "dino": 150}[teacher] + 4 if with_teacher else 2)


# The copy of the trace in this repository lacks what nothing reads.
EVALUATIONS = ("vqkd_clip_eval", "vqkd_clip_imagenet_norm_eval", "vqkd_dino_eval")


@torch.no_grad()
@pytest.mark.parametrize("name", EVALUATIONS)
def test_golden_outputs(beitv2_golden, name):
    golden = beitv2_golden(name)
    official = weights_of(golden)
    converted = convert_checkpoint(official, num_attention_heads=4)
    assert_nothing_lost(official, converted, new=40)
    assert len(dropped_from(official, converted)) == 4 and type(converted.model) is VQKDModel
    pixel_values, labels = golden["out/pre_processed"], golden["in/teacher_features"]
    codes = converted.model.encode(pixel_values)
    assert torch.equal(codes, golden["out/codes"])
    within(converted.model.decode(codes), golden["out/decoded"])
    within(converted.model(pixel_values, labels).loss, golden["out/total_loss"])


@torch.no_grad()
@pytest.mark.parametrize("name", EVALUATIONS[:2])
def test_image_processor(beitv2_golden, name):
    """What it makes of an image is what the tokenizer saw in the original, whose run says how it was scaled."""
    golden = beitv2_golden(name)
    args = Namespace(process_type="imagenet_norm" if "imagenet" in name else "default")
    processor = convert_checkpoint({"model": weights_of(golden), "args": args}, num_attention_heads=4).image_processor
    assert isinstance(processor, Beitv2ImageProcessorPil)
    assert processor.size["shortest_edge"] == 36 and processor.crop_size["height"] == 32
    pixels = processor(
        list(golden["in/images_01"]), do_resize=False, do_center_crop=False, do_rescale=False, return_tensors="pt"
    ).pixel_values
    torch.testing.assert_close(pixels, golden["out/pre_processed"], rtol=0, atol=1e-5)


def test_unknown_scale(beitv2_golden):
    content = {"model": weights_of(beitv2_golden("vqkd_train_trace")), "args": Namespace(process_type="zero_one")}
    with pytest.raises(ValueError, match="process_type 'zero_one', which is none of default, imagenet_norm, dall-e"):
        convert_checkpoint(content, num_attention_heads=4)


@torch.no_grad()
def test_training_trace(beitv2_golden):
    golden = beitv2_golden("vqkd_train_trace")
    converted = convert_checkpoint(weights_of(golden), num_attention_heads=4)
    codes = converted.model.encode(2 * golden["in/images_0"] - 1)
    assert torch.equal(codes, golden["out/codes_0"])
    assert converted.image_processor.image_mean == converted.image_processor.image_std == (0.5, 0.5, 0.5)


@torch.no_grad()
def test_folder(beitv2_golden, tmp_path):
    golden = beitv2_golden("vqkd_train_trace")
    converted = convert_checkpoint(weights_of(golden), num_attention_heads=4, teacher="openai/clip-vit-base-patch16")
    with pytest.raises(ValueError, match="tokenizer has no counterpart in transformers"):
        save_converted(converted, tmp_path / "out", native=True)
    assert not any(tmp_path.iterdir())
    save_converted(converted, tmp_path / "out")
    model = VQKDModel.from_pretrained(tmp_path / "out")
    assert model.config.teacher == "openai/clip-vit-base-patch16"
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    options = {"do_resize": False, "do_center_crop": False, "do_rescale": False, "return_tensors": "pt"}
    codes = model.encode(processor(list(golden["in/images_0"]), **options).pixel_values)
    assert torch.equal(codes, golden["out/codes_0"])


class TestMistakes:
    @pytest.fixture
    def weights(self, beitv2_golden):
        return weights_of(beitv2_golden("vqkd_train_trace"))

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"quantize.embedding.initted": torch.zeros(1)}, "initted is 0, so that there is no codebook yet"),
            ({"quantize.embedding.initted": None}, r"no tensor quantize\.embedding\.initted"),
            ({"decode_task_layer.0.bias": None}, r"missing decode_task_layer\.0\.bias"),
            ({"decoder.blocks.0.attn.q_bias": None}, r"missing decoder\.blocks\.0\.attn\.q_bias"),
            ({"decoder.fc_norm.weight": None}, r"missing decoder\.fc_norm\.weight"),
            ({"quantize.cluster_size": None}, r"missing quantize\.cluster_size"),
            ({"encoder.pos_embed": None}, r"no tensor encoder\.pos_embed"),
            ({"encoder.head.bias": torch.zeros(3)}, r"not used encoder\.head\.bias"),
            ({"quantize.embedding.sum": torch.zeros(3)}, r"not used quantize\.embedding\.sum"),
            (
                {"encode_task_layer.2.bias": torch.zeros(7)},
                r"encode_task_layer\.2\.bias gives .* shape \[7\], \[8\]",
            ),
            ({"decoder.pos_embed": torch.zeros(1, 26, 48)}, r"decoder\.pos_embed gives"),
        ],
    )
    def test_tensors(self, weights, change, message):
        weights = {key: tensor for key, tensor in (weights | change).items() if tensor is not None}
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(weights, num_attention_heads=4)

    def test_other_families(self, weights):
        for family in ("ibot", "beitv2", "dbot"):
            with pytest.raises(ValueError, match=f"family vqkd, not {family}"):
                convert_checkpoint(weights, family)

    def test_heads(self, weights):
        with pytest.raises(ValueError, match="num_attention_heads must be given"):
            convert_checkpoint(weights)

    def test_nothing_native(self, weights):
        model = convert_checkpoint(weights, num_attention_heads=4).model
        with pytest.raises(TypeError, match="VQKDModel"):
            export_native(model)
