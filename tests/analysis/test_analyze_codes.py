"""`hf-mim analyze codes`, from the command line's arguments to the files."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from hf_mim import IBotConfig, IBotModel, VQKDModel
from hf_mim.analysis.analyze_codes import analyze_codes, main
from hf_mim.modeling.quantizer_vqkd import code_statistics
from tests.testing.tiny_tokenizer import CODES, PROCESSOR, codes_of, tiny_tokenizer, write_noise


@pytest.fixture(scope="module")
def tokenizer() -> VQKDModel:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def saved(tokenizer: VQKDModel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_noise(tmp_path_factory.mktemp("images"))[0].parent


@pytest.fixture
def drawn(monkeypatch) -> list:
    """Nothing is drawn; the arguments of `plot_codes` and `plot_usage` are kept."""
    calls = []
    for name in ("plot_codes", "plot_usage"):
        monkeypatch.setattr(f"hf_mim.analysis.analyze_codes.{name}", lambda *arguments: calls.append(arguments))
    return calls


def test_the_command_writes_two_pictures_and_the_figures(tokenizer, saved, images, tmp_path, capsys):
    output = tmp_path / "new"
    options = ["--num_codes", "5", "--patches_per_code", "3", "--batch_size", "4", "--device", "cpu"]
    main([str(saved), str(images), "--output_dir", str(output), *options])
    assert sorted(file.name for file in output.iterdir()) == ["codes.json", "codes.png", "usage.png"]

    codes = codes_of(tokenizer, sorted(images.iterdir()))
    counts = torch.from_numpy(codes.ravel()).bincount(minlength=CODES)
    result = json.loads((output / "codes.json").read_text())
    assert result == {
        "codebook_size": CODES,
        "images": 10,
        "patches": 60,
        **code_statistics(counts),
        "tokenizer": str(saved),
        "sources": [str(images)],
        "counts": counts.tolist(),
    }
    used, *advice, files = capsys.readouterr().out.splitlines()
    assert used.startswith(f"{int((counts > 0).sum())} of 12 codes (") and "by 60 patches of 10 images" in used
    assert f"perplexity {result['perplexity']:.1f}, the most frequent code has" in used
    assert advice == ["with so few patches, some codes are unused only for lack of images (--max_images)"]
    assert files == f"codes.png, usage.png and codes.json are in {output}"


def test_options_of_the_picture(saved, images, tmp_path, drawn):
    main([str(saved), str(images), "--output_dir", str(tmp_path), "--num_codes", "5", "--patches_per_code", "3"])
    main([str(saved), str(images), "--output_dir", str(tmp_path)])
    assert [arguments[-2:] for arguments in drawn[::2]] == [(5, 3), (32, 12)]


def test_images_of_several_sources_and_a_subset(tokenizer, saved, images, tmp_path, drawn):
    paths = [images / "3.png", images / "1.png"]
    result = analyze_codes(saved, paths, tmp_path, progress=False)
    expected = codes_of(tokenizer, paths)
    assert result["counts"] == np.bincount(expected.ravel(), minlength=CODES).tolist()

    assert analyze_codes(saved, [images, images / "0.png"], tmp_path, progress=False)["images"] == 11
    main([str(saved), str(images), "--output_dir", str(tmp_path), "--max_images", "4"])
    subset = json.loads((tmp_path / "codes.json").read_text())
    assert (subset["images"], subset["patches"]) == (4, 24)
    assert subset == analyze_codes(saved, [images], tmp_path, max_images=4, progress=False)
    assert analyze_codes(saved, [images], tmp_path, max_images=None, progress=False)["images"] == 10


def test_split_column_and_configuration_of_a_data_set(saved, images, tmp_path, drawn):
    files = sorted(images.iterdir())
    rows = [{"bytes": file.read_bytes(), "path": None} for file in files]
    features = datasets.Features({"photo": datasets.Image(decode=False), "scan": datasets.Image(decode=False)})
    folder = tmp_path / "parquet"
    folder.mkdir()
    for split, part in (("train", rows[:3]), ("test", rows[3:])):
        table = datasets.Dataset.from_dict({"photo": part, "scan": part[:1] * len(part)}, features=features)
        table.to_parquet(folder / f"{split}-0.parquet")
    expected = analyze_codes(saved, files[3:], tmp_path / "out", progress=False)

    def counts(*options: str) -> list[int]:
        main([str(saved), str(folder), "--output_dir", str(tmp_path / "out"), *options])
        return json.loads((tmp_path / "out" / "codes.json").read_text())["counts"]

    assert sum(counts("--image_column_name", "photo")) == 3 * 6
    assert counts("--image_column_name", "photo", "--split", "test") == expected["counts"]
    assert counts("--image_column_name", "scan", "--split", "test") != expected["counts"]

    readme = "---\nconfigs:\n- config_name: few\n  data_files: train-0.parquet\n- config_name: many\n"
    (folder / "README.md").write_text(f"{readme}  data_files: test-0.parquet\n---\n")
    assert counts("--image_column_name", "photo", "--dataset_config_name", "many") == expected["counts"]


def test_photo_tiles_by_name(saved, tmp_path, drawn):
    pytest.importorskip("skimage")
    result = analyze_codes(saved, ["photo-tiles"], tmp_path, max_images=30, progress=False)
    assert (result["images"], result["patches"]) == (30, 180)


def test_what_is_no_tokenizer_is_refused(saved, images, tmp_path):
    encoder = tmp_path / "encoder"
    IBotModel(IBotConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3)).save_pretrained(encoder)
    output = tmp_path / "out"
    with pytest.raises(ValueError, match="encoder: a model of type ibot has no codes; give a VQ-KD tokenizer"):
        analyze_codes(encoder, [images], output)
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        analyze_codes(tmp_path / "nowhere", [images], output)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no model can be loaded"):
        analyze_codes(tmp_path / "empty", [images], output)
    assert not output.exists()


def test_a_tokenizer_with_parts_missing_is_refused(tokenizer, images, tmp_path):
    weights = tokenizer.state_dict()
    del weights["quantizer.codebook"]
    tokenizer.save_pretrained(tmp_path / "part", state_dict=weights)
    PROCESSOR.save_pretrained(tmp_path / "part")
    with pytest.raises(ValueError, match=r"part: the checkpoint lacks 1 weights, such as quantizer\.codebook"):
        analyze_codes(tmp_path / "part", [images], tmp_path / "out")

    VQKDModel(tokenizer.config).save_pretrained(tmp_path / "new")
    with pytest.raises(ValueError, match="new: no image processor can be loaded"):
        analyze_codes(tmp_path / "new", [images], tmp_path / "out")  # no image processor
    PROCESSOR.save_pretrained(tmp_path / "new")
    with pytest.raises(ValueError, match="the tokenizer has no codebook yet"):
        analyze_codes(tmp_path / "new", [images], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_that_are_not_there_are_named(saved, images, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match=r"nowhere/cat\.png does not exist"):
        analyze_codes(saved, [images / "0.png", "nowhere/cat.png"], output)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images, parquet files or tar shards in .*empty"):
        analyze_codes(saved, [tmp_path / "empty"], output)
    for option in ("max_images", "batch_size"):
        with pytest.raises(ValueError, match=f"{option} must be at least 1, not 0"):
            analyze_codes(saved, [images], output, **{option: 0})
    assert not output.exists()
