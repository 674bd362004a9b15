"""`hf-mim pretrain` from images to an encoder, on tiny models and generated images."""

import io
import json
import shutil
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoBackbone, AutoModel, AutoModelForPreTraining, ViTModel

import hf_mim_cli as cli
from hf_mim import IBotBackbone
from hf_mim.data.collators import IBotCollator
from hf_mim.hub.remote_code import add_code
from hf_mim.training import run_pretrain
from hf_mim.training.checkpoints import list_checkpoints
from hf_mim.training.pretrain import ibot as ibot_method
from hf_mim.training.pretrain.data import example_images
from hf_mim.training.pretrain.recipe_files import list_recipes
from hf_mim.training.trainer import MIMTrainer
from tests.testing.resuming import assert_equal_weights
from tests.testing.tiny_training import SHORT, SIZES, logged_losses, pretrain


def test_what_a_finished_run_leaves(finished):
    output, metrics = finished
    for name in ("curves.png", "attention.png"):
        with Image.open(output / name) as picture:
            picture.verify()
    facts = json.loads((output / "metrics.json").read_text())
    assert facts["steps"] == 8 and facts["train_images"] == 16 and facts["eval_images"] == 8
    assert facts["eval_knn_3_top1"] == metrics["eval_knn_3_top1"]
    assert 0 <= facts["initial_knn_3_top1"] <= 100
    # Dark and light pictures are told apart by their pixels alone.
    assert facts["raw_pixels_knn_3_top1"] == 100.0
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_knn_3_top1" in entry] == [0, 4, 8]
    logged = next(entry for entry in history if "loss" in entry)
    assert logged["loss"] == pytest.approx(logged["loss_cls"] + logged["loss_patch"], rel=1e-5)
    expected = {"teacher_momentum", "teacher_temp", "teacher_patch_temp", "weight_decay", "target_entropy"}
    assert expected | {"prototypes_used", "feature_std", "rankme", "agreement", "learning_rate"} <= logged.keys()
    assert logged["teacher_momentum"] == pytest.approx(0.996) and logged["teacher_temp"] == 0.04
    card = (output / "README.md").read_text()
    assert card.startswith("---\n") and "library_name: transformers" in card
    assert f"**{facts['eval_knn_3_top1']:.1f}**" in card and f'from_pretrained("{output}")' in card
    assert not [path.name for path in output.iterdir() if path.name.startswith(".")]


def test_encoder_loads_in_plain_transformers(finished, pictures):
    """In another process, without this package: same features as the teacher, nothing missing in the report."""
    output, _ = finished
    image = pictures / "test" / "dark" / "0.png"
    program = f"""
import sys, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
processor = AutoImageProcessor.from_pretrained({str(output)!r}, backend="pil")
model, info = AutoModel.from_pretrained({str(output)!r}, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
assert "hf_mim" not in sys.modules
with torch.no_grad():
    out = model(**processor(Image.open({str(image)!r}), return_tensors="pt"))
torch.save((out.last_hidden_state, out.pooler_output), {str(output / "features.pt")!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=output)
    hidden, pooled = torch.load(output / "features.pt")
    (output / "features.pt").unlink()
    teacher = AutoModel.from_pretrained(output / "pretraining", subfolder="teacher").eval()
    from hf_mim import IBotImageProcessorPil

    processor = IBotImageProcessorPil.from_pretrained(output / "pretraining")
    with torch.no_grad():
        expected = teacher(**processor(Image.open(image), return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-5)
    assert torch.equal(pooled, hidden[:, 0])


def test_a_folder_gives_a_backbone_by_its_class(finished):
    """AutoBackbone takes ids of the Hub only; docs/hub.md says what works."""
    folder = finished[0] / "pretraining"
    with pytest.raises(Exception, match="Repo id must be in the form"):
        AutoBackbone.from_pretrained(str(folder))
    backbone = IBotBackbone.from_pretrained(folder, out_features=["stage1", "stage2"])
    maps = backbone(torch.zeros(1, 3, 16, 16)).feature_maps
    assert [tuple(one.shape) for one in maps] == [(1, 16, 4, 4)] * 2
    whole = AutoModelForPreTraining.from_pretrained(folder).state_dict()
    loaded = backbone.state_dict()["ibot.embeddings.cls_token"]
    assert torch.equal(loaded, whole["ibot.embeddings.cls_token"])


def test_a_finished_run_is_left_alone(finished, pictures, capsys):
    output, _ = finished
    before = (output / "metrics.json").read_bytes()
    assert pretrain("--train_dir", pictures, output=output) == {}
    assert "This run is finished" in capsys.readouterr().out
    assert (output / "metrics.json").read_bytes() == before


def test_a_failing_evaluation_loses_no_step(pictures, tmp_path, monkeypatch):
    """Trainer evaluates before it saves."""

    def fail(self, eval_dataset):
        if self.state.global_step:
            raise ValueError("an evaluation that fails")
        return {}

    monkeypatch.setattr(MIMTrainer, "measure", fail)
    options = ("--train_dir", pictures, "--eval_split", "test", "--eval_strategy", "epoch", "--save_strategy", "epoch")
    with pytest.raises(ValueError, match="an evaluation that fails"):
        pretrain(*options, output=tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-4"]
    monkeypatch.undo()
    pretrain(*options, output=tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["steps"] == 8


def test_results_go_to_a_folder_named_after_recipe_and_images(tmp_path, monkeypatch):
    """The quick start on own images follows the quick start itself, whose folder is taken."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cells.v2").mkdir()
    for options, folder in (
        ((), "runs/quickstart"),
        (("--train_dir", "cells.v2/"), "runs/quickstart-cells"),
        (("--dataset_name", "org/photos"), "runs/quickstart-photos"),
        (("--train_dir=cells.v2", "--output_dir", "here"), "here"),
    ):
        assert run_pretrain.parse_arguments(["quickstart", *options]).args.output_dir == folder


def test_a_finished_run_on_other_images_is_no_obstacle(finished, pictures, tmp_path):
    (tmp_path / "others").symlink_to(pictures)
    with pytest.raises(ValueError, match="holds a finished run on pictures.*, and this command trains on others"):
        pretrain("--train_dir", tmp_path / "others", output=finished[0])


def test_a_finished_run_goes_on_with_more_steps(finished, pictures, tmp_path):
    """Where nothing depends on the length of the run, it equals one that was as long from the start."""
    constant = ("--train_dir", pictures, "--lr_scheduler_type", "constant", "--momentum_teacher", "1")
    constant += ("--weight_decay_end", "0.04", "--save_strategy", "epoch", "--warmup_teacher_temp_epochs", "0")
    long, short = tmp_path / "long", tmp_path / "short"
    pretrain(*constant, "--max_steps", 6, output=long)
    pretrain(*constant, "--max_steps", 4, output=short)
    pretrain(*constant, "--max_steps", 6, output=short)
    assert json.loads((short / "metrics.json").read_text())["steps"] == 6
    assert_equal_weights(long, short)
    pretrain(*constant, "--max_steps", -1, "--num_train_epochs", 2, output=short)
    assert json.loads((short / "metrics.json").read_text())["steps"] == 8
    assert pretrain(*constant, "--max_steps", -1, "--num_train_epochs", 2, output=short) == {}


def test_a_finished_run_without_a_checkpoint(pictures, tmp_path):
    pretrain("--train_dir", pictures, "--max_steps", 2, *SHORT, output=tmp_path)
    with pytest.raises(ValueError, match="is finished after 2 steps, and it has no checkpoint to continue from: pass"):
        pretrain("--train_dir", pictures, "--max_steps", 3, *SHORT, output=tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics.json is damaged: restore it, or remove it to train on"):
        pretrain("--train_dir", pictures, "--max_steps", 3, *SHORT, output=tmp_path)


@pytest.mark.parametrize("source", ["pretraining", "checkpoint-8", ".", "pretraining/teacher"])
def test_continue_from(finished, pictures, tmp_path, source):
    """A full model brings its teacher and centers along, an encoder gets a new head; the learning rate is 0 here."""
    folder, output = shutil.copytree(finished[0] / source, tmp_path / "source"), tmp_path / "run"
    if source == "pretraining":
        add_code(folder)
    options = ("--train_dir", pictures, "--model_name_or_path", folder, "--learning_rate", 0, "--momentum_teacher", 1)
    sizes = SIZES.partition("out_dim")[2] if source == "." else ""
    pretrain(*options, "--config_overrides", f"out_dim{sizes}" if sizes else "", output=output)
    student = AutoModelForPreTraining.from_pretrained(output / "pretraining")
    teacher = AutoModelForPreTraining.from_pretrained(output / "pretraining", subfolder="teacher")
    if source == ".":
        native = ViTModel.from_pretrained(folder, add_pooling_layer=False).state_dict()
        for name, value in native.items():
            assert torch.equal(student.ibot.state_dict()[name], value), name
        return
    # What this run saves may not name code that lies beside the model it continues from.
    assert not any("auto_map" in file.read_text() for file in output.rglob("*.json"))
    expected = AutoModelForPreTraining.from_pretrained(folder).state_dict()
    for name, value in student.state_dict().items():
        assert torch.equal(value, expected[name]), name
    if source != "pretraining/teacher":
        expected = AutoModelForPreTraining.from_pretrained(folder, subfolder="teacher").state_dict()
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_tensorboard_gets_every_figure(pictures, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    pretrain("--train_dir", pictures, "--report_to", "tensorboard", output=tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    figures = {tag.removeprefix("train/") for tag in events.Tags()["scalars"]}
    assert {"loss_cls", "loss_patch", "teacher_momentum", "target_entropy", "rankme", "prototypes_used"} <= figures
    logged = [event.value for event in events.Scalars("train/loss")]
    assert logged == pytest.approx(logged_losses(tmp_path / "run"), rel=1e-6)


def test_evaluation_alone(finished, pictures, tmp_path):
    folder = finished[0] / "pretraining"
    options = ("--train_dir", pictures, "--eval_split", "test", "--do_train", "false", "--model_name_or_path", folder)
    metrics = pretrain(*options, "--config_overrides", "", output=tmp_path)
    assert metrics["eval_knn_3_top1"] == finished[1]["eval_knn_3_top1"]
    assert not (tmp_path / "metrics.json").exists()


def test_flat_folder_without_classes(pictures, tmp_path, caplog):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, file in enumerate(sorted(pictures.glob("train/*/*.png"))):
        shutil.copy(file, flat / f"{i}.png")
    pretrain("--train_dir", flat, "--eval_strategy", "epoch", output=tmp_path / "run")
    assert "the evaluation is left out" in caplog.text
    assert "no labels to evaluate" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize(
    "options",
    [("--dataloader_num_workers", 2), ("--streaming", "--max_steps", 8, "--warmup_steps", 1)],
    ids=["folder", "stream"],
)
def test_an_unreadable_image_is_replaced_named_once_and_counted(pictures, tmp_path, caplog, options):
    data = shutil.copytree(pictures, tmp_path / "data")
    (data / "train" / "dark" / "3.png").write_bytes(b"no image")
    options = ("--train_dir", data, "--max_unreadable_fraction", 0.1, *options)
    metrics = pretrain(*options, output=tmp_path / "run")
    assert np.isfinite(metrics["train_loss"])
    # Both epochs meet it.
    assert caplog.text.count("dark/3.png: not an image in a known format (8 bytes)") == 1
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert [entry["data/unreadable"] for entry in history if "loss" in entry][-1] == 1
    with Image.open(tmp_path / "run" / "attention.png") as picture:
        picture.verify()


def test_too_many_unreadable_images_stop_the_run(pictures, tmp_path):
    data = shutil.copytree(pictures, tmp_path / "data")
    for number in (3, 5):
        (data / "train" / "dark" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="of 16 images cannot be read, more than --max_unreadable_fraction 0.05"):
        pretrain("--train_dir", data, "--max_unreadable_fraction", 0.05, output=tmp_path / "run")


def test_a_clean_list_leaves_out_what_it_does_not_name(pictures, tmp_path):
    """The neighbors of the evaluation are training images, so it also keeps unreadable ones from them."""
    data = shutil.copytree(pictures, tmp_path / "data")
    (data / "train" / "dark" / "3.png").write_bytes(b"no image")
    listed = tmp_path / "clean.txt"
    assert cli.main(["check-data", str(data), "--num_workers", "1", "--write_clean_list", str(listed)]) == 1
    options = ("--train_dir", data, "--eval_split", "test", "--clean_list", listed, "--max_steps", 2, *SHORT)
    metrics = pretrain(*options, output=tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (facts["train_images"], facts["bank_images"], facts["eval_images"]) == (15, 15, 8)
    assert "eval_knn_3_top1" in metrics
    with pytest.raises(ValueError, match="clean.txt is of other images than these: it begins with '.* 16 in all"):
        pretrain(*options, "--train_split", "test", "--eval_split", "train", output=tmp_path / "other")


def test_held_out_part_of_the_training_images(pictures, tmp_path):
    options = ("--train_dir", pictures, "--train_val_split", 0.25, "--max_steps", 2, "--warmup_steps", 1)
    metrics = pretrain(*options, "--warmup_teacher_temp_epochs", 0, output=tmp_path)
    facts = json.loads((tmp_path / "metrics.json").read_text())
    assert (facts["train_images"], facts["bank_images"], facts["eval_images"]) == (12, 12, 4)
    assert "eval_knn_3_top1" in metrics


def test_stream(pictures, tmp_path):
    options = ("--train_dir", pictures, "--streaming", "--max_steps", 6, "--warmup_steps", 1)
    metrics = pretrain(*options, output=tmp_path)
    facts = json.loads((tmp_path / "metrics.json").read_text())
    # Six batches of four out of sixteen images: the stream is begun a second time.
    assert facts["steps"] == 6 and facts["train_images"] is None and np.isfinite(metrics["train_loss"])


def test_a_stream_of_fewer_images_stays_with_them(pictures, tmp_path, monkeypatch):
    seen = set()
    monkeypatch.setattr(ibot_method, "IBotCollator", lambda *args: RecordingCollator(seen, *args))
    # The picture of the masks is made of other images than the batches.
    monkeypatch.setattr("hf_mim.training.pretrain.outputs._draw_masks", lambda *args: [])
    options = ("--train_dir", pictures, "--streaming", "--max_train_samples", 5, "--max_steps", 6, "--warmup_steps", 1)
    pretrain(*options, output=tmp_path)
    assert len({index for index, _ in seen}) == 5
    assert {epoch for _, epoch in seen} == {0, 1, 2, 3, 4, 5}


class RecordingCollator(IBotCollator):
    def __init__(self, seen, *args):
        super().__init__(*args)
        self.seen = seen

    def __call__(self, samples):
        self.seen.update((sample["index"], sample["epoch"]) for sample in samples)
        return super().__call__(samples)


def test_example_pictures_are_readable_ones_with_something_on_them():
    """
    Of six images around each place, the one with the most detail; damaged ones do not end a run when all that is left
    is to write its results.
    """
    rows = []
    for level in range(0, 240, 20):
        picture = np.zeros((16, 16), np.uint8)
        picture[:8] = level
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    rows[0] = rows[11] = {"bytes": b"no image", "path": None}
    features = datasets.Features({"image": datasets.Image(decode=False)})
    dataset = datasets.Dataset.from_dict({"image": rows}, features=features)
    for source in (dataset, dataset.to_iterable_dataset()):
        images = example_images(source, num_channels=1, count=4)
        assert [image.getpixel((0, 0)) for image in images] == [120, 140, 180, 200] and images[0].mode == "L"


def test_accumulated_batches_equal_one_batch(pictures, tmp_path):
    """Centers included: they move once per step. Stochastic depth would draw differently."""
    overrides = ("--config_overrides", SIZES + ",drop_path_rate=0.0", "--train_dir", pictures)
    pretrain(*overrides, "--per_device_train_batch_size", 8, output=tmp_path / "one")
    pretrain(*overrides, "--gradient_accumulation_steps", 2, output=tmp_path / "two")
    assert logged_losses(tmp_path / "two") == pytest.approx(logged_losses(tmp_path / "one"), rel=2e-5)
    centers = [load_file(tmp_path / run / "pretraining/teacher/centers.safetensors") for run in ("one", "two")]
    for name, value in centers[0].items():
        torch.testing.assert_close(centers[1][name], value, rtol=1e-4, atol=1e-6)


def test_a_run_too_short_to_log_anything(pictures, tmp_path, capsys):
    pretrain("--train_dir", pictures, "--max_steps", 2, "--logging_steps", 10, *SHORT, output=tmp_path)
    assert not (tmp_path / "curves.png").exists() and "curves.png" not in (tmp_path / "README.md").read_text()
    printed = capsys.readouterr().out
    assert "attention.png" in printed and "curves.png" not in printed
    assert json.loads((tmp_path / "metrics.json").read_text())["steps"] == 2


def test_command_line_overrides_are_added_to_those_of_the_recipe(tmp_path):
    options = ["--train_dir", "images", "--output_dir", str(tmp_path)]
    config = run_pretrain.parse_arguments(["ibot-vits16", "--config_overrides", "out_dim=99", *options]).config
    assert config.hidden_size == 384 and config.out_dim == 99


def test_continuing_keeps_the_normalization(finished, pictures, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    options = ("--train_dir", pictures, "--max_steps", 1, *SHORT)
    pretrain(*options, "--image_mean", *[0.4] * 3, "--image_std", *[0.3] * 3, output=first)
    sizes = "out_dim" + SIZES.partition("out_dim")[2]
    pretrain(*options, "--model_name_or_path", first, "--config_overrides", sizes, output=second)
    processor = json.loads((second / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.4] * 3 and processor["image_std"] == [0.3] * 3


def test_evaluation_images_of_other_classes_vote_among_themselves(pictures, tmp_path, caplog):
    for name in ("dark", "light"):
        shutil.copytree(pictures / "test" / name, tmp_path / "validation" / f"very {name}")
    options = ("--train_dir", pictures, "--validation_dir", tmp_path / "validation", "--max_steps", 1, *SHORT)
    with caplog.at_level("INFO"):
        metrics = pretrain(*options, output=tmp_path / "run")
    assert metrics["eval_knn_3_top1"] >= 0
    assert "vote" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        ("--image_size", "16", "24", "--local_crop_size", "8", "12"),
        ("--config_overrides", SIZES + ",num_channels=1"),
        ("--config_overrides", SIZES + ",shared_head=false"),
        ("--config_overrides", SIZES + ",head_norm=bn"),
        ("--local_crops_number", "0", "--grad_clip", "global", "--optim", "sgd"),
        ("--pred_start_epoch", "1", "--warmup_teacher_temp_epochs", "0", "--lr_scheduler_type", "linear"),
        ("--gradient_accumulation_steps", "2", "--dataloader_num_workers", "1", "--color_augmentation", "false"),
        ("--pred_shape", "rand", "--pred_ratio", "0.5", "--pred_ratio_var", "0.1", "--activation_checkpointing"),
        ("--bf16", "--max_grad_norm", "0", "--global_crops_number", "3", "--attn_implementation", "eager"),
        ("--config_overrides", SIZES + ",head_norm=ln,layer_scale_init_value=0.1,hidden_dropout_prob=0.1"),
        ("--config_overrides", SIZES + ",head_norm=syncbn", "--dataloader_num_workers", "1"),
        ("--config_overrides", SIZES.replace("size=8", "size=0") + ",head_num_layers=2", "--global_crops_number", "1"),
        ("--torch_compile", "--torch_compile_backend", "aot_eager", "--max_train_samples", "8"),
    ],
    ids=[
        *("non-square", "gray", "separate heads", "batch norm", "sgd", "late masks", "accumulation", "rand"),
        *("bf16", "layer norm", "syncbn", "no bottleneck", "compile"),
    ],
)
def test_options_train_and_export(pictures, tmp_path, options):
    metrics = pretrain("--train_dir", pictures, *options, output=tmp_path)
    assert np.isfinite(metrics["train_loss"])
    encoder, info = ViTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and all(torch.isfinite(p).all() for p in encoder.parameters())


@pytest.mark.parametrize("recipe", list_recipes())
def test_recipes_fit_the_options(recipe, tmp_path, vision_model, tokenizer):
    """With the numbers of parameters that the authors' models have."""
    options = [] if recipe.endswith("quickstart") else ["--train_dir", "images"]
    if recipe.startswith("vqkd"):
        options += ["--teacher_model_name_or_path", str(vision_model)]
    elif recipe.startswith("beitv2"):
        options += ["--tokenizer_name_or_path", str(tokenizer[0]), "--config_overrides", "vocab_size=8192"]
    elif recipe == "dbot-vitb16-clip":
        options += ["--teacher_model_name_or_path", str(vision_model), "--teacher_feature", "normed"]
    method = run_pretrain.parse_arguments([recipe, *options, "--output_dir", str(tmp_path)])
    method.build_views()
    method.build_collator(None)
    with torch.device("meta"):
        model = method.build_model()
    published = {"ibot-vits16": 21_666_048, "ibot-vitb16": 85_799_424, "ibot-vitl16": 303_302_656}
    published |= {"ibot-swint7": 27_519_450, "ibot-swint14": 27_569_850}
    published |= dict.fromkeys(("beitv2-vitb16", "beitv2-vitb16-300e"), 106_143_056)
    published |= dict.fromkeys(("beitv2-vitl16", "beitv2-vitl16-300e"), 336_728_512)
    published["dbot-vitb16-clip"] = 85_666_128
    # Without the original's tables of positions, in which nothing is learned.
    published["dbot-vitb16"] = 111_907_840 - 197 * (768 + 512)
    published["dbot-vitl16"] = 329_673_216 - 197 * (1024 + 512)
    published["dbot-vith14"] = 657_429_504 - 257 * (1280 + 512)
    if recipe in published:
        whole = recipe.startswith("beitv2") or model.config.model_type == "dbot"
        part = model if whole else model.base_model
        assert sum(p.numel() for p in part.parameters()) == published[recipe]


def test_a_rate_per_256_images_beats_that_of_the_recipe(tokenizer, tmp_path):
    options = ["--train_dir", "images", "--tokenizer_name_or_path", str(tokenizer[0]), "--output_dir", str(tmp_path)]
    assert run_pretrain.parse_arguments(["beitv2-vitb16", *options]).args.learning_rate == 1.5e-3
    options += ["--base_learning_rate", "0.0001", "--use_cpu"]
    assert run_pretrain.parse_arguments(["beitv2-vitb16", *options]).args.learning_rate == 0.5e-4
    options += ["--learning_rate", "0.003"]
    assert run_pretrain.parse_arguments(["beitv2-vitb16", *options]).args.learning_rate == 3e-3
