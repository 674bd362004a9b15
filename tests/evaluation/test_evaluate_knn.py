"""`hf-mim evaluate knn`, from the command line's arguments to the JSON file."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from hf_mim import IBotConfig, IBotForPreTraining, IBotImageProcessorPil, IBotModel
from hf_mim.evaluation.evaluate_knn import evaluate_knn, main
from hf_mim.evaluation.features import extract_features
from hf_mim.evaluation.knn import knn_accuracy


COLORS = {"blue": (40, 60, 200), "green": (60, 180, 60), "red": (200, 60, 40)}
CONFIG = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
}
PROCESSOR = IBotImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def write_images(folder: Path, count: int, noise: int) -> None:
    random = np.random.default_rng(count)
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.array(color) + random.integers(-noise, noise + 1, (20, 24, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 6, noise=200)
    write_images(folder / "test", 4, noise=200)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    IBotModel(IBotConfig(**CONFIG, initializer_range=0.2)).save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return folder


def split_of(folder: Path) -> datasets.Dataset:
    names = sorted(COLORS)
    files = sorted(folder.rglob("*.png"))
    return datasets.Dataset.from_dict(
        {"image": [str(file) for file in files], "label": [names.index(file.parent.name) for file in files]}
    ).cast_column("image", datasets.Image(decode=False))


def test_table_and_file_hold_the_accuracies(encoder: Path, images: Path, tmp_path: Path, capsys):
    output = tmp_path / "new" / "metrics.json"
    arguments = ["--k", "1", "5", "--temperature", "0.1", "--batch_size", "5", "--output_file", str(output)]
    main([str(encoder), str(images), *arguments])

    model = IBotModel.from_pretrained(encoder)
    train = extract_features(model, split_of(images / "train"), PROCESSOR, progress=False)
    test = extract_features(model, split_of(images / "test"), PROCESSOR, progress=False)
    expected = knn_accuracy(*train, *test, k=[1, 5], temperature=0.1)
    assert 0 < expected["knn_5_top1"] < 100

    result = json.loads(output.read_text())
    settings = result.pop("settings")
    assert result == expected
    assert settings == {
        "model": str(encoder),
        "dataset": str(images),
        "dataset_config_name": None,
        "train_split": "train",
        "test_split": "test",
        "train_images": 18,
        "test_images": 12,
        "classes_in_train": 3,
        "feature_size": 24,
        "pooling": "auto",
        "temperature": 0.1,
    }
    assert [file.name for file in output.parent.iterdir()] == ["metrics.json"]

    title, header, *rows = capsys.readouterr().out.splitlines()
    assert title.endswith("12 images of test against 18 of train")
    assert header.split() == ["k", "top-1", "%", "top-5", "%"]
    assert [row.split() for row in rows] == [
        [str(k), f"{expected[f'knn_{k}_top1']:.2f}", f"{expected[f'knn_{k}_top5']:.2f}"] for k in (1, 5)
    ]


def test_a_loaded_model_and_a_pre_training_folder_give_the_same(encoder: Path, images: Path, tmp_path: Path):
    expected = evaluate_knn(encoder, images, ks=[3], progress=False)
    encoder_model = IBotModel.from_pretrained(encoder)
    loaded = evaluate_knn(encoder_model, images, PROCESSOR, ks=[3], progress=False)
    assert loaded["knn_3_top1"] == expected["knn_3_top1"]

    pretraining = IBotForPreTraining(IBotConfig(**CONFIG, out_dim=16, patch_out_dim=16))
    pretraining.ibot.load_state_dict(encoder_model.state_dict())
    pretraining.save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    assert evaluate_knn(tmp_path, images, ks=[3], progress=False)["knn_3_top1"] == expected["knn_3_top1"]


def test_a_bfloat16_checkpoint_is_run_in_float32(encoder: Path, images: Path, tmp_path: Path):
    IBotModel.from_pretrained(encoder).to(torch.bfloat16).save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    rounded = IBotModel.from_pretrained(tmp_path, dtype=torch.float32)
    expected = evaluate_knn(rounded, images, PROCESSOR, ks=[1, 3, 5], progress=False)
    result = evaluate_knn(tmp_path, images, ks=[1, 3, 5], progress=False)
    expected["settings"] = result["settings"]
    assert result == expected


def test_subsets_cover_the_classes_and_repeat(encoder: Path, images: Path):
    options = {"ks": [1], "max_train_samples": 9, "max_test_samples": 5, "progress": False}
    result = evaluate_knn(encoder, images, **options)
    assert result["settings"]["train_images"] == 9
    assert result["settings"]["test_images"] == 5
    assert result["settings"]["classes_in_train"] == 3  # the first nine images would be of two classes
    assert evaluate_knn(encoder, images, **options) == result


def test_photo_tiles(encoder: Path):
    pytest.importorskip("skimage")
    options = {"ks": [20], "batch_size": 256, "progress": False}
    result = evaluate_knn(encoder, "photo-tiles", max_train_samples=400, max_test_samples=100, **options)
    # chance is 1/18; an untrained encoder already tells many of the photographs apart by their colors
    assert 20 < result["knn_20_top1"] < 100


def test_a_native_vit_needs_no_pooler_unless_asked(images: Path, tmp_path: Path):
    model = ViTModel(ViTConfig(**CONFIG), add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    expected = evaluate_knn(model, images, PROCESSOR, ks=[1], progress=False)
    assert evaluate_knn(tmp_path, images, ks=[1], progress=False)["knn_1_top1"] == expected["knn_1_top1"]
    with pytest.raises(ValueError, match="lacks 2 weights, such as pooler.dense.bias"):
        main([str(tmp_path), str(images), "--k", "1", "--pooling", "pooler"])


def test_a_checkpoint_without_all_weights_is_refused(encoder: Path, images: Path, tmp_path: Path):
    PROCESSOR.save_pretrained(tmp_path)
    IBotModel.from_pretrained(encoder).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["layers.1.mlp.fc1.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights, such as layers.1.mlp.fc1.weight"):
        main([str(tmp_path), str(images)])


def test_folders_without_model_or_image_processor(encoder: Path, images: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=f"{tmp_path}: no model can be loaded"):
        main([str(tmp_path), str(images)])
    PROCESSOR.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}: no model can be loaded"):
        main([str(tmp_path), str(images)])
    (tmp_path / "preprocessor_config.json").unlink()
    IBotModel.from_pretrained(encoder).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}: no image processor can be loaded"):
        main([str(tmp_path), str(images)])
    with pytest.raises(ValueError, match="missing: there is no such folder"):
        main([str(tmp_path / "missing"), str(images)])
    with pytest.raises(ValueError, match="give its image_processor too"):
        evaluate_knn(IBotModel.from_pretrained(encoder), images)


def test_missing_splits_and_labels(encoder: Path, images: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="has no split 'validation', only test, train"):
        main([str(encoder), str(images), "--test_split", "validation"])
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (20, 20)).save(tmp_path / split / "unsorted.png")
    with pytest.raises(ValueError, match="the split train has no labels"):
        main([str(encoder), str(tmp_path)])


def test_classes_are_compared_by_name(encoder: Path, images: Path, tmp_path: Path, monkeypatch):
    """Each split numbers its classes in another way."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split, names in {"train": ["blue", "green", "red"], "test": ["blue", "red", "green"]}.items():
        dataset = split_of(images / split).cast_column("label", datasets.ClassLabel(names=names))
        dataset.to_parquet(tmp_path / f"{split}.parquet")
    result = evaluate_knn(encoder, tmp_path, ks=[3], outside_paths=True, progress=False)
    # Red has the number 1 in the second split and 2 among all classes in alphabetical order.
    renumbered = split_of(images / "test").map(lambda row: {"label": [0, 2, 1][row["label"]]})
    renumbered = renumbered.cast_column("label", datasets.ClassLabel(names=["blue", "green", "red"]))
    renumbered.to_parquet(tmp_path / "test.parquet")
    expected = evaluate_knn(encoder, tmp_path, ks=[3], outside_paths=True, progress=False)
    assert result["knn_3_top1"] == expected["knn_3_top1"] < 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--k", "0"], "--k: must be at least 1, got 0"),
        (["--temperature", "-1"], "--temperature: must be above 0, got -1"),
        (["--max_train_samples", "0"], "--max_train_samples: must be at least 1, got 0"),
    ],
)
def test_options_out_of_range(encoder: Path, images: Path, arguments, message):
    with pytest.raises(ValueError, match=message):
        main([str(encoder), str(images), *arguments])


def test_more_neighbors_than_images(encoder: Path, images: Path, capsys):
    """The table names the number of neighbors that vote, and so does the result."""
    few = {"max_train_samples": 9, "progress": False}
    expected = evaluate_knn(encoder, images, ks=[1, 9], **few)
    result = evaluate_knn(encoder, images, ks=[1, 9, 200], **few)
    assert result == expected
    main([str(encoder), str(images), "--k", "1", "200", "--max_train_samples", "9"])
    printed = capsys.readouterr().out
    assert "k = 200 is more than there are images of train: all 9 vote instead" in printed
    assert [line.split()[0] for line in printed.splitlines()[-2:]] == ["1", "9"]
