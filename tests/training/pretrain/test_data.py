"""Which images of a source are trained on, vote and are classified, and what is said about the others."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_mim.training.pretrain.data import load_data
from hf_mim.training.pretrain.options import DataArguments, ModelArguments
from hf_mim.training.run_pretrain import main
from tests.testing.tiny_training import TINY


CLASSES = ("ants", "bees", "wasps")


def write(folder: Path, count: int, start: int = 0) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        picture = np.random.default_rng(start + number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def insects(tmp_path_factory) -> Path:
    """`sorted/{train,test}/CLASS`, and `flat` without classes."""
    root = tmp_path_factory.mktemp("insects")
    for split, count in (("train", 5), ("test", 4)):
        for number, name in enumerate(CLASSES):
            write(root / "sorted" / split / name, count, 100 * number + 10 * count)
    write(root / "flat", 8, 1000)
    return root


def load(caplog, **options):
    with caplog.at_level(logging.INFO):
        data = load_data(DataArguments(**{name: str(value) for name, value in options.items()}), ModelArguments(), 0)
    return data, [record.getMessage() for record in caplog.records]


def test_one_image_beside_the_classes_is_trained_on_and_does_not_vote(insects, tmp_path, caplog):
    folder = tmp_path / "insects"
    write(folder / "test" / "ants", 2)
    for name in CLASSES:
        write(folder / "train" / name, 3)
    Image.new("RGB", (20, 24)).save(folder / "train" / "contact_sheet.png")
    data, lines = load(caplog, train_dir=folder, eval_split="test")
    assert (len(data.train), len(data.bank), len(data.queries)) == (10, 9, 2)
    assert sorted(data.bank["label"]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert lines == [
        f"1 images beside the folders of classes have no class, such as {folder}/train/contact_sheet.png",
        "1 training images have no label: they are trained on, and do not vote in the evaluation",
    ]


def test_an_unlabeled_evaluation_image_is_left_out(insects, tmp_path, caplog):
    folder = tmp_path / "test"
    for name in CLASSES:
        write(folder / name, 2)
    Image.new("RGB", (20, 24)).save(folder / "unknown.png")
    data, lines = load(caplog, train_dir=insects / "sorted" / "train", validation_dir=folder)
    assert (len(data.train), len(data.bank), len(data.queries)) == (15, 15, 6)
    assert lines[-1] == "1 evaluation images have no label and are left out of the evaluation"


def test_unlabeled_training_with_labeled_evaluation(insects, caplog):
    options = {"train_dir": insects / "flat", "validation_dir": insects / "sorted" / "test"}
    data, lines = load(caplog, **options)
    assert len(data.train) == 8 and "label" not in data.train.column_names
    assert sorted(data.bank["label"]) == sorted(data.queries["label"]) == [0, 0, 1, 1, 2, 2]
    paths = [row["image"]["path"] for part in (data.bank, data.queries) for row in part]
    assert sorted(paths) == sorted(map(str, (insects / "sorted" / "test").rglob("*.png")))
    assert lines == [
        "the training images have no labels: 6 of the 12 labeled evaluation images vote in the k-NN evaluation, for "
        "the other 6"
    ]
    again, _ = load(caplog, **options)
    assert again.bank["image"] == data.bank["image"]


def test_a_run_without_labels_of_its_own(insects, tmp_path):
    options = ("--train_dir", insects / "flat", "--validation_dir", insects / "sorted" / "test")
    options += ("--eval_strategy", "epoch", "--max_steps", "2", "--output_dir", tmp_path / "run")
    metrics = main([*TINY, *map(str, options)])
    assert 0 <= metrics["eval_knn_3_top1"] <= 100


def test_classes_in_different_folders_are_matched_by_name(insects, tmp_path, caplog):
    write(tmp_path / "wasps", 2)
    write(tmp_path / "flies", 1)
    data, lines = load(caplog, train_dir=insects / "sorted" / "train", validation_dir=tmp_path)
    names = data.queries.features["label"].names
    assert names == data.bank.features["label"].names == ["ants", "bees", "flies", "wasps"]
    assert [names[label] for label in data.queries["label"]] == ["flies", "wasps", "wasps"]
    assert [names[label] for label in data.bank["label"]] == sorted(CLASSES * 5)
    assert lines == ["no image of the training images is of class flies: evaluation images of these count as wrong"]


def test_plain_folders_of_training_images_are_no_classes(insects, tmp_path, caplog):
    """Scraped images in folders by month look like classes, which the evaluation images do not have."""
    for number, month in enumerate(("2026-01", "2026-02")):
        write(tmp_path / month, 3, 10 * number)
    data, lines = load(caplog, train_dir=tmp_path, validation_dir=insects / "sorted" / "test")
    assert (len(data.train), len(data.bank), len(data.queries)) == (6, 6, 6)
    assert lines == [
        "evaluation images have other classes than the training images: ants, bees, wasps, which none of the training "
        "images belongs to: 6 of the 12 labeled evaluation images vote in the k-NN evaluation, for the other 6"
    ]


def test_the_label_column_may_be_that_of_the_evaluation_images_alone(insects, tmp_path, caplog):
    write(tmp_path / "test", 4)
    rows = "".join(f"{number}.png,{'xy'[number % 2]}\n" for number in range(4))
    (tmp_path / "test" / "metadata.csv").write_text(f"file_name,kind\n{rows}")
    options = {"train_dir": insects / "flat", "label_column_name": "kind"}
    data, lines = load(caplog, **options, validation_dir=tmp_path / "test")
    assert data.queries.features["label"].names == ["x", "y"] and len(data.bank) == len(data.queries) == 2
    assert lines[0] == "the training images: label_column_name 'kind' does not exist; the columns are ['image']"
    with pytest.raises(ValueError, match="label_column_name 'kind' does not exist"):
        load(caplog, **options)


def test_a_test_split_with_one_image_of_each_word(tmp_path, caplog):
    """Five texts that are all different are words, because the training images have them, too."""
    words = ["ant", "bee", "fly", "moth", "wasp"]
    for split, count in (("train", 3), ("test", 1)):
        write(tmp_path / split, 5 * count)
        rows = "".join(f"{number}.png,{words[number % 5]}\n" for number in range(5 * count))
        (tmp_path / split / "metadata.csv").write_text(f"file_name,label\n{rows}")
    data, lines = load(caplog, train_dir=tmp_path, eval_split="test")
    assert data.queries.features["label"].names == words and sorted(data.queries["label"]) == [0, 1, 2, 3, 4]
    assert len(data.bank) == 15 and lines == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation_dir": "flat"}, "the evaluation images have no labels, which the k-NN evaluation needs"),
        (
            {"validation_dir": "single"},
            "evaluation images have other classes than the training images: mites, which none of the training images "
            "belongs to, and each class has only one labeled evaluation image",
        ),
        (
            {"train_dir": "flat", "validation_dir": "single"},
            "the training images have no labels, and each class has only one",
        ),
    ],
)
def test_what_cannot_be_evaluated(insects, tmp_path, change, message):
    write(tmp_path / "single" / "mites", 1)
    (tmp_path / "flat").symlink_to(insects / "flat")
    options = {"train_dir": str(insects / "sorted" / "train")} | {
        name: str(tmp_path / f) for name, f in change.items()
    }
    with pytest.raises(ValueError, match=message):
        load_data(DataArguments(**options), ModelArguments(), 0)
