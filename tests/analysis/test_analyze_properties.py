"""`hf-mim analyze distance` and `svd`, from the command line's arguments to the files."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SwinConfig,
    SwinModel,
    ViTImageProcessor,
)

from hf_mim import IBotConfig, IBotModel
from hf_mim.analysis.analyze_properties import analyze_properties, main, short_names
from hf_mim.analysis.properties import attention_distances, even_attention_distance, singular_value_shares
from hf_mim.data.images import decode_image
from tests.testing.tiny_tokenizer import write_noise


SIZES = {"hidden_size": 24, "num_attention_heads": 3, "initializer_range": 0.5}
IBOT = IBotConfig(**SIZES, num_hidden_layers=3, intermediate_size=48, image_size=32, patch_size=8)
DINO = Dinov2WithRegistersConfig(**SIZES, num_hidden_layers=2, image_size=28, patch_size=7)
PROCESSORS = {
    "ibot": ViTImageProcessor(size={"height": 24, "width": 32}),
    "dino": ViTImageProcessor(size={"height": 28, "width": 28}),
}


@pytest.fixture(scope="module")
def encoders() -> dict:
    torch.manual_seed(0)
    return {"ibot": IBotModel(IBOT).eval(), "dino": Dinov2WithRegistersModel(DINO).eval()}


@pytest.fixture(scope="module")
def saved(encoders, tmp_path_factory) -> dict[str, str]:
    folders = {name: tmp_path_factory.mktemp("runs") / name for name in encoders}
    for name, folder in folders.items():
        encoders[name].save_pretrained(folder)
        PROCESSORS[name].save_pretrained(folder)
    return {name: str(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Ten pictures."""
    return write_noise(tmp_path_factory.mktemp("images"))[0].parent


@pytest.fixture
def drawn(monkeypatch) -> list:
    """Nothing is drawn; the arguments of the plots are kept."""
    calls = []
    for name in ("plot_distances", "plot_shares"):
        monkeypatch.setattr(f"hf_mim.analysis.analyze_properties.{name}", lambda *arguments: calls.append(arguments))
    return calls


def seen(name: str, files: list[Path]) -> torch.Tensor:
    """All images as the model sees them."""
    pictures = [decode_image(file) for file in files]
    return PROCESSORS[name](pictures, return_tensors="pt")["pixel_values"]


def test_distances_of_two_models(encoders, saved, images, tmp_path, capsys):
    output = tmp_path / "new"
    others = ["--compare_with", saved["dino"], "--batch_size", "4", "--device", "cpu"]
    main(["distance", saved["ibot"], str(images), *others, "--output_dir", str(output)])
    assert sorted(file.name for file in output.iterdir()) == ["distance.json", "distance.png"]

    result = json.loads((output / "distance.json").read_text())
    assert (result["images"], result["sources"]) == (10, [str(images)])
    sizes = {"ibot": ([24, 32], [8, 8]), "dino": ([28, 28], [7, 7])}
    printed = capsys.readouterr().out.splitlines()
    for name, entry, line in zip(sizes, result["models"], printed, strict=False):
        pixel_values = seen(name, sorted(images.iterdir()))
        # ten images in batches of 4, 4 and 2: each counts the same
        expected = attention_distances(encoders[name], pixel_values).mean(dim=0)
        torch.testing.assert_close(torch.tensor(entry.pop("distance")).double(), expected, atol=1e-4, rtol=0)
        means = expected.mean(dim=1)
        torch.testing.assert_close(torch.tensor(entry.pop("mean_distance")).double(), means, atol=1e-4, rtol=0)
        even = even_attention_distance(encoders[name], pixel_values)
        assert entry == {
            "name": name,
            "model": saved[name],
            "image_size": sizes[name][0],
            "patch_size": sizes[name][1],
            "even_distance": pytest.approx(even),
        }
        assert line == (
            f"{name}: mean attention distance {means[0]:.1f} pixels in the first layer, {means[-1]:.1f} in the last; "
            f"uniform attention has {even:.1f}"
        )
    assert printed[2:] == [f"means over 10 images; distance.png and distance.json are in {output}"]


def test_singular_values_of_two_models(encoders, saved, images, tmp_path, capsys):
    main(["svd", saved["ibot"], str(images), "--output_dir", str(tmp_path), "--compare_with", saved["dino"]])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["svd.json", "svd.png"]
    result = json.loads((tmp_path / "svd.json").read_text())
    assert [[*entry] for entry in result["models"]] == [["name", "model", "image_size", "patch_size", "shares"]] * 2
    printed = capsys.readouterr().out.splitlines()
    for name, entry, line in zip(encoders, result["models"], printed, strict=False):
        expected = singular_value_shares(encoders[name], seen(name, sorted(images.iterdir()))).mean(dim=0)
        torch.testing.assert_close(torch.tensor(entry["shares"]).double(), expected, atol=1e-5, rtol=0)
        first, last = 100 * expected[[0, -1], -1]
        assert line == (
            f"{name}: the 5 largest singular values have {first:.1f} % in the first layer, {last:.1f} % in the last"
        )


def test_what_is_drawn(saved, images, tmp_path, drawn):
    models = [saved["ibot"], saved["dino"]]
    distance = analyze_properties("distance", models, [images], tmp_path, progress=False)
    svd = analyze_properties("svd", models, [images], tmp_path, top_k=2, progress=False)
    (distances, even, first), (shares, second) = drawn
    assert (first, second) == (tmp_path / "distance.png", tmp_path / "svd.png")
    for entry, other in zip(distance["models"], svd["models"], strict=True):
        assert distances[entry["name"]].tolist() == entry["distance"]
        assert even[entry["name"]] == entry["even_distance"]
        assert shares[entry["name"]].tolist() == other["shares"]
        assert len(other["shares"][0]) == 2


def test_figures_do_not_depend_on_the_batch_size(saved, images, tmp_path, drawn):
    for analysis in ("distance", "svd"):
        results = []
        for batch_size in ("1", "3", "10"):
            main([analysis, saved["ibot"], str(images), "--output_dir", str(tmp_path), "--batch_size", batch_size])
            entry = json.loads((tmp_path / f"{analysis}.json").read_text())["models"][0]
            results.append(np.array(entry["distance" if analysis == "distance" else "shares"]))
        for result in results[1:]:
            np.testing.assert_allclose(result, results[0], atol=1e-5, rtol=0)


def test_options(saved, images, tmp_path, drawn):
    def result(*arguments: str) -> dict:
        main(["svd", saved["ibot"], *arguments, "--output_dir", str(tmp_path)])
        return json.loads((tmp_path / "svd.json").read_text())

    assert len(result(str(images), "--top_k", "3")["models"][0]["shares"][0]) == 3
    assert result(str(images), str(images / "0.png"))["images"] == 11
    some = result(str(images), "--max_images", "4")
    assert some["images"] == 4 and some == result(str(images), "--max_images", "4")
    assert analyze_properties("svd", [saved["ibot"]], [images], tmp_path, max_images=None)["images"] == 10

    files = sorted(images.iterdir())
    rows = [{"bytes": file.read_bytes(), "path": None} for file in files]
    features = datasets.Features({"photo": datasets.Image(decode=False), "scan": datasets.Image(decode=False)})
    folder = tmp_path / "parquet"
    folder.mkdir()
    for split, part in (("train", rows[:3]), ("test", rows[3:])):
        table = datasets.Dataset.from_dict({"photo": part, "scan": part[:1] * len(part)}, features=features)
        table.to_parquet(folder / f"{split}-0.parquet")
    expected = result(*map(str, files[3:]))["models"]
    column = ("--image_column_name", "photo")
    assert result(str(folder), *column)["images"] == 3
    assert result(str(folder), *column, "--split", "test")["models"] == expected
    assert result(str(folder), "--image_column_name", "scan", "--split", "test")["models"] != expected
    readme = "---\nconfigs:\n- config_name: few\n  data_files: train-0.parquet\n- config_name: many\n"
    (folder / "README.md").write_text(f"{readme}  data_files: test-0.parquet\n---\n")
    assert result(str(folder), *column, "--dataset_config_name", "many")["models"] == expected


def test_names_in_the_legend(tmp_path, monkeypatch):
    assert short_names(["facebook/dino-vits16", "runs/ibot/"]) == ["dino-vits16", "ibot"]
    assert short_names(["a/ibot/last", "a/dbot/last", "b/x"]) == ["ibot/last", "dbot/last", "b/x"]
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert short_names(["."]) == ["run"]
    for models in ([], ["a/b", "a/b/"], [".", tmp_path / "run"]):
        with pytest.raises(ValueError, match="give at least one model, and none of them twice"):
            short_names(models)


def test_wrong_numbers_are_refused(saved, images, tmp_path):
    output = tmp_path / "out"
    for option in ("max_images", "batch_size", "top_k"):
        with pytest.raises(ValueError, match=f"{option} must be at least 1, not 0"):
            analyze_properties("svd", [saved["ibot"]], [images], output, **{option: 0})
    with pytest.raises(ValueError, match=r"ibot: top_k must lie in 1\.\.12 "):
        analyze_properties("svd", [saved["ibot"]], [images], output, top_k=13)
    with pytest.raises(ValueError, match="analysis must be one of distance, svd, not 'codes'"):
        analyze_properties("codes", [saved["ibot"]], [images], output)
    assert not output.exists()


def test_a_model_that_does_not_fit_is_named_before_any_has_seen_all(saved, images, tmp_path, monkeypatch):
    swin = SwinModel(SwinConfig(image_size=32, patch_size=4, embed_dim=12, depths=[1, 1, 1], num_heads=[1, 2, 3]))
    swin.save_pretrained(tmp_path / "swin")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "swin")
    sizes = []
    monkeypatch.setattr(
        "hf_mim.analysis.analyze_properties.attention_distances",
        lambda model, pixel_values: sizes.append(len(pixel_values)) or attention_distances(model, pixel_values),
    )
    with pytest.raises(ValueError, match="swin: SwinModel gives no attention|swin: SwinModel has .* tokens"):
        analyze_properties("distance", [saved["ibot"], tmp_path / "swin"], [images], tmp_path / "out")
    assert sizes == [1, 1]
    assert not (tmp_path / "out").exists()


def test_images_that_do_not_fit_are_named(encoders, saved, images, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match=r"nowhere/cat\.png does not exist"):
        analyze_properties("svd", [saved["ibot"]], [images / "0.png", "nowhere/cat.png"], output)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images, parquet files or tar shards in .*empty"):
        analyze_properties("svd", [saved["ibot"]], [tmp_path / "empty"], output)
    (tmp_path / "cat.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cannot read image .*cat\.png: not an image"):
        analyze_properties("svd", [saved["ibot"]], [images, tmp_path / "cat.png"], output)

    ragged = tmp_path / "ragged"
    encoders["ibot"].save_pretrained(ragged)
    ViTImageProcessor(do_resize=False).save_pretrained(ragged)
    with pytest.raises(ValueError, match=r"ragged gives images of 16x24 and of 17x26 pixels; it must resize all"):
        analyze_properties("svd", [ragged], [images / "0.png", images / "1.png"], output)
    assert not output.exists()


def test_mistakes_on_the_command_line(saved, images, tmp_path):
    for argv, message in (
        (["distance", saved["ibot"]], "the following arguments are required: IMAGES"),
        (["distance", saved["ibot"], str(images), "--top_k", "3"], "unknown option '--top_k'"),
    ):
        with pytest.raises(ValueError, match=message):
            main([*argv, "--output_dir", str(tmp_path / "out")])
