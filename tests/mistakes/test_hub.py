"""Files and folders that cannot be converted, exported or evaluated: one line, quickly, and nothing left behind."""

import io
import json
import os
import pickle
import time
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_mim import IBotConfig, IBotImageProcessorPil, IBotModel, convert_checkpoint
from hf_mim.modeling.modeling_dbot import sincos_positions
from tests.testing.mistakes import refusal


WIDTH, PATCH, SIDE = 64, 4, 4


def blocks(name: str, width: int, depth: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
    }
    return {
        f"{name}.{number}.{part}": torch.randn(shape, generator=generator)
        for number in range(depth)
        for part, shape in shapes.items()
    }


def vit(width: int = WIDTH, positions=None) -> dict[str, torch.Tensor]:
    """A plain ViT under the names of the original code."""
    generator = torch.Generator().manual_seed(1)
    learned = torch.randn(1, 1 + SIDE**2, width, generator=generator)
    return {
        "cls_token": torch.randn(1, 1, width, generator=generator),
        "pos_embed": learned if positions is None else positions,
        "patch_embed.proj.weight": torch.randn(width, 3, PATCH, PATCH, generator=generator),
        "patch_embed.proj.bias": torch.randn(width, generator=generator),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    } | blocks("blocks", width, 2, 2)


def dbot(decoder_width: int) -> dict[str, torch.Tensor]:
    fixed = sincos_positions(WIDTH, (SIDE, SIDE))
    return (
        vit(positions=fixed)
        | {
            "mask_token": torch.zeros(1, 1, decoder_width),
            "decoder_embed.weight": torch.zeros(decoder_width, WIDTH),
            "decoder_embed.bias": torch.zeros(decoder_width),
            "decoder_pos_embed": sincos_positions(decoder_width, (SIDE, SIDE)),
            "decoder_norm.weight": torch.ones(decoder_width),
            "decoder_norm.bias": torch.zeros(decoder_width),
            "decoder_predp.weight": torch.zeros(WIDTH, decoder_width),
            "decoder_predp.bias": torch.zeros(WIDTH),
        }
        | blocks("decoder_blocks", decoder_width, 1, 3)
    )


@pytest.mark.parametrize(("width", "heads"), [(40, 5), (192, 3), (512, 8)])
def test_nothing_is_checked_against_a_default_that_the_file_decides(width, heads):
    """512 is the default width of a decoder, and not a multiple of 5 or 3."""
    found = convert_checkpoint(dbot(width), num_attention_heads=4, decoder_num_attention_heads=heads)
    config = found.config
    assert (config.decoder_hidden_size, config.decoder_num_attention_heads) == (width, heads)
    assert config.image_size == SIDE * PATCH and not config.trainable_position_embeddings


class Code:
    def __reduce__(self):
        return os.mkdir, ("trap",)


def changed(**tensors):
    return lambda: vit() | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


def cyclic():
    content: dict = {}
    content["model"] = content
    return content


def nested():
    content: dict = vit()
    for _ in range(200):
        content = {"state": content, "other": [1]}
    return {"model": vit(), "extra": content}


WEIGHTS = [
    ("NaN", changed(norm__weight=torch.full((WIDTH,), torch.nan)), "norm.weight holds 64 NaN of 64 values"),
    ("infinity", changed(norm__bias=torch.tensor([torch.inf] + 63 * [0.0])), "norm.bias holds 1 infinite of 64"),
    (
        "float64 beyond float32",
        changed(norm__bias=torch.full((WIDTH,), 1e300, dtype=torch.float64)),
        "norm.bias holds values beyond the range of float32",
    ),
    ("sparse", changed(norm__bias=torch.zeros(WIDTH).to_sparse()), "norm.bias is sparse, plain tensors are wanted"),
    ("meta", changed(norm__bias=torch.zeros(WIDTH, device="meta")), "norm.bias is without values (meta)"),
    ("integers", changed(norm__bias=torch.zeros(WIDTH, dtype=torch.int64)), "norm.bias is of int64"),
    ("complex", changed(norm__bias=torch.zeros(WIDTH, dtype=torch.complex64)), "norm.bias is of complex64"),
    ("other shape", changed(norm__bias=torch.zeros(3)), "norm.bias gives"),
    ("more tensors", changed(blocks__0__extra=torch.zeros(3)), "the nearest is ibot, but it has blocks.0.extra"),
    ("text for a tensor", changed(norm__bias="zeros"), "'norm.bias' is a str"),
    ("itself", cyclic, "model.pth holds a dict that contains itself, and no state dict"),
    ("nested", nested, "holds tensors in 'extra' besides model, and their purpose is unknown"),
    ("empty", dict, "holds no tensors"),
    ("list", lambda: [1, 2], "holds a list, not a checkpoint"),
    ("code", lambda: {"model": Code()}, "holds code: it references "),
    ("nothing of ours", lambda: {"weight": torch.zeros(3)}, "weight"),
]


@pytest.mark.parametrize(("make", "message"), [row[1:] for row in WEIGHTS], ids=[row[0] for row in WEIGHTS])
def test_files_that_do_not_convert(tmp_path, capsys, monkeypatch, make, message):
    monkeypatch.chdir(tmp_path)
    torch.save(make(), "model.pth")
    start = time.monotonic()
    assert message in refusal(capsys, "convert", "model.pth", "out", "--family", "ibot", "--num_attention_heads", 4)
    assert time.monotonic() - start < 10
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_a_record_that_is_cut_short(tmp_path, capsys):
    """torch.load reads on into the next record."""
    buffer = io.BytesIO()
    torch.save(vit(), buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(tmp_path / "cut.pth", "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            target.writestr(entry.filename, data[:-8] if entry.filename.endswith("/data/7") else data)
    line = refusal(capsys, "convert", tmp_path / "cut.pth", tmp_path / "out", "--num_attention_heads", 4)
    assert "cut.pth is damaged: the record data/7 has" in line and "and its tensors need" in line


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "model.pth is empty"),
        (b"<html>", "is a text file or web page"),
        (b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer"),
        (np.random.default_rng(0).bytes(5000), "is not a checkpoint, or is damaged"),
        (pickle.dumps(Code(), protocol=2), "holds code: it references"),
        (b"PK\3\4" + bytes(100), "is truncated"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "is damaged or not a safetensors file"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, capsys, data, message):
    (tmp_path / "model.pth").write_bytes(data)
    assert message in refusal(capsys, "convert", tmp_path / "model.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_never_end(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.pth")
    for source in (tmp_path / "pipe.pth", "/dev/zero"):
        line = refusal(capsys, "convert", source, tmp_path / "out")
        assert f"{source} is a pipe or a device, which may never end: pass a regular file" in line


@pytest.fixture
def encoder(tmp_path):
    """A small encoder with its image processor."""
    folder = tmp_path / "encoder"
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4)
    IBotModel(IBotConfig(**sizes)).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    IBotImageProcessorPil(size={"shortest_edge": 16}, crop_size=size).save_pretrained(folder)
    return folder


CONFIGURATIONS = [
    ({"image_size": "16"}, "image_size"),
    ({"image_size": 0}, "image_size (0) must be a multiple of patch_size (4)"),
    ({"image_size": True}, "image_size"),
    ({"image_size": [16, 16, 16]}, "image_size must be one number or (height, width)"),
    ({"image_size": 10**9}, "image_size must be at most"),
    ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
    ({"hidden_size": 10**9}, "hidden_size must be at most"),
    ({"hidden_size": 32}, "the weights do not fit the configuration: "),
    ({"intermediate_size": 10**12}, "intermediate_size must be at most"),
    ({"num_hidden_layers": 10**7}, "num_hidden_layers must be at most 10000, got 10000000"),
    ({"num_hidden_layers": -1}, "no model can be loaded"),
    ({"num_attention_heads": 3}, "hidden_size (16) must be a multiple of num_attention_heads (3)"),
    ({"hidden_act": "os.system"}, "hidden_act must be one of"),
    ({"hidden_act": [1]}, "hidden_act"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be a finite number, got nan"),
    ({"model_type": [1]}, "its files are damaged (TypeError: "),
    ({"model_type": "nope"}, "no model can be loaded"),
    ({"id2label": [1]}, "its files are damaged (AttributeError: "),
    ({"dtype": "float99"}, "its files are damaged (AttributeError: "),
]


@pytest.mark.parametrize(("change", "message"), CONFIGURATIONS, ids=[json.dumps(row[0]) for row in CONFIGURATIONS])
def test_configurations_that_nobody_has(encoder, tmp_path, capsys, change, message):
    fields = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps(fields | change))
    start = time.monotonic()
    assert message in refusal(capsys, "export", encoder, tmp_path / "out")
    assert message in refusal(capsys, "evaluate", "knn", encoder, "photo-tiles")
    assert time.monotonic() - start < 15 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "{", "null", "[1]", 3000 * "[", 3000 * '{"a":'])
def test_configurations_that_are_no_json(encoder, tmp_path, capsys, text):
    (encoder / "config.json").write_text(text)
    assert "no model can be loaded" in refusal(capsys, "export", encoder, tmp_path / "out")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(encoder, tmp_path, capsys, value):
    weights = load_file(encoder / "model.safetensors")
    weights["layernorm.bias"][3] = value
    save_file(weights, encoder / "model.safetensors", metadata={"format": "pt"})
    found = "1 NaN of 16 values" if value != value else "1 infinite of 16 values"
    for words in (("export", encoder, tmp_path / "out"), ("evaluate", "knn", encoder, "photo-tiles")):
        assert f"layernorm.bias holds {found}" in refusal(capsys, *words)


def test_damaged_weights(encoder, tmp_path, capsys):
    file = encoder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "no model can be loaded (" in refusal(capsys, "export", encoder, tmp_path / "out")
