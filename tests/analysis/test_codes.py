"""Which patches share a code: the numbers, the choice of codes and patches, the pictures."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hf_mim import Beitv2ImageProcessorPil, VQKDConfig, VQKDModel
from hf_mim.analysis.codes import choose_codes, choose_patches, encode_images, plot_codes, plot_usage
from hf_mim.data.images import UnreadableImageError
from hf_mim.modeling.quantizer_vqkd import code_statistics
from tests.testing.tiny_tokenizer import (
    HEIGHT,
    PATCH,
    PROCESSOR,
    WIDTH,
    codes_of,
    dataset_of,
    tiny_tokenizer,
    write_noise,
)


@pytest.fixture(scope="module")
def tokenizer() -> VQKDModel:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[Path]:
    return write_noise(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_codes_of_all_images_in_their_order(tokenizer, paths, batch_size):
    tokenizer.train()
    tokenizer.decoder.eval()
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    codes = encode_images(tokenizer, dataset_of(paths), PROCESSOR, batch_size, progress=False)
    assert tokenizer.training and not tokenizer.decoder.training
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())
    np.testing.assert_array_equal(codes, codes_of(tokenizer.eval(), paths))
    assert len(np.unique(codes)) > 5


def test_an_unreadable_image_is_named(tokenizer, paths, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=r"cannot read image .*broken\.png: not an image"):
        encode_images(tokenizer, dataset_of([paths[0], tmp_path / "broken.png"]), PROCESSOR)
    rows = [{"bytes": paths[0].read_bytes(), "path": None}, {"bytes": b"no image", "path": None}]
    nameless = datasets.Dataset.from_dict(
        {"image": rows}, features=datasets.Features({"image": datasets.Image(decode=False)})
    )
    with pytest.raises(UnreadableImageError, match=r"image 1: cannot read image \(no file name\)"):
        encode_images(tokenizer, nameless, PROCESSOR)


def test_the_most_used_codes_and_a_quarter_of_rare_ones():
    counts = np.array([5, 100, 0, 7, 90, 1, 60, 8, 70, 80])
    # Of those that are left, the rarest that fill a row of so many patches.
    assert choose_codes(counts, 4, 6) == ([1, 4, 9], [3])
    assert choose_codes(counts, 4, 8) == ([1, 4, 9], [7])
    assert choose_codes(counts, 8, 5) == ([1, 4, 9, 8, 6, 7], [3, 0])
    # No row of 75 is filled by any that is left: the most used of them.
    assert choose_codes(counts, 4, 75) == ([1, 4, 9], [8])
    assert choose_codes(counts, 1, 6) == ([1], [])
    assert choose_codes(counts, 9, 6) == choose_codes(counts, 50, 6) == ([1, 4, 9, 8, 6, 7, 3, 0, 5], [])


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40).filter(any), st.integers(1, 20), st.integers(1, 10))
def test_any_choice_is_of_used_codes_without_repeats(counts, num_codes, patches):
    counts = np.array(counts)
    frequent, rare = choose_codes(counts, num_codes, patches)
    assert len(set(frequent + rare)) == len(frequent + rare) == min(num_codes, (counts > 0).sum())
    assert all(counts[frequent + rare] > 0)
    assert sorted(counts[frequent], reverse=True) == sorted(counts, reverse=True)[: len(frequent)]
    assert list(counts[frequent + rare]) == sorted(counts[frequent + rare], reverse=True)


def test_patches_come_from_as_many_images_as_possible():
    codes = np.zeros((4, 2, 3), dtype=int)
    codes[0] = 7
    codes[2, 1, 2] = codes[3, 0, 1] = 7
    for seed in range(20):
        chosen = choose_patches(codes, 7, 4, np.random.default_rng(seed))
        assert chosen.shape == (4, 3) and (codes[tuple(chosen.T)] == 7).all()
        assert len(np.unique(chosen, axis=0)) == 4
        assert set(chosen[:3, 0]) == {0, 2, 3} and chosen[3, 0] == 0
    assert len(choose_patches(codes, 7, 100, np.random.default_rng(0))) == 8
    firsts = {tuple(choose_patches(codes, 7, 1, np.random.default_rng(seed))[0]) for seed in range(200)}
    assert len(firsts) == 8


def test_the_picture_shows_the_patches_of_each_code(tokenizer, tmp_path, monkeypatch):
    """Images made of one-color patches, and a tokenizer whose code is their color."""
    random = np.random.default_rng(0)
    numbers = random.choice(4, size=(6, 2, 3), p=[0.5, 0.3, 0.15, 0.05])
    for number, colors in enumerate(numbers):
        pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        pixels[..., 0] = (colors * 20 + 40).repeat(PATCH, axis=0).repeat(PATCH, axis=1)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")

    def encode(pixel_values: torch.Tensor) -> torch.Tensor:
        red = (pixel_values[:, 0, ::PATCH, ::PATCH] + 1) * 127.5
        return ((red - 40) / 20).round().long().flatten(1)

    monkeypatch.setattr(tokenizer, "encode", encode)
    dataset = dataset_of(sorted(tmp_path.iterdir()))
    codes = encode_images(tokenizer, dataset, PROCESSOR)
    np.testing.assert_array_equal(codes, numbers)

    figure = plot_codes(tokenizer, dataset, PROCESSOR, codes, tmp_path / "new" / "codes.png", 3, 10)
    counts = np.bincount(numbers.ravel(), minlength=4)
    assert counts[2] < 10 < counts[0]
    labels = [axes.texts[0].get_text() for axes in figure.axes]
    assert labels == [f"code 0\n{counts[0]} x", f"code 1\n{counts[1]} x", f"code 2\n{counts[2]} x\n(rare)"]
    assert figure.get_suptitle() == "the 2 most used codes and 1 rare, in patches of 6 images"
    side, gap, margin = 2 * PATCH, 1, PATCH // 2
    for code, axes in enumerate(figure.axes):
        strip = axes.images[0].get_array()
        assert strip.shape == (side, 10 * (side + gap), 3)
        [outlines] = axes.collections
        assert len(outlines.get_paths()) == min(10, counts[code])
        for number in range(10):
            left = number * (side + gap)
            view = strip[:, left : left + side]
            if number >= counts[code]:
                np.testing.assert_array_equal(view, 1)
                continue
            inside = view[margin : margin + PATCH, margin : margin + PATCH]
            color = [(code * 20 + 40) / 255, 0, 0]
            np.testing.assert_allclose(inside, np.broadcast_to(color, inside.shape), atol=1e-6)
            corners = outlines.get_paths()[number].vertices
            np.testing.assert_allclose(corners.min(axis=0), [left + margin - 0.5, margin - 0.5])
            np.testing.assert_allclose(corners.max(axis=0), [left + margin + PATCH - 0.5, margin + PATCH - 0.5])
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["codes.png"]


def test_many_codes_stand_in_two_columns(tokenizer, paths, tmp_path):
    dataset = dataset_of(paths)
    codes = encode_images(tokenizer, dataset, PROCESSOR)
    figure = plot_codes(tokenizer, dataset, PROCESSOR, codes, tmp_path / "codes.png", 9, 2)
    assert len(np.unique(codes)) >= 9
    by_use = np.argsort(-np.bincount(codes.ravel()), kind="stable")
    # Top to bottom, then the second column; the axes count from left to right.
    names = [axes.texts[0].get_text().split()[1] if axes.texts else None for axes in figure.axes]
    assert len(names) == 10 and names[9] is None
    assert names[0::2] == [str(code) for code in by_use[:5]] and names[1] == str(by_use[5])


def test_surroundings_are_those_of_the_image_and_white_beyond_it(tokenizer, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    # Every patch has a code of its own.
    monkeypatch.setattr(tokenizer, "encode", lambda pixel_values: torch.arange(6)[None])
    dataset = dataset_of([tmp_path / "one.png"])
    codes = encode_images(tokenizer, dataset, PROCESSOR)
    figure = plot_codes(tokenizer, dataset, PROCESSOR, codes, tmp_path / "codes.png", 6, 1)
    padded = np.pad(pixels / 255, ((4, 4), (4, 4), (0, 0)), constant_values=1)
    for code, axes in enumerate(figure.axes):
        top, left = PATCH * (code // 3), PATCH * (code % 3)
        view = padded[top : top + 16, left : left + 16]
        expected = (1 + view) / 2
        expected[4:12, 4:12] = view[4:12, 4:12]
        np.testing.assert_allclose(axes.images[0].get_array()[:, :16], expected, atol=1e-6)


def test_gray_images_and_an_odd_patch_size(tmp_path):
    torch.manual_seed(0)
    sizes = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, decoder_num_hidden_layers=1)
    config = VQKDConfig(
        **sizes, image_size=14, patch_size=7, num_channels=1, codebook_size=4, codebook_dim=4, kmeans_init=False
    )
    model = VQKDModel(config).eval()
    size = {"height": 14, "width": 14}
    processor = Beitv2ImageProcessorPil(
        size=size, crop_size=size, do_convert_rgb=False, image_mean=[0.5], image_std=[0.5]
    )
    pixels = np.random.default_rng(0).integers(0, 256, (14, 14), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "gray.png")
    dataset = dataset_of([tmp_path / "gray.png"])
    codes = encode_images(model, dataset, processor)
    figure = plot_codes(model, dataset, processor, codes, tmp_path / "codes.png", 4, 4)
    strip = figure.axes[0].images[0].get_array()
    assert strip.shape == (13, 4 * 14, 3)
    places = np.argwhere(codes == int(figure.axes[0].texts[0].get_text().split()[1]))
    patches = [pixels[7 * row : 7 * row + 7, 7 * column : 7 * column + 7] / 255 for _, row, column in places]
    assert any(np.allclose(strip[3:10, 3:10], patch[..., None], atol=1e-6) for patch in patches)


@pytest.mark.parametrize(("num_codes", "patches"), [(0, 5), (5, 0)])
def test_nothing_to_draw_is_an_error(tokenizer, paths, tmp_path, num_codes, patches):
    dataset = dataset_of(paths[:1])
    codes = encode_images(tokenizer, dataset, PROCESSOR)
    with pytest.raises(ValueError, match=f"must be at least 1, not {num_codes} and {patches}"):
        plot_codes(tokenizer, dataset, PROCESSOR, codes, tmp_path / "codes.png", num_codes, patches)
    assert not list(tmp_path.iterdir())


def test_usage_is_drawn_by_rank(tmp_path):
    counts = np.array([3, 0, 10, 1, 0, 2])
    [axes] = plot_usage(counts, tmp_path / "usage.png").axes
    [stairs, dead] = axes.patches
    np.testing.assert_array_equal(stairs.get_data().values, [10, 3, 2, 1])
    np.testing.assert_array_equal(stairs.get_data().edges, range(5))
    assert (dead.get_x(), dead.get_width()) == (4, 2)
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), 16 / 6)
    perplexity = code_statistics(torch.from_numpy(counts))["perplexity"]
    assert axes.get_title() == f"4 of 6 codes used (66.7 %) by 16 patches, perplexity {perplexity:.1f}"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "if all codes were used equally often",
        "2 codes without a patch",
    ]
    [axes] = plot_usage(np.array([3, 4]), tmp_path / "usage.png").axes
    assert len(axes.patches) == 1 and len(axes.get_legend().get_texts()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["usage.png"]
