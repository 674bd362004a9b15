"""The same pictures through every kind of source: folders, shards, local data sets, streamed or not."""

import io
import json
import os
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value
from PIL import Image as PIL

from hf_mim.data.images import decode_image
from hf_mim.data.sources import load_image_dataset


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test reads or fills the user's cache, or reaches for the Hub."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def encode(value: int, format: str = "PNG") -> bytes:
    """A picture of one gray value."""
    buffer = io.BytesIO()
    PIL.new("RGB", (9, 7), (value, value, value)).save(buffer, format)
    return buffer.getvalue()


def write(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(value, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"))
    return path


def write_parquet(path: Path, values: list[int], **columns) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": encode(value), "path": f"{value}.png"} for value in values]
    features = Features({"image": Image(), **{name: feature for name, (feature, _) in columns.items()}})
    data = {"image": images, **{name: content for name, (_, content) in columns.items()}}
    Dataset.from_dict(data, features=features).to_parquet(path)
    return path


def write_tar(path: Path, values: list[int], extension: str = "png", with_class: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for value in values:
            members = {extension: encode(value, "JPEG" if extension.lower() == "jpg" else "PNG")}
            if with_class:
                members["cls"] = str(value % 3).encode()
            for name, content in members.items():
                info = tarfile.TarInfo(f"folder/{value:05d}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def values(dataset) -> list[int]:
    """The gray value of every picture, in order."""
    return [int(np.asarray(decode_image(row["image"]))[3, 4, 0]) for row in dataset]


def labels(dataset) -> list[int]:
    return [row["label"] for row in dataset]


def load_both(**arguments):
    """The data set, after checking that a stream of it holds the same rows in the same order."""
    dataset = load_image_dataset(**arguments)
    stream = load_image_dataset(**arguments, streaming=True)
    assert isinstance(dataset, Dataset) and isinstance(stream, IterableDataset)
    assert stream.features == dataset.features and dataset.features["image"] == Image(decode=False)
    assert set(dataset.column_names) <= {"image", "label"}
    assert values(stream) == values(dataset)
    if "label" in dataset.column_names:
        assert labels(stream) == labels(dataset)
    return dataset


# --------------------------------------------------------------------------- folders of images


def test_a_flat_folder_has_no_labels(tmp_path):
    for name, value in [("b.PNG", 20), ("a.jpeg", 10), ("ça va 画.png", 40), ("c d.JPG", 30)]:
        write(tmp_path / name, value)
    write(tmp_path / ".hidden.png", 99)
    write(tmp_path / ".cache" / "x.png", 99)
    (tmp_path / "notes.txt").write_text("no picture")
    dataset = load_both(data_dir=str(tmp_path))
    assert dataset.column_names == ["image"]
    assert values(dataset) == [10, 20, 30, 40]


def test_sub_folders_are_classes_at_any_depth(tmp_path):
    write(tmp_path / "dog" / "deep" / "er" / "1.png", 10)
    write(tmp_path / "dog" / "2.png", 20)
    write(tmp_path / "Äpfel und Birnen" / "3.PNG", 30)
    write(tmp_path / "cat" / "4.png", 40)
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").write_text("not a picture")
    dataset = load_both(data_dir=str(tmp_path))
    assert dataset.features["label"] == ClassLabel(names=["cat", "dog", "Äpfel und Birnen"])
    assert dict(zip(values(dataset), labels(dataset), strict=True)) == {10: 1, 20: 1, 30: 2, 40: 0}


def test_a_single_class_is_a_class(tmp_path):
    write(tmp_path / "only" / "1.png", 10)
    assert load_both(data_dir=str(tmp_path)).features["label"].names == ["only"]


def test_pictures_beside_the_folders_have_no_class(tmp_path):
    write(tmp_path / "dog" / "1.png", 10)
    write(tmp_path / "eel" / "2.png", 20)
    write(tmp_path / "loose.png", 30)
    notes: list[str] = []
    dataset = load_both(data_dir=str(tmp_path), notes=notes)
    assert values(dataset) == [10, 20, 30] and labels(dataset) == [0, 1, None]
    line = f"1 images beside the folders of classes have no class, such as {tmp_path}/loose.png"
    assert notes == [line, line]


def test_a_folder_of_thumbnails_is_no_class(tmp_path):
    """With more images beside the sub-folders than in them, these are not sorted into classes."""
    write(tmp_path / "thumbnails" / "1.png", 10)
    for value in (20, 30):
        write(tmp_path / f"{value}.png", value)
    assert load_both(data_dir=str(tmp_path)).column_names == ["image"]


def test_split_folders_share_their_classes(tmp_path):
    for split, names in {"train": "abc", "val": "ac", "test": "d"}.items():
        for name in names:
            write(tmp_path / split / name / "x.png", 10 * "abcd".index(name))
    for split, expected in {"train": [0, 1, 2], "val": [0, 2], "validation": [0, 2], "test": [3]}.items():
        dataset = load_both(data_dir=str(tmp_path), split=split)
        assert dataset.features["label"].names == ["a", "b", "c", "d"]
        assert labels(dataset) == expected and values(dataset) == [10 * label for label in expected]


def test_an_unlabelled_split_does_not_disturb_the_others(tmp_path):
    write(tmp_path / "train" / "a" / "1.png", 10)
    write(tmp_path / "test" / "2.png", 20)
    assert load_both(data_dir=str(tmp_path)).features["label"].names == ["a"]
    assert load_both(data_dir=str(tmp_path), split="test").column_names == ["image"]


def test_a_split_folder_may_have_any_name(tmp_path):
    write(tmp_path / "unlabeled2017" / "1.png", 10)
    write(tmp_path / "other" / "2.png", 20)
    assert values(load_both(data_dir=str(tmp_path), split="unlabeled2017")) == [10]


def test_links_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path / "elsewhere" / "1.png", 10)
    folder = tmp_path / "data"
    write(folder / "b" / "2.png", 20)
    os.symlink(tmp_path / "elsewhere", folder / "a")
    os.symlink(folder, folder / "b" / "circle")
    dataset = load_both(data_dir=str(folder))
    assert values(dataset) == [10, 20] and labels(dataset) == [0, 1]


def test_relative_and_home_folders(tmp_path, monkeypatch):
    write(tmp_path / "pictures" / "a" / "1.png", 10)
    monkeypatch.chdir(tmp_path / "pictures")
    monkeypatch.setenv("HOME", str(tmp_path))
    for data_dir in (".", "~/pictures", "../pictures/"):
        dataset = load_both(data_dir=data_dir)
        assert values(dataset) == [10] and dataset.features["label"].names == ["a"]
        assert dataset[0]["image"]["path"] == str(tmp_path / "pictures" / "a" / "1.png")


def test_a_glob_of_images(tmp_path):
    for value in (10, 20, 30):
        write(tmp_path / f"{'ab'[value == 30]}{value}.png", value)
    assert values(load_both(data_dir=str(tmp_path / "a*.png"))) == [10, 20]


def test_a_streamed_folder_is_shared_among_workers(tmp_path):
    for value in range(128):
        write(tmp_path / f"{value:03d}.png", value)
    stream = load_image_dataset(data_dir=str(tmp_path), streaming=True)
    assert stream.num_shards == 64
    parts = [values(stream.shard(num_shards=4, index=index)) for index in range(4)]
    assert parts == [list(range(32 * index, 32 * index + 32)) for index in range(4)]


# --------------------------------------------------------------------------- parquet and tar shards


def test_parquet_shards_carry_the_split_in_their_names(tmp_path):
    label = ClassLabel(names=["x", "y"])
    for index, name in enumerate(["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"]):
        write_parquet(tmp_path / f"{name}.parquet", [10 * index, 10 * index + 1], label=(label, [0, 1]))
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    train = load_both(data_dir=str(tmp_path))
    assert values(train) == [0, 1, 10, 11] and labels(train) == [0, 1, 0, 1]
    assert train.features["label"] == label
    assert values(load_both(data_dir=str(tmp_path), split="test")) == [20, 21]
    assert values(load_both(data_dir=str(tmp_path / "train-*.parquet"))) == [0, 1, 10, 11]
    assert values(load_both(data_dir=str(tmp_path / "train-00001-of-00002.parquet"))) == [10, 11]
    with pytest.raises(ValueError, match="has no split 'validation', only test, train"):
        load_image_dataset(data_dir=str(tmp_path), split="validation")


def test_parquet_in_split_folders_and_odd_folders(tmp_path):
    root = tmp_path / "odd [1] näme"
    write_parquet(root / "train" / "data.parquet", [10])
    write_parquet(root / "val" / "train-like.parquet", [20])
    assert values(load_both(data_dir=str(root))) == [10]
    assert values(load_both(data_dir=str(root), split="validation")) == [20]


def test_plain_parquet_without_feature_types(tmp_path):
    table = pa.table(
        {
            "id": [1, 2],
            "img": [{"bytes": encode(10), "path": None}, {"bytes": encode(20), "path": None}],
            "raw": [encode(30), encode(40)],
            "label": ["a", "b"],
        }
    )
    pq.write_table(table, tmp_path / "data.parquet")
    dataset = load_image_dataset(data_dir=str(tmp_path))
    assert values(dataset) == [10, 20] and dataset.features["label"].names == ["a", "b"]
    assert values(load_image_dataset(data_dir=str(tmp_path), image_column_name="raw")) == [30, 40]
    notes: list[str] = []
    stream = load_image_dataset(data_dir=str(tmp_path), streaming=True, notes=notes)
    assert values(stream) == [10, 20] and stream.column_names == ["image"]
    assert notes == ["column 'label' has words, of which a stream makes no labels"]


@pytest.mark.parametrize("extension", ["png", "jpg", "JPG"])
def test_webdataset_shards(tmp_path, extension):
    for shard in range(3):
        write_tar(tmp_path / f"set-train-{shard:04d}.tar", [10 * shard + i for i in range(4)], extension)
    write_tar(tmp_path / "set-val-0000.tar", [77], extension)
    dataset = load_both(data_dir=str(tmp_path))
    expected = [10 * shard + i for shard in range(3) for i in range(4)]
    assert values(dataset) == expected and labels(dataset) == [value % 3 for value in expected]
    assert values(load_both(data_dir=str(tmp_path), split="validation")) == [77]
    assert load_image_dataset(data_dir=str(tmp_path), streaming=True).num_shards == 3


def test_webdataset_without_classes(tmp_path):
    write_tar(tmp_path / "00.tar", [5, 6], with_class=False)
    dataset = load_both(data_dir=str(tmp_path))
    assert dataset.column_names == ["image"] and values(dataset) == [5, 6]


def test_cifar_parquet_folder(shared_data):
    for split, count in (("train", 14_000), ("test", 3_000)):
        dataset = load_image_dataset(data_dir=str(shared_data / "cifar10_mini"), split=split)
        assert len(dataset) == count and dataset.column_names == ["image", "label"]
        assert dataset.features["label"].names[:2] == ["airplane", "automobile"]
        assert np.bincount(dataset["label"]).tolist() == [count // 10] * 10
        stream = load_image_dataset(data_dir=str(shared_data / "cifar10_mini"), split=split, streaming=True)
        for row, streamed in zip(dataset.select(range(50)), stream, strict=False):
            assert row == streamed
        assert decode_image(dataset[0]["image"]).size == (32, 32)


def test_several_image_columns_of_real_data(shared_data):
    dataset = load_image_dataset(data_dir=str(shared_data / "segmentation_mini"), split="validation")
    assert len(dataset) == 30 and dataset.column_names == ["image"]
    assert decode_image(dataset[0]["image"]).size == (480, 360)
    dataset = load_image_dataset(data_dir=str(shared_data / "imagenet_mini"), label_column_name="coarse_label")
    assert np.bincount(dataset["label"]).tolist() == [9] * 8


# --------------------------------------------------------------------------- by name


def test_a_local_data_set_folder_with_configurations(tmp_path):
    for name, value in (("red", 10), ("blue", 20)):
        write_parquet(tmp_path / name / "train-0.parquet", [value], label=(Value("int64"), [value + 1]))
        write_parquet(tmp_path / name / "test-0.parquet", [value + 5], label=(Value("int64"), [value + 6]))
    configurations = [
        {"config_name": name, "data_files": [{"split": s, "path": f"{name}/{s}-*.parquet"} for s in ("train", "test")]}
        for name in ("red", "blue")
    ]
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(configurations)}\n---\n")
    blue = load_both(dataset_name=str(tmp_path), dataset_config_name="blue", split="test")
    assert values(blue) == [25] and labels(blue) == [26]
    assert values(load_both(dataset_name=str(tmp_path), dataset_config_name="red")) == [10]
    with pytest.raises(ValueError, match="'train', 'test'"):
        load_image_dataset(dataset_name=str(tmp_path), dataset_config_name="red", split="validation")


def test_a_local_folder_of_images_by_name(tmp_path):
    write(tmp_path / "a" / "1.png", 10)
    write(tmp_path / "b" / "2.png", 20)
    dataset = load_both(dataset_name=str(tmp_path))
    assert values(dataset) == [10, 20] and dataset.features["label"].names == ["a", "b"]


def test_imagefolder_reads_metadata(tmp_path):
    for value in (10, 20):
        write(tmp_path / f"{value}.png", value)
    (tmp_path / "metadata.csv").write_text("file_name,label\n10.png,7\n20.png,8\n")
    dataset = load_both(dataset_name="imagefolder", data_dir=str(tmp_path))
    assert dict(zip(values(dataset), labels(dataset), strict=True)) == {10: 7, 20: 8}


def test_parquet_and_webdataset_by_name(tmp_path):
    write_parquet(tmp_path / "parquet" / "train.parquet", [10], label=(Value("int32"), [4]))
    write_tar(tmp_path / "tar" / "train.tar", [20])
    assert labels(load_both(dataset_name="parquet", data_dir=str(tmp_path / "parquet"))) == [4]
    assert values(load_both(dataset_name="webdataset", data_dir=str(tmp_path / "tar"))) == [20]


def test_a_table_of_paths(tmp_path):
    rows = [{"photo": str(write(tmp_path / f"{value}.png", value)), "label": value} for value in (10, 20)]
    folder = tmp_path / "table"
    folder.mkdir()
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = {"dataset_name": str(folder), "image_column_name": "photo"}
    dataset = load_both(**arguments, outside_paths=True)
    assert values(dataset) == [10, 20] and labels(dataset) == [10, 20]
    message = f"row 0 of {folder} names the file {tmp_path}/10.png, which is not in {folder}; --outside_paths allows"
    with pytest.raises(ValueError, match=message):
        load_image_dataset(**arguments)
    with pytest.raises(ValueError, match=f"names the file {tmp_path}/10.png, which is not in {folder}"):
        next(iter(load_image_dataset(**arguments, streaming=True)))


def test_a_csv_table_of_paths(tmp_path):
    write(tmp_path / "pictures" / "10.png", 10)
    (tmp_path / "train.csv").write_text("image,label\npictures/10.png,3\n")
    dataset = load_both(dataset_name=str(tmp_path))
    assert values(dataset) == [10] and labels(dataset) == [3]
    (tmp_path / "train.csv").write_text("image,label\n/etc/hostname,3\n")
    for streaming in (False, True):
        with pytest.raises(ValueError, match="names the file /etc/hostname, which is not in"):
            list(load_image_dataset(dataset_name=str(tmp_path), streaming=streaming))


def test_paths_of_a_table_count_from_its_folder(tmp_path):
    for value in (10, 20):
        write(tmp_path / "pictures" / f"{value}.png", value)
    rows = [{"image": {"bytes": None, "path": f"pictures/{value}.png"}} for value in (10, 20)]
    rows.append({"image": {"bytes": encode(30), "path": "/elsewhere/30.png"}})
    Dataset.from_list(rows).to_parquet(str(tmp_path / "train.parquet"))
    (tmp_path / "table").mkdir()
    (tmp_path / "train.parquet").rename(tmp_path / "table" / "train.parquet")
    (tmp_path / "pictures").rename(tmp_path / "table" / "pictures")
    (tmp_path / "table" / "pictures").rename(tmp_path / "table" / ".pictures")
    os.symlink(tmp_path / "table" / ".pictures", tmp_path / "table" / "pictures")
    dataset = load_both(dataset_name="parquet", data_dir=str(tmp_path / "table"))
    assert values(dataset) == [10, 20, 30]


@pytest.mark.parametrize(
    "path",
    [
        "/etc/hostname",
        "../secret.png",
        "pictures/../../secret.png",
        "link.png",
        "file:///etc/hostname",
        "http://127.0.0.1:9/a.png",
        "hf://datasets/other/private/a.png",
        "zip://a.png::/etc/hostname",
        "zip://a.png::file:///etc/hostname",
        "simplecache::/etc/hostname",
        "simplecache::file:///etc/hostname",
    ],
)
def test_files_that_a_table_may_not_name(tmp_path, path):
    write(tmp_path / "secret.png", 10)
    folder = tmp_path / "table"
    folder.mkdir()
    os.symlink(tmp_path / "secret.png", folder / "link.png")
    rows = [{"photo": {"bytes": encode(30), "path": "a.png"}}, {"photo": {"bytes": None, "path": path}}]
    Dataset.from_list(rows).to_parquet(str(folder / "train.parquet"))
    with pytest.raises(ValueError, match=f"row 1 of .* names the file {re.escape(path)}, which is not in {folder};"):
        load_image_dataset(data_dir=str(folder / "train.parquet"))
    with pytest.raises(ValueError, match=f"names the file {re.escape(path)}, which is not in {folder}"):
        list(load_image_dataset(data_dir=str(folder / "train.parquet"), streaming=True))


def test_streams_fetch_what_is_only_addressed(tmp_path):
    """A streamed archive yields addresses like zip://1.png::archive.zip, which no image reader understands."""
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for value in (10, 20):
            archive.writestr(f"{value}.png", encode(value))
        archive.writestr("metadata.csv", "file_name,label\n10.png,1\n20.png,2\n")
    stream = load_image_dataset(dataset_name="imagefolder", data_dir=str(tmp_path), streaming=True, token="unused")
    assert values(stream) == [10, 20] and labels(stream) == [1, 2]
    assert next(iter(stream))["image"]["path"].startswith("zip://10.png::")


def test_hub_options_reach_the_loader(monkeypatch):
    calls = []
    rows = Dataset.from_dict({"img": [encode(10)], "cls": [3]})

    def fake_load_dataset(*arguments, **options):
        calls.append((arguments, options))
        return rows

    monkeypatch.setattr("hf_mim.data.sources.load_dataset", fake_load_dataset)
    monkeypatch.setattr("hf_mim.data.sources.check_on_hub", lambda *arguments: calls.append(arguments))
    dataset = load_image_dataset(
        "someone/pictures",
        "small",
        data_dir="part",
        split="train[:10%]",
        cache_dir="cache",
        token="secret",
        revision="v2",
    )
    options = {"split": "train[:10%]", "streaming": False, "cache_dir": "cache", "token": "secret", "revision": "v2"}
    asked = ("someone/pictures", "dataset", "secret")
    assert calls == [asked, (("someone/pictures", "small"), {"data_dir": "part", **options})]
    assert values(dataset) == [10] and labels(dataset) == [3]


def test_prepared_data_goes_to_the_given_cache(tmp_path):
    write_parquet(tmp_path / "data" / "train.parquet", [10])
    assert values(load_image_dataset(data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))) == [10]
    assert list((tmp_path / "cache").rglob("*.arrow"))


def test_photo_tiles_by_name():
    pytest.importorskip("skimage")
    dataset = load_image_dataset(dataset_name="photo-tiles", split="test")
    stream = load_image_dataset(dataset_name="photo-tiles", split="test", streaming=True)
    assert len(dataset) == 807 and next(iter(stream)) == dataset[0] and stream.num_shards == 64


# --------------------------------------------------------------------------- columns


def test_columns_are_found_or_named(tmp_path):
    write_parquet(
        tmp_path / "data.parquet",
        [10, 20],
        mask=(Image(), [{"bytes": encode(99), "path": None}] * 2),
        label=(Value("string"), ["not", "numbers"]),
        fine=(ClassLabel(names=["p", "q"]), [1, 0]),
        score=(Value("int16"), [5, 6]),
        weight=(Value("float32"), [0.5, 0.6]),
    )
    arguments = {"data_dir": str(tmp_path)}
    dataset = load_image_dataset(**arguments)
    assert values(dataset) == [10, 20] and labels(dataset) == [0, 1]
    assert dataset.features["label"].names == ["not", "numbers"]
    dataset = load_both(**arguments, label_column_name="fine")
    assert labels(dataset) == [1, 0] and dataset.features["label"].names == ["p", "q"]
    named = load_both(**arguments, image_column_name="mask", label_column_name="score")
    assert values(named) == [99, 99] and labels(named) == [5, 6]

    columns = r"\['image', 'mask', 'label', 'fine', 'score', 'weight'\]"
    for option in ("image_column_name", "label_column_name"):
        with pytest.raises(ValueError, match=f"{option} 'shade' does not exist; the columns are {columns}"):
            load_image_dataset(**arguments, **{option: "shade"})
    with pytest.raises(ValueError, match="image_column_name 'fine' holds ClassLabel"):
        load_image_dataset(**arguments, image_column_name="fine")
    with pytest.raises(
        ValueError, match="'weight' cannot be the labels: it holds numbers that are not whole, such as"
    ):
        load_image_dataset(**arguments, label_column_name="weight")


def test_two_class_columns_without_a_usual_name_give_no_label(tmp_path):
    classes = (ClassLabel(names=["p", "q"]), [1])
    write_parquet(tmp_path / "data.parquet", [10], fine=classes, coarse=classes)
    assert load_both(data_dir=str(tmp_path)).column_names == ["image"]


def test_no_column_of_images(tmp_path):
    pq.write_table(pa.table({"image": [1, 2], "text": ["a", "b"]}), tmp_path / "data.parquet")
    with pytest.raises(ValueError, match=r"set image_column_name to one of \['image', 'text'\]"):
        load_image_dataset(data_dir=str(tmp_path))


# --------------------------------------------------------------------------- what is refused


def test_nothing_given():
    with pytest.raises(ValueError, match="set data_dir .* or dataset_name"):
        load_image_dataset()
    with pytest.raises(ValueError, match="'imagefolder' reads a folder: give data_dir as well"):
        load_image_dataset(dataset_name="imagefolder")


def test_missing_folders_and_files_are_named(tmp_path):
    for data_dir in (tmp_path / "gone", tmp_path / "*.tar", tmp_path / "gone.parquet"):
        with pytest.raises(FileNotFoundError, match="does not exist") as caught:
            load_image_dataset(data_dir=str(data_dir))
        assert str(data_dir) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="dataset_name .*gone does not exist"):
        load_image_dataset(dataset_name=str(tmp_path / "gone"))


def test_a_folder_without_images(tmp_path):
    with pytest.raises(ValueError, match=f"no images, parquet files or tar shards in {tmp_path}"):
        load_image_dataset(data_dir=str(tmp_path))
    (tmp_path / "notes.txt").write_text("nothing here")
    (tmp_path / "train").mkdir()
    for data_dir in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match="no images, parquet files or tar shards in"):
            load_image_dataset(data_dir=str(data_dir))


def test_names_that_are_not_text_are_named(tmp_path):
    write(tmp_path / "a\nb.png", 10)
    try:
        (tmp_path / "c\udcff.png").write_bytes((tmp_path / "a\nb.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    with pytest.raises(ValueError, match=r"c\\udcff\.png': file names must be UTF-8, rename it"):
        load_image_dataset(data_dir=str(tmp_path))


def test_an_empty_table(tmp_path):
    write_parquet(tmp_path / "data.parquet", [])
    with pytest.raises(ValueError, match=f"split 'train' of {tmp_path} is empty"):
        load_image_dataset(data_dir=str(tmp_path))


@pytest.mark.parametrize("streaming", [False, True])
def test_mixed_kinds_are_refused(tmp_path, streaming):
    write(tmp_path / "a" / "1.png", 10)
    write_parquet(tmp_path / "data.parquet", [20])
    write_tar(tmp_path / "b" / "data.tar", [30])
    with pytest.raises(ValueError, match=r"mixes files of several kinds \(1 image, 1 tar, 1 parquet\)"):
        load_image_dataset(data_dir=str(tmp_path), streaming=streaming)


def test_unknown_splits_list_the_known_ones(tmp_path):
    write(tmp_path / "plain" / "a" / "1.png", 10)
    with pytest.raises(ValueError, match="has no split 'test', only train"):
        load_image_dataset(data_dir=str(tmp_path / "plain"), split="test")
    write(tmp_path / "split" / "train" / "a" / "1.png", 10)
    write(tmp_path / "split" / "val" / "a" / "1.png", 10)
    with pytest.raises(ValueError, match="has no split 'test', only train, validation"):
        load_image_dataset(data_dir=str(tmp_path / "split"), split="test")


def test_shards_must_name_all_their_splits_or_none(tmp_path):
    write_tar(tmp_path / "train-0.tar", [1])
    write_tar(tmp_path / "extra.tar", [2])
    with pytest.raises(ValueError, match=r"extra\.tar names no split, but other files beside it do \(train\)"):
        load_image_dataset(data_dir=str(tmp_path))
