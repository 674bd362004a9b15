"""iBOT with a Swin Transformer through `hf-mim pretrain`: what a run leaves, resuming it, continuing from it."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining, SwinModel

from hf_mim import IBotSwinForPreTraining, IBotSwinModel
from hf_mim.training.pretrain import ibot as ibot_swin_method
from tests.testing.resuming import EVERY_STEP, assert_equal_weights, copy_checkpoint
from tests.testing.tiny_training import SWIN_SIZES, TINY_SWIN, logged_losses, pretrain


HELD_OUT = ("--eval_split", "test", "--eval_strategy", "epoch")


@pytest.fixture(scope="module")
def finished_swin(pictures, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "tiny-swin"
    metrics = pretrain("--train_dir", pictures, *HELD_OUT, *EVERY_STEP, output=output, method=TINY_SWIN)
    return output, metrics


def teacher_features(output, picture) -> torch.Tensor:
    teacher = AutoModelForPreTraining.from_pretrained(output / "pretraining", subfolder="teacher").eval()
    assert teacher.config.drop_path_rate == 0.0
    processor = AutoImageProcessor.from_pretrained(output / "pretraining", backend="pil")
    with torch.no_grad():
        return teacher.ibot(**processor(Image.open(picture), return_tensors="pt")).last_hidden_state


def test_what_a_run_leaves(finished_swin, pictures):
    output, metrics = finished_swin
    assert np.isfinite(metrics["train_loss"]) and 0 <= metrics["eval_knn_3_top1"] <= 100
    model, info = AutoModel.from_pretrained(output, output_loading_info=True)
    assert type(model) is SwinModel and not any(info.values())
    picture = pictures / "test" / "dark" / "0.png"
    processor = AutoImageProcessor.from_pretrained(output, backend="pil")
    with torch.no_grad():
        actual = model.eval()(**processor(Image.open(picture), return_tensors="pt"))
    expected = teacher_features(output, picture)
    torch.testing.assert_close(actual.last_hidden_state, expected[:, 1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(actual.pooler_output, expected[:, 0], rtol=0, atol=1e-5)

    student = IBotSwinForPreTraining.from_pretrained(output / "pretraining")
    assert student.config.drop_path_rate == 0.1 and not student.config.norm_last_layer
    facts = json.loads((output / "metrics.json").read_text())
    assert facts["native"] and "attention.png" not in facts["pictures"]
    card = (output / "README.md").read_text()
    assert "library_name: transformers" in card and "- ibot_swin" in card and "zhou2022ibot" in card
    assert "Swin, 2-2 blocks, widths 8 to 16, 2-2 heads, windows of 3×3 patches of 4×4 pixels" in card
    assert "import hf_mim" not in card and "attention.png" not in card


def test_windows_that_transformers_cannot_run(pictures, tmp_path):
    """The encoder is left as one of ours then, and everything says so."""
    output = tmp_path / "wide-swin"
    options = ("--config_overrides", SWIN_SIZES + ",window_size=5", "--num_train_epochs", "1")
    pretrain("--train_dir", pictures, *options, "--warmup_teacher_temp_epochs", "0", output=output, method=TINY_SWIN)
    model, info = AutoModel.from_pretrained(output, output_loading_info=True)
    assert type(model) is IBotSwinModel and not any(info.values())
    assert model.config.stage_windows == [(5, 2), (4, 0)]
    picture = pictures / "test" / "light" / "0.png"
    processor = AutoImageProcessor.from_pretrained(output, backend="pil")
    with torch.no_grad():
        actual = model.eval()(**processor(Image.open(picture), return_tensors="pt"))
    torch.testing.assert_close(actual.last_hidden_state, teacher_features(output, picture), rtol=0, atol=1e-6)
    card = (output / "README.md").read_text()
    assert "library_name: hf_mim" in card and "import hf_mim" in card and "pipeline_tag" not in card


def test_resume_equals_an_uninterrupted_run(finished_swin, pictures, tmp_path):
    """Inside the first epoch and after it; with stochastic depth."""
    whole, _ = finished_swin
    for step in (3, 4):
        cut = tmp_path / str(step)
        copy_checkpoint(whole, cut, f"checkpoint-{step}")
        pretrain("--train_dir", pictures, *HELD_OUT, output=cut, method=TINY_SWIN)
        assert logged_losses(cut) == logged_losses(whole)
        assert_equal_weights(whole, cut)


@pytest.mark.parametrize("source", ["pretraining", "."])
def test_continuing(finished_swin, pictures, tmp_path, source):
    """A full model brings its teacher and centers along, the plain Swin gets a new head; the learning rate is 0."""
    folder = shutil.copytree(finished_swin[0] / source, tmp_path / "source")
    options = ("--train_dir", pictures, "--model_name_or_path", folder, "--learning_rate", 0, "--momentum_teacher", 1)
    sizes = SWIN_SIZES.partition("norm_last_layer")[2] if source == "." else ""
    overrides = f"norm_last_layer{sizes}" if sizes else ""
    output = tmp_path / "run"
    pretrain(*options, "--config_overrides", overrides, output=output, method=TINY_SWIN)
    student = IBotSwinForPreTraining.from_pretrained(output / "pretraining")
    if source == ".":
        native = SwinModel.from_pretrained(folder).state_dict()
        # The teacher that was left there has no stochastic depth, a student does.
        assert student.config.layer_norm_eps == 1e-5 and student.config.drop_path_rate == 0.1
        for name, value in native.items():
            assert torch.equal(student.ibot.state_dict()[name], value), name
    else:
        expected = IBotSwinForPreTraining.from_pretrained(folder).state_dict()
        for name, value in student.state_dict().items():
            assert torch.equal(value, expected[name]), name
    picture = pictures / "test" / "dark" / "1.png"
    features = [teacher_features(run, picture) for run in (finished_swin[0], output)]
    if source == "pretraining":
        assert torch.equal(*features)


def test_masks_have_cells_of_the_last_stage(pictures, tmp_path, monkeypatch):
    seen = []

    class Recording(ibot_swin_method.IBotSwinRun):
        def build_collator(self, make_samples):
            collator = super().build_collator(make_samples)

            def collate(samples):
                batch = collator(samples)
                seen.append((tuple(batch["bool_masked_pos"].shape), tuple(batch["local_pixel_values"].shape)))
                return batch

            return collate

    monkeypatch.setattr(ibot_swin_method, "IBotSwinRun", Recording)
    options = ("--train_dir", pictures, "--max_steps", "1", "--global_crop_size", "40", "--warmup_epochs", "0")
    pretrain(*options, "--warmup_teacher_temp_epochs", "0", output=tmp_path / "run", method=TINY_SWIN)
    assert seen[0] == ((4, 2, 25), (4, 2, 3, 20, 20))
