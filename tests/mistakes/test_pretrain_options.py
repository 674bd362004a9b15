"""What does not fit together is one clear line of `hf-mim pretrain`, before any download or long work."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import SwinConfig, SwinModel

from hf_mim.training import run_pretrain
from hf_mim.training.pretrain import ibot as ibot_method
from tests.testing.mistakes import refusal
from tests.testing.tiny_training import SIZES, TINY


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """`pictures/` with splits and classes, `flat/` without; `table.parquet`; `empty/`; `text/` without a picture."""
    root = tmp_path_factory.mktemp("data")
    generator, rows = np.random.default_rng(0), []
    for split, count in (("train", 4), ("test", 2)):
        for name in ("dark", "light"):
            for number in range(count):
                picture = Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8))
                for file in (root / "pictures" / split / name / f"{number}.png", root / "flat" / f"{len(rows)}.png"):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    picture.save(file)
                buffer = io.BytesIO()
                picture.save(buffer, "PNG")
                rows.append({"photo": {"bytes": buffer.getvalue(), "path": None}, "kind": name, "number": number})
    datasets.Dataset.from_list(rows).to_parquet(root / "table.parquet")
    (root / "empty").mkdir()
    (root / "text").mkdir()
    (root / "text" / "notes.txt").write_text("no picture")
    return root


def forbid_weights(monkeypatch) -> None:
    """An AssertionError is no mistake of the user, so that the command line does not catch it."""
    monkeypatch.setattr(ibot_method, "load_for_pretraining", too_late)


def too_late(*args, **kwargs):
    raise AssertionError("too late")


SWIN = ("--model_type", "ibot_swin", "--config_overrides", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        # sizes
        (("--image_size", "18"), "image_size (18) must be a multiple of patch_size (4)"),
        (("--image_size", "16", "18"), "image_size ([16, 18]) must be a multiple of patch_size (4)"),
        (("--image_size", "16", "16", "16"), "image_size must be one number or (height, width)"),
        (("--patch_size", "0"), "patch_size must be at least 1, got 0"),
        (("--local_crop_size", "6"), "local_crop_size [6] must be a multiple of the patch size 4"),
        (("--local_crop_size", "2"), "local_crop_size [2] must be a multiple of the patch size 4"),
        (("--local_crop_size", "8", "8", "8"), "local_crop_size must be one number, or height and width"),
        (("--global_crop_size", "14"), "global_crop_size [14] must be a multiple of the patch size 4"),
        (("--global_crop_size", "0"), "global_crop_size [0] must be a multiple of the patch size 4"),
        (("--local_crops_scale", "0.3", "0.1"), "local_crops_scale must be (smallest, largest)"),
        (("--local_crops_number", "0", "--global_crops_number", "1"), "the CLS loss compares views"),
        (("--local_crops_number", "-1", "--global_crops_number", "3"), "local_crops_number must be at least 0"),
        # masks
        (("--pred_ratio", "0.9", "--pred_ratio_var", "0.2"), "pred_ratio 0.9 with pred_ratio_var 0.2 leaves [0, 1]"),
        (("--pred_ratio", "1.5", "--pred_ratio_var", "0"), "pred_ratio must lie in [0, 1], not 1.5"),
        (("--pred_ratio", "0.1"), "pred_ratio has 1 values and pred_ratio_var 2"),
        (("--global_crop_size", "4", "16"), "global views of 1 x 4 patches have no room for blocks"),
        # model
        (("--config_overrides", "out_dim=1"), "out_dim must be at least 2: with one prototype there is nothing"),
        (("--config_overrides", "shared_head=false,patch_out_dim=1"), "patch_out_dim must be at least 2"),
        (("--config_overrides", "hidden_size=16,num_attention_heads=3"), "multiple of num_attention_heads (3)"),
        (("--config_overrides", "hidden_size=16,num_attention_heads=0"), "num_attention_heads must be at least 1"),
        (("--config_overrides", "hiden_size=16"), "has no 'hiden_size', did you mean 'hidden_size'?"),
        (("--config_overrides", "hidden_size"), "config_overrides must be name=value"),
        (("--config_overrides", "hidden_size=wide"), "hidden_size"),
        (("--config_overrides", "head_norm=batch"), "head_norm must be one of"),
        (("--config_overrides", SIZES + ",use_mean_pooling=true"), "use_mean_pooling is for evaluation"),
        (("--model_type", "mae"), "model_type must be one of ibot"),
        # iBOT with a Swin Transformer
        (SWIN + ("--image_size", "32", "16"), "image_size ([32, 16]) must be square: Swin takes square images only"),
        (SWIN + ("--image_size", "16"), "image_size (16) must be at least 32: 4 stages halve the feature map"),
        (SWIN + ("--image_size", "36"), "global_crop_size [36, 36] must be a multiple of the masks' cells of 32"),
        (
            SWIN + ("--image_size", "64", "--global_crop_size", "48"),
            "[48] must be a multiple of the masks' cells of 32",
        ),
        (SWIN + ("--image_size", "64", "--local_crop_size", "20", "24"), "local_crop_size [20, 24] must be square"),
        (SWIN + ("--image_size", "64", "--global_crop_size", "32", "64"), "global_crop_size [32, 64] must be square"),
        (
            SWIN + ("--image_size", "64", "--local_crop_size", "18"),
            "local_crop_size [18] must be a multiple of the patch",
        ),
        (SWIN + ("--image_size", "64", "--config_overrides", "depths=[2,2]"), "got [2, 2] and [3, 6, 12, 24]"),
        (SWIN + ("--image_size", "64", "--config_overrides", "hidden_size=8"), "IBotSwinConfig has no 'hidden_size'"),
        (("--model_name_or_path", "./nowhere", "--config_overrides", ""), "nowhere"),
        # length of the run
        (("--warmup_teacher_temp_epochs", "3"), "warm-up ends after 3 epochs (warmup_teacher_temp_epochs 3"),
        (("--warmup_teacher_temp_epochs", "2", "--pred_start_epoch", "1"), "pred_start_epoch 1), the run after 2"),
        (("--warmup_epochs", "2"), "warm-up takes 2 epochs, the run only 2. This works: hf-mim pretrain --"),
        (
            ("--warmup_epochs", "2", "--warmup_teacher_temp_epochs", "3"),
            "--warmup_epochs 0.2 --warmup_teacher_temp_epochs 0 (or add --fit_schedules, which chooses these values)",
        ),
        (("--num_train_epochs", "0"), "num_train_epochs must be positive, got 0"),
        (("--streaming",), "a stream has no length: give --max_steps"),
        (
            ("--streaming", "--max_steps", "4", "--pred_start_epoch", "1"),
            "pred_start_epoch must be 0 with --streaming",
        ),
        # numbers
        (("--per_device_train_batch_size", "0"), "per_device_train_batch_size must be at least 1, got 0"),
        (("--per_device_train_batch_size", "-4"), "per_device_train_batch_size must be at least 1, got -4"),
        (("--per_device_train_batch_size", "four"), "-batch-size: invalid int value: 'four'"),
        (("--gradient_accumulation_steps", "0"), "gradient_accumulation_steps"),
        (("--dataloader_num_workers", "-1"), "dataloader_num_workers must not be negative, got -1"),
        (("--learning_rate", "-1"), "learning_rate must not be negative, got -1"),
        (("--momentum_teacher", "1.5"), "momentum_teacher must lie in [0, 1], got 1.5"),
        (("--teacher_temp", "0"), "teacher_temp must be positive, got 0.0"),
        (("--knn_temperature", "0"), "knn_temperature must be positive"),
        (("--knn_pooling", "max"), "invalid choice: 'max'"),
        (("--image_mean", "0.5"), "image_mean must have one number for each of the 3 channels, got 1"),
        (("--max_train_samples", "0"), "max_train_samples must be at least 1, got 0"),
        # options that exclude each other, or that nothing stands behind
        (("--dataset_name", "photo-tiles"), "either --train_dir FOLDER or --dataset_name NAME"),
        (("--train_val_split", "0.5", "--eval_split", "test"), "train_val_split holds out training images"),
        (("--train_val_split", "1.5"), "train_val_split must lie between 0 and 1, got 1.5"),
        (("--clean_list", "nowhere.txt"), "clean_list nowhere.txt does not exist"),
        (("--clean_list", __file__, "--streaming", "--max_steps", "4"), "leave out --streaming"),
        (("--remove_unused_columns", "true"), "remove_unused_columns must stay False"),
        (
            ("--load_best_model_at_end", "--metric_for_best_model", "knn_3_top1"),
            "load_best_model_at_end must stay False: it would",
        ),
        (("--push_to_hub",), "push_to_hub needs the repository: --hub_model_id ORGANIZATION/NAME"),
        (("--push_to_hub", "--hub_model_id", "name"), "must be ORGANIZATION/NAME or USER/NAME, got 'name'"),
        (
            ("--push_to_hub", "--hub_model_id", "org/name", "--hub_strategy", "every_save"),
            "hub_strategy must be 'end' or 'checkpoint', got 'every_save'",
        ),
        (
            ("--push_to_hub", "--hub_model_id", "org/name", "--hub_revision", "v1"),
            "hub_revision must stay unset: a result is uploaded to the main branch",
        ),
        (("--resume_from_checkpoint", "nowhere"), "resume_from_checkpoint must be 'latest' or a checkpoint"),
        (("--save_only_model",), "save_only_model must stay False"),
        (("--dataloader_persistent_workers", "--dataloader_num_workers", "1"), "dataloader_persistent_workers must"),
        (("--max_unreadable_fraction", "1.5"), "max_unreadable_fraction must lie in [0, 1]"),
        (("--metric_for_best_model", "knn_7_top1"), "metric_for_best_model must be one of knn_3_top1"),
        (("--pred_shpae", "rand"), "unknown option '--pred_shpae', did you mean '--pred_shape'?"),
        (("quickstart",), "unexpected argument 'quickstart'; a recipe comes before all options"),
    ],
)
def test_options_are_refused_before_data_and_weights_are_touched(
    data, tmp_path, capsys, monkeypatch, options, message
):
    forbid_weights(monkeypatch)
    monkeypatch.setattr("hf_mim.training.pretrain.data.load_image_dataset", too_late)
    output = tmp_path / "run"
    assert message in refusal(
        capsys, "pretrain", *TINY, "--train_dir", data / "pictures", "--output_dir", output, *options
    )
    assert not output.exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_absolute_embeddings": True}, "it has absolute position embeddings, and iBOT's Swin has none"),
        ({"layer_norm_eps": 1e-6}, "its norms have an epsilon of 1e-06, but 1e-05 in patch embedding and merging"),
        ({"window_size": 5}, "stage 2 has 4 x 4 patches at image_size 32, fewer than a window of 5 x 5"),
    ],
)
def test_plain_swins_that_compute_something_else_are_no_start(data, tmp_path, capsys, monkeypatch, fields, message):
    config = dict(embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4, image_size=32, patch_size=4)
    SwinModel(SwinConfig(**config | fields)).save_pretrained(tmp_path / "swin")
    forbid_weights(monkeypatch)
    options = (*SWIN, "--model_name_or_path", tmp_path / "swin", "--train_dir", data / "pictures")
    line = refusal(capsys, "pretrain", *TINY, "--image_size", "32", *options, "--output_dir", tmp_path / "run")
    assert f"the outputs of {tmp_path}/swin cannot be reproduced here: " in line and message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--train_dir", "{}/nowhere"), "train_dir {}/nowhere does not exist"),
        (("--train_dir", "{}/empty"), "no images, parquet files or tar shards in {}/empty"),
        (("--train_dir", "{}/text"), "no images, parquet files or tar shards in {}/text"),
        (("--train_dir", "{}/empty/*.png"), "{}/empty/*.png does not exist"),
        (("--train_dir", "{}/pictures", "--validation_dir", "{}/nowhere"), "validation_dir {}/nowhere does not exist"),
        (("--train_dir", "{}/pictures", "--eval_split", "nonsense"), "has no split 'nonsense', only test, train"),
        (("--train_dir", "{}/pictures", "--train_split", "nonsense"), "has no split 'nonsense', only test, train"),
        (("--train_dir", "{}/pictures", "--per_device_train_batch_size", "9"), "8 training images do not fill one"),
        (("--train_dir", "{}/pictures", "--max_train_samples", "3"), "3 training images do not fill one batch of 4"),
        # With --max_steps the epochs of the run are known from the data only.
        (
            ("--train_dir", "{}/pictures", "--max_steps", "4", "--warmup_teacher_temp_epochs", "3"),
            "warm-up ends after 3 epochs (warmup_teacher_temp_epochs 3 + pred_start_epoch 0), the run after 2. ",
        ),
        (
            ("--train_dir", "{}/pictures", "--max_steps", "4", "--warmup_epochs", "2"),
            "warm-up takes 4 steps, the run only 4. This works: hf-mim pretrain --",
        ),
        (("--train_dir", "{}/pictures", "--do_train", "false"), "an evaluation needs held-out images"),
        (("--train_dir", "{}/flat", "--train_val_split", "0.5"), "the evaluation images have no labels"),
        (("--train_dir", "{}/table.parquet", "--image_column_name", "image"), "'image' does not exist; the columns"),
        (("--train_dir", "{}/table.parquet", "--label_column_name", "label"), "'label' does not exist; the columns"),
        (("--train_dir", "{}/table.parquet", "--label_column_name", "photo"), "cannot be the labels: it holds"),
        (("--train_dir", "{}/table.parquet", "--image_column_name", "number"), "not images"),
        (("--dataset_name", "photo-tiles", "--train_split", "nonsense"), "photo-tiles has no split 'nonsense'"),
        (("--dataset_name", "./nowhere"), "dataset_name ./nowhere does not exist"),
        (("--dataset_name", "parquet"), "--dataset_name parquet reads a folder: give --train_dir, too"),
        ((), "give the images to train on, either --train_dir FOLDER or --dataset_name NAME"),
    ],
)
def test_data_are_refused_before_weights_are_made(data, tmp_path, capsys, monkeypatch, options, message):
    forbid_weights(monkeypatch)
    options = [option.format(data) for option in options]
    assert message.format(data) in refusal(capsys, "pretrain", *TINY, "--output_dir", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--config_overrides", SIZES + ",shared_head=false,patch_out_dim=8"), "shared_head_teacher"),
    ],
)
def test_what_only_the_trainer_knows_is_refused_before_the_first_step(data, tmp_path, capsys, options, message):
    line = refusal(
        capsys, "pretrain", *TINY, "--train_dir", data / "pictures", "--output_dir", tmp_path / "run", *options
    )
    assert message in line
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_one_image_per_batch_is_enough_for_batch_norm(data, tmp_path):
    """Its statistics are those of all tokens of a view, of which every view has two at least."""
    options = ("--per_device_train_batch_size", "1", "--config_overrides", SIZES + ",head_norm=bn")
    options += ("--global_crops_number", "1", "--local_crops_number", "1", "--local_crop_size", "4")
    options += ("--train_dir", str(data / "pictures"), "--max_steps", "3", "--warmup_epochs", "0")
    options += ("--warmup_teacher_temp_epochs", "0", "--output_dir", str(tmp_path))
    metrics = run_pretrain.main([*TINY, *options])
    assert np.isfinite(metrics["train_loss"])
