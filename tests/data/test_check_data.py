"""`hf-mim check-data` and the clean lists that it writes, on pictures made here and on the hostile folder."""

import io
import json
import os

import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

import hf_mim_cli as cli
from hf_mim.data.check_data import check_dataset
from hf_mim.data.clean_list import HEADER, image_names, keep_listed
from hf_mim.data.sources import load_image_dataset


def png(width: int, height: int, value: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), value).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two classes: three readable pictures, of which two are the same, and one; one that is cut off."""
    root = tmp_path / "photos"
    files = {
        "cat/a.png": png(40, 60, 10),
        "cat/b.png": png(40, 60, 10),
        "cat/c.png": png(200, 100, 30)[:60],
        "dog/d e.png": png(31, 500, 40, "L"),
        "dog/ü.png": png(64, 64, 50),
    }
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_the_report_of_a_folder(folder, workers):
    report = check_dataset(load_image_dataset(data_dir=str(folder)), str(folder), workers)
    assert (report.images, report.small, report.labels) == (5, 1, {"cat": 3, "dog": 2})
    assert (report.smallest, report.median, report.largest) == ((40, 60), (64, 64), (31, 500))
    assert (report.modes, report.formats) == ({"RGB": 3, "L": 1}, {"PNG": 4})
    assert report.duplicates == [["cat/a.png", "cat/b.png"]]
    assert report.unreadable_rows == [2] and list(report.unreadable) == ["cat/c.png"]
    assert "truncated" in report.unreadable["cat/c.png"]


def test_the_printed_report_and_the_exit_code(folder, capsys):
    assert cli.main(["check-data", str(folder), "--num_workers", "1"]) == 1
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out == (
        "images      5, of which 4 are readable\n"
        "labels      2, of 2 to 3 images each\n"
        "sizes       smallest 40 x 60, median 64 x 64, largest 31 x 500 (width x height in pixels)\n"
        "small       1 with a side of less than 32 pixels\n"
        "modes       RGB 3, L 1\n"
        "formats     PNG 4\n"
        "duplicates  1, with exactly the same bytes as another image\n"
        "  cat/a.png: 2 times\n"
        "unreadable  1\n"
        "  cat/c.png: image file is truncated\n"
    )
    (folder / "cat" / "c.png").unlink()
    assert cli.main(["check-data", str(folder), "--num_workers", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 4 and report["largest"] == [31, 500] and report["unreadable"] == {}


def test_a_turned_picture_is_measured_upright_and_a_missing_file_is_unreadable(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 20)).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    report = check_dataset(load_image_dataset(data_dir=str(tmp_path)), str(tmp_path))
    assert report.largest == (20, 50) and report.unreadable == {"link.jpg": "No such file or directory"}


@pytest.fixture
def table() -> Dataset:
    """Rows without files: one is empty, one is damaged and has a name."""
    rows = [
        {"bytes": png(40, 40, 1), "path": None},
        None,
        {"bytes": b"no image", "path": "7.png"},
        {"bytes": png(40, 41, 2), "path": "8.png"},
    ]
    features = Features({"image": ImageFeature(decode=False), "label": Value("int64")})
    return Dataset.from_dict({"image": rows, "label": [3, 3, None, 5]}, features=features)


def test_rows_without_files_are_named_by_their_number(table, tmp_path, capsys):
    report = check_dataset(table)
    assert report.unreadable == {
        "row 1": "this image has neither bytes nor a path",
        "row 2 (7.png)": "not an image in a known format (8 bytes)",
    }
    assert report.labels == {"3": 2, "5": 1, "none": 1}

    table.cast_column("image", ImageFeature(decode=False)).to_parquet(tmp_path / "train.parquet")
    listed = tmp_path / "clean.txt"
    pattern = str(tmp_path / "*.parquet")
    assert cli.main(["check-data", pattern, "--num_workers", "1", "--write_clean_list", str(listed)]) == 1
    assert "row 2 (7.png): not an image" in capsys.readouterr().out
    assert listed.read_text().splitlines()[1:] == ["0", "3"]
    kept = keep_listed(load_image_dataset(data_dir=pattern), listed, pattern)
    assert [row["image"]["bytes"] for row in kept] == [table[0]["image"]["bytes"], table[3]["image"]["bytes"]]


def test_a_data_set_without_images_left_is_reported(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    report = check_dataset(load_image_dataset(data_dir=str(tmp_path)), str(tmp_path))
    assert (report.smallest, report.median, report.largest, report.small) == (None, None, None, 0)
    assert report.unreadable == {"a.png": "the file is empty"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere/at/all/", "--num_workers", "0"], "num_workers must be at least 1"),
        (["./nowhere"], "dataset_name ./nowhere does not exist"),
        (["nowhere/*.parquet"], "nowhere/*.parquet does not exist"),
        (["{empty}"], "no images, parquet files or tar shards in"),
        (["photo-tiles", "--split", "nonsense"], "photo-tiles has no split 'nonsense'"),
        (["photo-tiles", "--image_column_name", "picture"], "image_column_name 'picture' does not exist"),
    ],
)
def test_mistakes_take_one_line(tmp_path, capsys, arguments, message):
    assert cli.main(["check-data", *(argument.format(empty=tmp_path) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-mim: error: ") and message in error and error.count("\n") == 1


def test_unknown_options_end_with_two(capsys):
    assert cli.main(["check-data", "photo-tiles", "--num_wrokers", "2"]) == 2
    assert "unknown option '--num_wrokers', did you mean '--num_workers'?" in capsys.readouterr().err


# Clean lists


def clean_list(folder, path):
    assert cli.main(["check-data", str(folder), "--num_workers", "1", "--write_clean_list", str(path)]) == 1
    return path


def test_a_clean_list_names_the_readable_images(folder, tmp_path):
    path = clean_list(folder, tmp_path / "lists" / "clean.txt")
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    assert header.startswith("# images of a hf-mim data set: 5 in all, checksum ")
    assert lines == ["cat/a.png", "cat/b.png", "dog/d e.png", "dog/ü.png"]
    assert os.listdir(path.parent) == ["clean.txt"]
    kept = keep_listed(load_image_dataset(data_dir=str(folder)), path, str(folder))
    assert [os.path.relpath(row["image"]["path"], folder) for row in kept] == lines and kept["label"] == [0, 0, 1, 1]


def test_a_clean_list_goes_with_its_folder_wherever_it_is(folder, tmp_path, monkeypatch):
    path = clean_list(folder, tmp_path / "clean.txt")
    moved = folder.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    for root in (str(moved), "elsewhere", "./elsewhere/"):
        assert len(keep_listed(load_image_dataset(data_dir=root), path, root)) == 4


def test_lines_may_be_removed_and_repeated(folder, tmp_path):
    path = clean_list(folder, tmp_path / "clean.txt")
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([header, lines[3], lines[0], lines[0]]), encoding="utf-8")
    kept = keep_listed(load_image_dataset(data_dir=str(folder)), path, str(folder))
    assert [os.path.basename(row["image"]["path"]) for row in kept] == ["a.png", "ü.png"]


def test_names_that_do_not_fit_a_line_are_row_numbers(tmp_path):
    for name in ("a\nb.png", "c.png", "d\x85e.png"):
        (tmp_path / name).write_bytes(png(4, 4, 0))
    names, _ = image_names(load_image_dataset(data_dir=str(tmp_path)), str(tmp_path))
    assert names == ["0", "c.png", "2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, lines: ["cat/a.png"], "is not a clean list"),
        (lambda header, lines: [], "is not a clean list"),
        (lambda header, lines: [header.replace(": 5", ": 6"), *lines], "of other images than these"),
        (lambda header, lines: [header[:-8] + "00000000", *lines], "of other images than these"),
        (lambda header, lines: [header, "cat/z.png", *lines], "names 'cat/z.png', which is not among the images"),
        (lambda header, lines: [header], "lists no image"),
    ],
)
def test_a_list_of_other_images_is_refused(folder, tmp_path, change, message):
    path = clean_list(folder, tmp_path / "clean.txt")
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(change(header, lines)), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        keep_listed(load_image_dataset(data_dir=str(folder)), path, str(folder))


def test_the_checksum_knows_names_of_files_and_sizes_of_encodings(folder, table):
    checksum = image_names(load_image_dataset(data_dir=str(folder)), str(folder))[1]
    (folder / "dog" / "ü.png").rename(folder / "dog" / "x.png")
    assert image_names(load_image_dataset(data_dir=str(folder)), str(folder))[1] != checksum
    assert image_names(table, None)[1] != image_names(table.select([0, 1, 3, 2]), None)[1]
    assert HEADER.format(count=4, checksum=255).endswith("4 in all, checksum 000000ff")


# The folder of hostile files


def test_every_hostile_file_is_reported_as_the_manifest_says(shared_data, tmp_path, capsys):
    folder, listed = shared_data / "hostile_images", tmp_path / "clean.txt"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    command = ["check-data", str(folder), "--num_workers", "2", "--json", "--write_clean_list", str(listed)]
    assert cli.main(command) == 1
    report = json.loads(capsys.readouterr().out)
    clean = set(listed.read_text(encoding="utf-8").splitlines()[1:])
    # Without an extension, a file in a folder is not taken for an image.
    expected = {entry["file"]: entry for entry in manifest if entry["file"] != "no_extension"}
    assert report["images"] == len(expected) == len(clean) + len(report["unreadable"])
    assert clean | report["unreadable"].keys() == expected.keys()
    for name, entry in expected.items():
        assert entry["expect"] == "either" or (name in clean) == (entry["expect"] == "load"), name
    assert all("\n" not in reason and reason for reason in report["unreadable"].values())
    groups = [set(group) for group in report["duplicates"]]
    assert {"base.png", "png_named.jpg"} in groups and len(groups) == 2
    kept = keep_listed(load_image_dataset(data_dir=str(folder)), listed, str(folder))
    report = check_dataset(kept, str(folder))
    assert report.unreadable == {} and report.images == len(clean)
    assert (report.smallest, report.median, report.largest) == ((1, 1), (320, 240), (10000, 8))
