"""`hf-mim export`: what it reads, writes, prints and refuses; the ONNX file beside a native model."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from onnxruntime import InferenceSession
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    BeitForImageClassification,
    ViTForImageClassification,
    ViTMAEModel,
    ViTModel,
)

import hf_mim_cli as cli
from hf_mim import (
    Beitv2Config,
    Beitv2ForImageClassification,
    Beitv2ImageProcessorPil,
    DBotConfig,
    DBotForImageClassification,
    DBotForPreTraining,
    DBotImageProcessorPil,
    IBotConfig,
    IBotForImageClassification,
    IBotForPreTraining,
    IBotImageProcessorPil,
    IBotSwinConfig,
    IBotSwinModel,
    VQKDConfig,
    VQKDModel,
)
from hf_mim.hub import export_onnx as onnx
from hf_mim.hub.export import export_native
from hf_mim.hub.publish import publish
from tests.testing.loopback_store import TOKEN
from tests.testing.tiny_run import CARD


SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=24, patch_size=8)
SIZES |= dict(initializer_range=0.2)
SWIN = dict(embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=3, image_size=24, patch_size=2)
LABELS = dict(id2label={0: "cat", 1: "dog", 2: "owl"}, label2id={"cat": 0, "dog": 1, "owl": 2})
FILES = {"README.md", "config.json", "model.safetensors"}
CROP = dict(size={"shortest_edge": 30}, crop_size={"height": 24, "width": 24})


def save(model, processor_class, folder):
    """With no tensor at the value that its initialization gives it."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.rand_like(parameter) - 0.15)
    model.eval().save_pretrained(folder)
    processor_class(**CROP).save_pretrained(folder)
    return model


def ibot(folder, cls=IBotForPreTraining, **others):
    config = IBotConfig(**SIZES, out_dim=16, head_hidden_size=24, head_bottleneck_size=8, **others)
    return save(cls(config), IBotImageProcessorPil, folder)


def dbot(folder, cls=DBotForPreTraining, **others):
    decoder = dict(decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
    return save(cls(DBotConfig(**SIZES, **decoder, **others)), DBotImageProcessorPil, folder)


def beitv2(folder, **others):
    config = Beitv2Config(**SIZES, **LABELS, use_mean_pooling=True, **others)
    return save(Beitv2ForImageClassification(config), Beitv2ImageProcessorPil, folder)


def export(*arguments) -> int:
    return cli.main(["export", *map(str, arguments)])


def test_the_teacher_of_a_full_model(tmp_path, capsys):
    """What a run leaves in `pretraining/`: the student, and the network that is deployed in `teacher/`."""
    source, output = tmp_path / "pretraining", tmp_path / "new" / "out"
    torch.manual_seed(0)
    student, teacher = ibot(source), ibot(source / "teacher")
    assert export(source, output) == 0
    assert {path.name for path in output.iterdir()} == {*FILES, "preprocessor_config.json"}
    native = AutoModel.from_pretrained(output)
    images = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        found, expected, other = (model(images).last_hidden_state for model in (native, teacher.ibot, student.ibot))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - other).abs().max() > 1e-2
    assert type(AutoImageProcessor.from_pretrained(output)).__module__.startswith("transformers.models.vit")
    printed = capsys.readouterr().out
    assert f"read     {source}/teacher: IBotModel\nwrote    {output}: ViTModel, 0.0 M parameters\n" in printed
    assert "exact at 24 x 24 pixels. At other sizes, which need interpolate_pos_encoding=True, they differ" in printed
    assert "    from transformers import AutoImageProcessor, AutoModel\n" in printed
    assert f'    model = AutoModel.from_pretrained("{output}")\n' in printed


def test_a_damaged_teacher_is_not_replaced_by_the_student(tmp_path, capsys):
    source, output = tmp_path / "pretraining", tmp_path / "out"
    ibot(source)
    ibot(source / "teacher")
    (source / "teacher" / "config.json").write_text("{")
    assert export(source, output) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("hf-mim: error: ") and "teacher/config.json" in error and not output.exists()


def test_a_teacher_that_cannot_be_asked_for_is_not_replaced_by_the_student(tmp_path, capsys, monkeypatch):
    """Only the student has been downloaded before the Hub is out of reach."""
    repository = tmp_path / "models--org--tiny"
    ibot(repository / "snapshots" / "1")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert export("org/tiny", tmp_path / "out") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("hf-mim: error: We couldn't connect to ") and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "make, options, native_class, printed",
    [
        (dbot, [], ViTModel, "AutoModel.from_pretrained"),
        (dbot, ["--architecture", "vit_mae"], ViTMAEModel, ", mask_ratio=0.0)  # sees all patches"),
        (beitv2, [], BeitForImageClassification, "bilinearly, where BEiT v2 has a spline"),
        (
            lambda folder: ibot(folder, IBotForImageClassification, **LABELS),
            [],
            ViTForImageClassification,
            "model = AutoModelForImageClassification.from_pretrained",
        ),
        (
            lambda folder: dbot(folder, DBotForImageClassification, use_mean_pooling=True, **LABELS),
            [],
            BeitForImageClassification,
            "resizes the position table in another way",
        ),
    ],
)
@torch.no_grad()
def test_every_kind(tmp_path, capsys, make, options, native_class, printed):
    model = make(tmp_path / "model")
    assert export(tmp_path / "model", tmp_path / "out", *options) == 0
    native, report = native_class.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    images, noise = torch.randn(2, 3, 24, 24), torch.rand(2, 9)
    if native_class is ViTMAEModel:
        found, expected = native(images, noise=noise), model.dbot(images, noise=noise)
    else:
        found, expected = native(images), (model.dbot if make is dbot else model)(images)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)
    assert printed in capsys.readouterr().out


@pytest.mark.parametrize("has_card", [True, False])
def test_what_is_exported_can_be_published(tmp_path, loopback_hub, has_card):
    ibot(tmp_path / "model")
    ibot(tmp_path / "model" / "teacher")
    if has_card:
        (tmp_path / "model" / "README.md").write_text(CARD)
    assert export(tmp_path / "model", tmp_path / "out") == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-feature-extraction")
    assert "A `ViTModel` of transformers with the weights of the teacher in `model`." in card.text
    assert "\n```\n\nThe numbers are exact at 24 x 24 pixels. At other sizes" in card.text
    if has_card:
        assert (card.data.license, card.data.tags) == ("apache-2.0", ["hf_mim", "ibot"])
        assert card.text.endswith("## Limits\n\nIt has learned nothing.\n") and card.data.eval_results is None
    else:
        assert card.data.license is None and "names the license in the metadata of this card" in card.text
    api = HfApi(endpoint=loopback_hub.url, token=TOKEN)
    publish(tmp_path / "out", "org/exported", api=api, report=lambda line: None)
    files = loopback_hub.files("org/exported")
    assert set(files) == {*FILES, "preprocessor_config.json"}
    assert 'model = AutoModel.from_pretrained("org/exported")' in files["README.md"].decode()


def test_without_an_image_processor(tmp_path, capsys):
    model = dbot(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    (tmp_path / "out").mkdir()
    assert export(tmp_path / "model", tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    printed = capsys.readouterr().out
    assert "has no image processor, so none is written" in printed and "AutoImageProcessor" not in printed
    assert model.config.model_type == "dbot"


def test_mistakes(tmp_path, capsys, monkeypatch):
    """One line each, and nothing is written."""
    ibot(tmp_path / "model")
    export_native(ibot(tmp_path / "other")).save_pretrained(tmp_path / "native")
    ibot(tmp_path / "pooled", use_mean_pooling=True)
    teacher = dict(teacher_hidden_size=16, codebook_size=8, codebook_dim=4, decoder_num_hidden_layers=1)
    VQKDModel(VQKDConfig(**SIZES, **teacher)).save_pretrained(tmp_path / "tokenizer")
    torn = tmp_path / "torn"
    ibot(torn)
    weights = load_file(torn / "model.safetensors")
    del weights["ibot.layers.1.mlp.fc1.bias"]
    save_file(weights, torn / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    for arguments, message in (
        ((tmp_path / "nowhere", out), "nowhere: there is no such folder; MODEL is a folder or a model id of the Hub"),
        ((tmp_path / "empty", out), "empty: no model can be loaded ("),
        ((tmp_path / "model", tmp_path / "full"), "full exists and is not an empty folder: choose another one"),
        ((tmp_path / "native", out), "native is already a ViTModel of transformers: there is nothing to export"),
        (
            (tmp_path / "tokenizer", out),
            "has the model type 'vqkd'; only these types can be exported: ibot, ibot_swin, bei",
        ),
        ((tmp_path / "pooled", out), "use_mean_pooling=True has no counterpart for an iBOT encoder"),
        ((tmp_path / "model", out, "--architecture", "vit_mae"), "only dBOT's encoder can become a ViTMAE, got IBotM"),
        ((torn, out), "torn: the checkpoint lacks 1 weights, such as layers.1.mlp.fc1.bias"),
    ):
        assert export(*arguments) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("hf-mim: error: ") and message in error
        assert not out.exists() and not (tmp_path / ".out.new").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]

    present = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else present(name))
    assert export(tmp_path / "model", out, "--onnx") == 2
    assert "ONNX export requires onnxscript: pip install hf_mim[onnx]" in capsys.readouterr().err
    assert not out.exists()


def test_onnx(tmp_path, capsys):
    """A native model that is there already, with relative positions; the file gives torch's numbers by itself."""
    torch.manual_seed(0)
    model = beitv2(tmp_path / "model")
    assert export(tmp_path / "model", tmp_path / "native") == 0
    assert export(tmp_path / "native", tmp_path / "out", "--onnx") == 0
    printed = capsys.readouterr().out
    assert f"wrote    {tmp_path}/out/model.onnx: logits for any number of images\n" in printed
    assert "of exactly 24 x 24 pixels; within " in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FILES, "preprocessor_config.json", "model.onnx"}
    assert b"site-packages" not in (tmp_path / "out" / "model.onnx").read_bytes()
    session = InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(entry.name, entry.shape) for entry in session.get_inputs()] == [("pixel_values", ["batch", 3, 24, 24])]
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 50, 3), dtype=np.uint8)
    images = processor([Image.fromarray(image) for image in pixels], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(images).logits
    (logits,) = session.run(["logits"], {"pixel_values": images.numpy()})
    np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ibot", "ibot_classifier", "swin", "dbot", "dbot_pooled", "large"])
@torch.no_grad()
def test_onnx_of_other_models(tmp_path, monkeypatch, kind):
    torch.manual_seed(0)
    model = {
        "ibot": lambda: ibot(tmp_path / "model", layer_scale_init_value=0.1).ibot,
        "ibot_classifier": lambda: ibot(tmp_path / "model", IBotForImageClassification, **LABELS),
        "swin": lambda: IBotSwinModel(IBotSwinConfig(**SWIN)).eval(),
        "dbot": lambda: dbot(tmp_path / "model").dbot.to(torch.bfloat16),
        "dbot_pooled": lambda: dbot(tmp_path / "model", DBotForImageClassification, use_mean_pooling=True, **LABELS),
        "large": lambda: dbot(tmp_path / "model").dbot,
    }[kind]()
    if kind == "large":
        monkeypatch.setattr(onnx, "LARGEST_FILE", 1000)
    native = export_native(model)
    names, difference = onnx.export_onnx(native, tmp_path / "model.onnx")
    assert 0 < difference < 1e-5
    assert native.dtype == model.dtype and native.config._attn_implementation == "sdpa"
    assert (tmp_path / "model.onnx.data").is_file() == (kind == "large")
    images = torch.randn(4, 3, 24, 24)
    expected = native.float()(images)
    session = InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert names == list(expected)
    for name, found in zip(names, session.run(names, {"pixel_values": images.numpy()}), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), expected[name], rtol=0, atol=1e-5)


def test_large_numbers_in_an_onnx_file_may_differ_more(tmp_path):
    native = export_native(ibot(tmp_path / "model").ibot)
    with torch.no_grad():
        native.layernorm.weight.mul_(20_000)
    _, difference = onnx.export_onnx(native, tmp_path / "model.onnx")
    assert 1e-4 < difference < 0.5


def test_an_onnx_file_that_differs_is_refused(tmp_path, capsys, monkeypatch):
    """As it would be if the exporter were wrong about an operator."""
    native = export_native(ibot(tmp_path / "model").ibot)
    native.save_pretrained(tmp_path / "native")
    monkeypatch.setattr(onnx, "ATOL", 1e-9)
    monkeypatch.setattr(onnx, "RTOL", 1e-9)
    assert export(tmp_path / "native", tmp_path / "out", "--onnx") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the ONNX file is wrong: its last_hidden_state differs from torch's by up to " in error
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="a ViTMAE drops random patches"):
        onnx.export_onnx(export_native(dbot(tmp_path / "dbot"), "vit_mae"), tmp_path / "mae.onnx")


def test_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hf-mim"])
    with pytest.raises(SystemExit, match="0"):
        cli.main(["export", "--help"])
    printed = capsys.readouterr().out
    assert "usage: hf-mim export" in printed and "--architecture {vit_mae}" in printed
