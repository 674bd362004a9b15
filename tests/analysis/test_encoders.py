"""Loading encoders of every kind for an analysis, and what is refused."""

from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

from hf_mim import (
    Beitv2Config,
    Beitv2ForPreTraining,
    DBotConfig,
    DBotForPreTraining,
    IBotConfig,
    IBotForPreTraining,
    VQKDConfig,
    VQKDModel,
)
from hf_mim.analysis.encoders import find_blocks, load_encoder, patch_grid, patch_size


SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.5,
}
PROCESSOR = ViTImageProcessor(size={"height": 24, "width": 32})
TEXT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48, "vocab_size": 9}


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: ViTForImageClassification(ViTConfig(**SIZES)), "vit"),
        (lambda: IBotForPreTraining(IBotConfig(**SIZES, out_dim=8, patch_out_dim=8)), "ibot"),
        (lambda: Beitv2ForPreTraining(Beitv2Config(**SIZES, vocab_size=8, early_layers=1)), "beitv2"),
        (lambda: DBotForPreTraining(DBotConfig(**SIZES, decoder_hidden_size=16, decoder_num_hidden_layers=2)), "dbot"),
        (lambda: CLIPModel(CLIPConfig(vision_config=SIZES, text_config=TEXT)), "vision_model"),
        (lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**SIZES)), "vision_model"),
        (lambda: ViTMAEForPreTraining(ViTMAEConfig(**SIZES)), "vit"),
        (lambda: VQKDModel(VQKDConfig(**SIZES, kmeans_init=False)), "encoder"),
    ],
)
@torch.no_grad()
def test_the_encoder_is_taken_out_of_whatever_it_is_part_of(make, part: str, tmp_path: Path):
    torch.manual_seed(0)
    whole = make().eval()
    encoder, image_processor = load_encoder(save(whole, tmp_path))
    assert not encoder.training
    assert image_processor.size == {"height": 24, "width": 32}
    expected = getattr(whole, part)
    blocks = find_blocks(encoder)
    assert len(blocks) == 2
    for one, other in zip(blocks.parameters(), find_blocks(expected).parameters(), strict=True):
        assert torch.equal(one, other)
    # all patches, in their order, and the embeddings of the checkpoint
    options = {"noise": torch.arange(16.0)[None]} if part == "vit" and hasattr(whole.config, "mask_ratio") else {}
    expected.config.mask_ratio = 0.0
    pixel_values = torch.randn(1, 3, 32, 32)
    state, wanted = (model(pixel_values, **options).last_hidden_state for model in (encoder, expected))
    assert torch.equal(state, wanted) and state.shape[1] == 17


@pytest.mark.parametrize(("size", "grid"), [(8, (3, 5)), ((4, 8), (6, 5))])
def test_patches(size: int | tuple[int, int], grid: tuple[int, int]):
    encoder = ViTModel(ViTConfig(**{**SIZES, "patch_size": size}))
    assert patch_size(encoder) == (24 // grid[0], 8)
    assert patch_grid(encoder, torch.zeros(1, 3, 24, 40)) == grid


def test_what_cannot_be_loaded_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="nowhere: there is no such folder; MODEL is a folder or a model id"):
        load_encoder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no model can be loaded"):
        load_encoder(tmp_path / "empty")
    with pytest.raises(ValueError, match="bert: BertModel takes input_ids, not images"):
        load_encoder(save(BertModel(BertConfig(**TEXT)), tmp_path / "bert"))

    classifier = ViTForImageClassification(ViTConfig(**SIZES))
    classifier.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="bare: no image processor can be loaded"):
        load_encoder(tmp_path / "bare")
    weights = classifier.state_dict()
    name = "vit.layers.1.mlp.fc1.weight"
    del weights[name]
    classifier.save_pretrained(tmp_path / "part", state_dict=weights)
    PROCESSOR.save_pretrained(tmp_path / "part")
    with pytest.raises(ValueError, match=r"part: the checkpoint lacks 1 weights, such as layers\.1\.mlp\.fc1\.weight"):
        load_encoder(tmp_path / "part")
