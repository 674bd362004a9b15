"""Sources of images that cannot be used, or only in part, through the real command line."""

import datetime
import io
import json
import os
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import hf_mim_cli as cli
from tests.testing.mistakes import refusal


def png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((24, 20, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def flat(root):
    (root / "a.png").write_bytes(png())


def no_rows(root):
    pq.write_table(pa.table({"image": pa.array([], pa.struct({"bytes": pa.binary()}))}), root / "train.parquet")


def tar_with_lists(root):
    write_tar(root / "a.tar", {"0.png": png(), "0.json": b'{"kind": [1, 2]}'})


def row_with_null_byte(root):
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "a\0.png"}]}), root / "train.parquet")


def class_folders(root):
    for name in ("ants", "bees"):
        (root / name).mkdir()
        (root / name / "a.png").write_bytes(png())


def empty_tar(root):
    (root / "a.tar").write_bytes(b"")


def no_tar(root):
    (root / "a.tar").write_bytes(b"this is no archive, whatever its name says" * 100)


def cut_tar(root):
    write_tar(root / "a.tar", {"0.png": png(), "1.png": png()})
    (root / "a.tar").write_bytes((root / "a.tar").read_bytes()[:1100])


def tar_without_pictures(root):
    write_tar(root / "a.tar", {"0.txt": b"cat", "0.json": b"{}"})


def tar_without_samples(root):
    write_tar(root / "a.tar", {"README": b"no extension"})


def tar_with_a_name_twice(root):
    write_tar(root / "a.tar", {"0.png": png()})
    with tarfile.open(root / "a.tar", "a") as archive:
        info = tarfile.TarInfo("0.png")
        info.size = len(png())
        archive.addfile(info, io.BytesIO(png()))


def broken_json(root):
    write_tar(root / "a.tar", {"0.png": png(), "0.json": b"{label:"})


def no_parquet(root):
    (root / "a.parquet").write_bytes(b"PAR1 is how it starts")


def private_row(root):
    rows = [{"image": {"bytes": None, "path": "/etc/hostname"}}]
    datasets.Dataset.from_list(rows).to_parquet(root / "train.parquet")


def metadata_outside(root):
    flat(root)
    (root / "metadata.csv").write_text("file_name,label\n../secret.png,3\n")


def metadata_of_missing(root):
    flat(root)
    (root / "metadata.jsonl").write_text(json.dumps({"file_name": "b.png", "label": 3}) + "\n")


def metadata_without_names(root):
    flat(root)
    (root / "metadata.csv").write_text("name,label\na.png,3\n")


def metadata_with_semicolons(root):
    flat(root)
    (root / "metadata.csv").write_text("file_name;label\na.png;3\n")


def metadata_without_unicode(root):
    flat(root)
    (root / "metadata.jsonl").write_text('{"file_name": "a.png", "label": "\\ud800"}\n')


def metadata_twice(root):
    flat(root)
    (root / "metadata.csv").write_text("file_name,label\na.png,3\na.png,4\n")


def metadata_no_json(root):
    flat(root)
    (root / "metadata.jsonl").write_text("{file_name: a.png}\n")


def mixed_splits(root):
    for name in ("train", "test", "extra"):
        (root / name).mkdir()
        (root / name / "a.png").write_bytes(png())


def two_validation_folders(root):
    for name in ("val", "valid"):
        (root / name).mkdir()
        (root / name / "a.png").write_bytes(png())


def text_as_picture(root):
    (root / "a.jpg").write_text("a text under the name of a picture")


def only_heic(root):
    (root / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


def pipe(root):
    os.mkfifo(root / "a.png")


def link_to_a_device(root):
    os.symlink("/dev/zero", root / "a.png")


SOURCES = [
    (empty_tar, (), "a.tar: the file is empty"),
    (no_tar, (), "a.tar: not a tar archive"),
    (cut_tar, (), "a.tar: not a readable tar (unexpected end of data)"),
    (tar_without_pictures, (), "a.tar: no picture in the tar, only json, txt"),
    (tar_with_a_name_twice, (), "a.tar: 0.png is in the tar twice"),
    (tar_without_samples, (), "a.tar: no picture in the tar, which has no files of samples"),
    (
        tar_with_lists,
        ("--label_column_name", "kind"),
        "'kind' cannot be the labels: it holds several values per image",
    ),
    (tar_with_lists, ("--label_column_name", "x"), "the columns and the keys of .json are ['image', 'kind']"),
    (
        tar_with_lists,
        ("--image_column_name", "jpg"),
        "image_column_name 'jpg' does not exist; the pictures are ['png']",
    ),
    (no_rows, (), " is empty: its parquet files have no rows"),
    (row_with_null_byte, (), "names the file 'a\\x00.png', which is not in "),
    (class_folders, ("--label_column_name", "kind"), "'kind' does not exist; the columns are ['image', 'label']"),
    (broken_json, (), "the .json of a sample cannot be read: "),
    (no_parquet, (), "cannot be read: "),
    (private_row, (), "names the file /etc/hostname, which is not in "),
    (metadata_outside, (), "metadata.csv describes ../secret.png, but it lies outside of the folder"),
    (metadata_of_missing, (), "metadata.jsonl describes b.png, but there is no such image"),
    (metadata_without_names, (), "metadata.csv needs the column file_name, with the name of an image in every row"),
    (metadata_with_semicolons, (), "with the name of an image in every row; its columns are file_name;label"),
    (metadata_without_unicode, (), "its column 'label' has text that is no Unicode"),
    (metadata_twice, (), "metadata.csv describes a.png twice"),
    (metadata_no_json, (), "metadata.jsonl cannot be read: "),
    (mixed_splits, (), "the sub-folders test, train name splits, but extra beside them does not: give the folder of"),
    (two_validation_folders, ("--split", "validation"), "has two folders of the split validation, val and valid"),
    (two_validation_folders, ("--split", "train"), "has no split 'train', only validation"),
    (only_heic, (), "left out: 1 HEIC image; `pip install pillow-heif` makes them readable"),
    (pipe, (), "left out: 1 pipes or devices, such as "),
    (link_to_a_device, (), "left out: 1 pipes or devices, such as "),
    (flat, ("--label_column_name", "kind"), "label_column_name 'kind' does not exist; the columns are ['image']"),
    (flat, ("--value_range", "5", "5"), "value_range must be two numbers, the value of black before that of white"),
    (flat, ("--value_range", "0", "nan"), "argument --value_range: must be a finite number, got nan"),
]


@pytest.mark.parametrize(("make", "options", "message"), SOURCES, ids=[row[0].__name__ for row in SOURCES])
def test_refused_sources(tmp_path, capsys, make, options, message):
    root = tmp_path / "source"
    root.mkdir()
    make(root)
    assert message in refusal(capsys, "check-data", root, "--num_workers", "1", *options)


@pytest.mark.parametrize(("make", "message"), [(metadata_outside, "../secret.png"), (metadata_of_missing, "b.png")])
def test_imagefolder_by_name(tmp_path, make, message):
    """The loader of datasets leaves out the image that nothing describes, and names one that is not there."""
    from hf_mim import load_image_dataset

    make(tmp_path)
    with pytest.raises(ValueError, match=f"describes {message}, but"):
        load_image_dataset("imagefolder", data_dir=str(tmp_path))


@pytest.mark.parametrize("source", ["/dev/zero", "pipe"])
def test_a_source_that_never_ends(tmp_path, capsys, source):
    if source == "pipe":
        source = tmp_path / "pipe.png"
        os.mkfifo(source)
    line = refusal(capsys, "check-data", source)
    assert "no images, parquet files or tar shards in" in line and "left out: 1 pipes or devices" in line


def test_more_nested_folders_than_python_has_calls(tmp_path, capsys):
    folders = [tmp_path / "d"]
    while len(folders) < 1200:
        folders.append(folders[-1] / "d")
    for folder in folders:
        folder.mkdir()
    (folders[-1] / "a.png").write_bytes(png())
    try:
        assert cli.main(["check-data", str(tmp_path), "--num_workers", "1"]) == 0
        assert "images      1, of which 1 are readable" in capsys.readouterr().out
    finally:
        # pytest would remove them by recursion.
        (folders[-1] / "a.png").unlink()
        for folder in reversed(folders):
            folder.rmdir()


def labels_of(root, **options) -> tuple[list, list[str]]:
    from hf_mim import load_image_dataset

    notes: list[str] = []
    dataset = load_image_dataset(data_dir=str(root), notes=notes, **options)
    if "label" not in dataset.column_names:
        return [], notes
    names = getattr(dataset.features["label"], "names", None)
    return [value if names is None or value is None else names[value] for value in dataset["label"]], notes


def test_a_second_folder_of_a_split_is_named(tmp_path):
    for name in ("train", "Training", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png())
    assert labels_of(tmp_path) == ([], ["left out: the sub-folder Training, because train is the split train"])


def test_an_ordinary_word_is_no_split(tmp_path):
    for name in ("bus", "train", "plane"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png())
    labels, notes = labels_of(tmp_path)
    assert labels == ["bus", "plane", "train"]
    assert notes == ["the sub-folder train is no split, because bus, plane beside it names none"]


@pytest.mark.parametrize("values", [["cat", "ant", "cat", "bee"], [3, 1, 3, None], [True, False, True, None]])
@pytest.mark.parametrize("column", ["label", "kind"])
def test_labels_of_tables(tmp_path, values, column):
    rows = [{"image": {"bytes": png(), "path": None}, column: value} for value in values]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    labels, _ = labels_of(tmp_path, label_column_name=column)
    wanted = [str(value).lower() if isinstance(value, bool) else value for value in values]
    assert labels == wanted
    assert labels_of(tmp_path)[0] == (wanted if column == "label" else [])


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["01", "1", "10", "01"], ["01", "1", "10", "01"]),
        (["7", "12", "7", " 7"], [7, 12, 7, 7]),
        ([2.0, 5.0, None, 2.0], [2, 5, None, 2]),
        ([2**63 - 1, 5, 5, 5], [2**63 - 1, 5, 5, 5]),
        (["a", "", None, "b "], ["a", None, None, "b"]),
        (["-1", "0", "1", "0"], [-1, 0, 1, 0]),
        (["1.0", "2.0", "1.0", "2.0"], [1, 2, 1, 2]),
        ([f"class {number % 8}" for number in range(12)], [f"class {number % 8}" for number in range(12)]),
    ],
)
def test_kinds_of_labels(tmp_path, values, labels):
    rows = [{"image": {"bytes": png(), "path": None}, "label": value} for value in values]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    assert labels_of(tmp_path)[0] == labels


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0.5, 1.0, 2.0], "it holds numbers that are not whole, such as 0.5"),
        ([1.0, float("inf"), 2.0], "it holds numbers that are not whole, such as inf"),
        ([1.0, 1e30, 2.0], "it holds numbers that are not whole, such as 1e+30"),
        (["0.5", "1.5", "0.5"], "it holds numbers that are not whole, such as 0.5"),
        ([None, None, None], "it is empty"),
        ([b"a", b"b", b"a"], "it holds binary, and labels are whole numbers or words"),
        ([datetime.date(2026, 1, 1)] * 3, "it holds date32, and labels are whole numbers or words"),
        ([[1], [2], [1, 2]], "it holds several values per image; k-NN needs one whole number or word"),
        ([{"a": 1}, {"a": 2}, {"a": 3}], "it holds records; k-NN needs one whole number or word per image"),
        ([f"a photo of {n} cats" for n in range(9)], "it holds 9 different texts for 9 images"),
    ],
)
def test_what_is_not_taken_for_labels(tmp_path, capsys, values, reason):
    rows = [{"image": {"bytes": png(), "path": None}, "label": value} for value in values]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    assert labels_of(tmp_path) == ([], [f"column 'label' is not taken for labels: {reason}"])
    if "texts" not in reason:
        options = ("--label_column_name", "label", "--num_workers", "1")
        assert reason in refusal(capsys, "check-data", tmp_path, *options)


@pytest.mark.parametrize(
    ("fields", "options", "labels"),
    [
        ({"cls": ["2", "0", "2", "2"]}, {}, [2, 0, 2, 2]),
        ({"cls": ["dog", "cat", "dog", "dog"]}, {}, ["dog", "cat", "dog", "dog"]),
        ({"txt": ["dog", "cat", "dog", "dog"]}, {}, ["dog", "cat", "dog", "dog"]),
        ({"json": ['{"label": 4}', '{"label": 5}', "{}", '{"label": 4}']}, {}, [4, 5, None, 4]),
        ({"json": ['{"kind": "x"}'] * 4}, {}, []),
        ({"json": ['{"kind": "x"}'] * 4}, {"label_column_name": "kind"}, ["x"] * 4),
        ({"json": ["4", "5", "5", "4"]}, {}, [4, 5, 5, 4]),
        ({"json": ['"x"', '"y"', '"x"', "null"]}, {}, ["x", "y", "x", None]),
        ({"json": ['{"label": 2.0}'] * 4}, {}, [2] * 4),
        ({"json": ['{"label": true}'] * 4}, {}, ["true"] * 4),
        ({"cls": ["1"] * 4, "txt": ["one"] * 4}, {}, [1] * 4),
        ({"cls": ["1"] * 4, "txt": ["one"] * 4}, {"label_column_name": "txt"}, ["one"] * 4),
    ],
)
def test_labels_of_tars(tmp_path, fields, options, labels):
    members = {}
    for number, extension in enumerate(("png", "jpg", "webp", "png")):
        members[f"a/{number}.{extension}"] = png(number)
        members |= {f"a/{number}.{field}": values[number].encode() for field, values in fields.items()}
    write_tar(tmp_path / "train.tar", members)
    found, _ = labels_of(tmp_path, **options)
    assert found == labels


def test_pictures_of_tars(tmp_path):
    """Of several pictures of a sample, that without a second extension is read, or the one that is named."""
    from hf_mim import load_image_dataset

    path = tmp_path / "a.tar"
    write_tar(path, {"0.mask.png": png(1), "0.png": png(2)})
    notes: list[str] = []
    dataset = load_image_dataset(data_dir=str(path), notes=notes)
    assert dataset[0]["image"]["bytes"] == png(2)
    assert notes == [
        f"samples of {path} have several pictures (mask.png, png), of which png is read; image_column_name chooses one"
    ]
    notes.clear()
    for name, value in (("mask.png", 1), ("png", 2)):
        dataset = load_image_dataset(data_dir=str(path), image_column_name=name, notes=notes)
        assert dataset.column_names == ["image"] and dataset[0]["image"]["bytes"] == png(value)
    assert notes == []


def test_labels_that_only_a_later_shard_has(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.png": png()})
    write_tar(tmp_path / "b.tar", {"1.png": png(), "1.cls": b"cat"})
    assert labels_of(tmp_path) == ([None, "cat"], [])


def test_folders_in_a_tar_are_said_to_be_no_classes(tmp_path):
    write_tar(tmp_path / "a.tar", {"ants/0.png": png(), "bees/1.png": png()})
    labels, [line] = labels_of(tmp_path)
    assert labels == [] and line.startswith(f"no labels: the folders in {tmp_path}/a.tar are not taken for classes; ")


@pytest.mark.parametrize("kind", ["dictionary", "large_string", "string_view", "float16"])
def test_types_of_columns_that_other_programs_write(tmp_path, kind):
    words = pa.array(["b", "a", "b"])
    values = {
        "dictionary": words.dictionary_encode(),
        "large_string": words.cast(pa.large_string()),
        "string_view": words.cast(pa.string_view()),
        "float16": pa.array(np.array([2, 1, 2], np.float16)),
    }[kind]
    images = pa.array([{"bytes": png(), "path": None}] * 3)
    pq.write_table(pa.table({"image": images, "Label": values}), tmp_path / "train.parquet")
    assert labels_of(tmp_path)[0] == ([2, 1, 2] if kind == "float16" else ["b", "a", "b"])


def test_a_class_number_without_a_name(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": png(), "path": None}] * 3, "label": [0, 1, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    table = pq.read_table(tmp_path / "train.parquet")
    wrong = table.set_column(1, "label", pa.array([0, 1, 7])).replace_schema_metadata(table.schema.metadata)
    pq.write_table(wrong, tmp_path / "train.parquet")
    reason = "it holds the class number 7, but has the names of 2 classes"
    assert labels_of(tmp_path) == ([], [f"column 'label' is not taken for labels: {reason}"])


def test_columns_that_might_be_labels_are_named(tmp_path):
    rows = [{"image": {"bytes": png(), "path": None}, "species": "a", "size": 3, "box": [1, 2]}] * 3
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    assert labels_of(tmp_path) == ([], ["no labels: species, size might be them; label_column_name chooses one"])


def test_a_table_without_rows_beside_others(tmp_path):
    rows = datasets.Dataset.from_list([{"image": {"bytes": png(), "path": None}, "label": 3}] * 2)
    rows.to_parquet(tmp_path / "a.parquet")
    rows.select([]).to_parquet(tmp_path / "b.parquet")
    assert labels_of(tmp_path) == ([3, 3], [f"left out: 1 parquet files without rows, such as {tmp_path}/b.parquet"])


def test_metadata_beside_the_folders_of_splits(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.png").write_bytes(png())
    (tmp_path / "metadata.jsonl").write_text(
        '\ufeff{"file_name": "train/a.png", "label": "x"}\n{"file_name": "test/a.png", "label": "y"}\n'
    )
    assert labels_of(tmp_path) == (["x"], []) and labels_of(tmp_path, split="test") == (["y"], [])


def test_metadata_goes_before_class_folders(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,label\nants/a.png,x\nbees/a.png,y\n")
    line = "the labels come from metadata.csv, not from the names of the folders"
    assert labels_of(tmp_path) == (["x", "y"], [line])
    (tmp_path / "metadata.csv").write_text("file_name,text\nants/a.png,x\nbees/a.png,y\n")
    assert labels_of(tmp_path) == (["ants", "bees"], [])


def test_folders_that_are_no_classes_hidden_or_empty_are_said(tmp_path):
    for name in ("a.png", "b.png", ".c.png", "._a.png", ".DS_Store"):
        (tmp_path / name).write_bytes(png())
    for name in ("thumbs", ".old", "later"):
        (tmp_path / name).mkdir()
    (tmp_path / "thumbs" / "a.png").write_bytes(png())
    labels, notes = labels_of(tmp_path)
    assert labels == [] and len(notes) == 3
    assert notes[0] == f"left out: 1 empty folders, such as {tmp_path}/later"
    assert notes[1].startswith("left out: 2 files or folders with hidden names, such as ")
    assert notes[2].startswith("no labels: the sub-folders thumbs are not taken for classes, because more images lie ")


def test_labels_of_metadata(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(png())
    (tmp_path / "metadata.csv").write_text("file_name, kind, label\na.png,01,x\nb.png, 1, y\n")
    assert labels_of(tmp_path) == (
        ["x", "y", None],
        [f"1 of 3 images are not in metadata.csv, such as {tmp_path}/c.png"],
    )
    assert labels_of(tmp_path, label_column_name="kind")[0] == ["01", "1", None]


def test_check_data_says_what_is_left_out(tmp_path, capsys):
    for name in ("ants", "bees"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png())
    (tmp_path / "contact_sheet.png").write_bytes(png(7))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "b.heic").write_bytes(b"")
    os.mkfifo(tmp_path / "c.png")
    os.symlink(tmp_path / "ants", tmp_path / "bees" / "more")
    assert cli.main(["check-data", str(tmp_path), "--num_workers", "1"]) == 0
    printed = [line.split(None, 1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("note ")]
    assert printed == [
        "left out: 1 HEIC image; `pip install pillow-heif` makes them readable",
        "left out: 1 files that are no images (.txt 1)",
        f"left out: 1 pipes or devices, such as {tmp_path}/c.png",
        f"left out: 1 links to folders that are read anyway, such as {tmp_path}/bees/more",
        f"1 images beside the folders of classes have no class, such as {tmp_path}/contact_sheet.png",
    ]


def test_ten_folders_linked_to_each_other(tmp_path):
    for name in range(10):
        (tmp_path / str(name)).mkdir()
        (tmp_path / str(name) / "a.png").write_bytes(png(name))
    for name in range(10):
        for other in range(10):
            os.symlink(tmp_path / str(other), tmp_path / str(name) / f"to_{other}")
    labels, notes = labels_of(tmp_path)
    assert len(labels) == 10 and notes[0].startswith("left out: 100 links to folders that are read anyway, such as")
