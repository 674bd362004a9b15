"""Remote code: models of this package in a process that has transformers and not this package."""

import ast
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import HfApi
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, BeitConfig, BeitModel, dynamic_module_utils
from transformers.dynamic_module_utils import get_class_from_dynamic_module, get_imports, get_relative_imports

import hf_mim
from hf_mim.hub.export import native_image_processor
from hf_mim.hub.remote_code import AUTO_MAPS, MODELING, PROCESSOR_MAPS, add_code
from hf_mim.modeling import relative_position_beitv2
from tests.testing.fresh_process import run_fresh
from tests.testing.image_processing import in_default_backend
from tests.testing.loopback_store import TOKEN


SIZES = dict(hidden_size=32, num_attention_heads=4, image_size=24, patch_size=8, initializer_range=0.2)
PROCESSOR = dict(size={"shortest_edge": 30}, crop_size={"height": 24, "width": 24})
METHODS = ("ibot", "ibot_swin", "beitv2", "dbot", "vqkd")


def shaken(model):
    """No parameter keeps the value of its initialization."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.rand_like(parameter))
    return model.eval()


def pretraining_model(method: str):
    torch.manual_seed(0)
    head = dict(out_dim=16, patch_out_dim=16, head_hidden_size=24, head_bottleneck_size=8)
    if method == "ibot":
        model = hf_mim.IBotForPreTraining(hf_mim.IBotConfig(**SIZES, **head, num_hidden_layers=2))
    elif method == "ibot_swin":
        config = hf_mim.IBotSwinConfig(
            **head, embed_dim=16, depths=[1, 2], num_heads=[2, 4], window_size=2, image_size=24, initializer_range=0.2
        )
        model = hf_mim.IBotSwinForPreTraining(config)
    elif method == "beitv2":
        model = hf_mim.Beitv2ForPreTraining(
            hf_mim.Beitv2Config(**SIZES, num_hidden_layers=3, early_layers=2, vocab_size=16)
        )
    elif method == "dbot":
        config = hf_mim.DBotConfig(
            **SIZES, num_hidden_layers=2, decoder_hidden_size=16, decoder_num_hidden_layers=1, target_dim=8
        )
        model = hf_mim.DBotForPreTraining(config)
    else:
        config = hf_mim.VQKDConfig(
            **SIZES,
            num_hidden_layers=2,
            decoder_num_hidden_layers=1,
            codebook_size=16,
            codebook_dim=8,
            target_dim=8,
            kmeans_init=False,
        )
        model = hf_mim.VQKDModel(config)
    return shaken(model)


def inputs_of(method: str) -> dict[str, torch.Tensor]:
    """Images, masks and targets of one pre-training step."""
    generator = torch.Generator().manual_seed(0)
    images, mask = torch.randn(2, 3, 24, 24, generator=generator), torch.zeros(2, 9, dtype=torch.bool)
    mask[0, ::2] = mask[1, 1::3] = True
    if method in ("ibot", "ibot_swin"):
        targets = torch.rand(2, 1, 16, generator=generator), torch.rand(int(mask.sum()), 16, generator=generator)
        return {
            "pixel_values": images[:, None],
            "bool_masked_pos": mask[:, None],
            "local_pixel_values": torch.randn(2, 2, 3, 16, 16, generator=generator),
            "target_cls": targets[0] / targets[0].sum(-1, keepdim=True),
            "target_patch": targets[1] / targets[1].sum(-1, keepdim=True),
        }
    if method == "beitv2":
        codes = torch.randint(16, (2, 9), generator=generator)
        return {"pixel_values": images, "bool_masked_pos": mask, "labels": codes}
    if method == "dbot":
        labels = torch.randn(2, 10, 8, generator=generator)
        return {"pixel_values": images, "noise": torch.rand(2, 9, generator=generator), "labels": labels}
    return {"pixel_values": images.clamp(-1, 1), "labels": torch.randn(2, 9, 8, generator=generator)}


def tensors_of(output) -> dict[str, torch.Tensor]:
    return {name: value.contiguous() for name, value in output.items() if isinstance(value, torch.Tensor)}


def image_processor(method: str):
    if method == "vqkd":
        return hf_mim.Beitv2ImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3, **PROCESSOR)
    return {
        "ibot": hf_mim.IBotImageProcessorPil,
        "ibot_swin": hf_mim.IBotImageProcessorPil,
        "beitv2": hf_mim.Beitv2ImageProcessorPil,
        "dbot": hf_mim.DBotImageProcessorPil,
    }[method](**PROCESSOR)


def classifier_of(folder: Path, method: str):
    """A classifier on the encoder of the model in `folder`, with weights for its three classes."""
    classes = {
        "ibot": hf_mim.IBotForImageClassification,
        "ibot_swin": hf_mim.IBotSwinForImageClassification,
        "beitv2": hf_mim.Beitv2ForImageClassification,
        "dbot": hf_mim.DBotForImageClassification,
    }
    torch.manual_seed(0)
    return shaken(classes[method].from_pretrained(folder, num_labels=3))


WITHOUT_THE_PACKAGE = """
import os
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForPreTraining,
    dynamic_module_utils,
    pipeline,
)

os.chdir({root!r})
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # Fails at once where a user would be asked.
trusted = dict(trust_remote_code=True)
image = Image.open("image.png")


def save(output, name):
    tensors = {{key: value.contiguous() for key, value in output.items() if isinstance(value, torch.Tensor)}}
    save_file(tensors, name)


for method in ("ibot", "ibot_swin", "beitv2", "dbot", "vqkd"):
    for flag in (dict(), dict(trust_remote_code=False)):
        for auto_class in (AutoConfig, AutoModel, AutoModelForPreTraining, AutoImageProcessor):
            try:
                auto_class.from_pretrained(method, **flag)
            except ValueError as error:
                assert "trust_remote_code=True" in str(error), error
            else:
                raise AssertionError(f"{{method}}: {{auto_class}} ran code that nobody trusted")

    config = AutoConfig.from_pretrained(method, **trusted)
    assert type(config).__module__.startswith("transformers_modules."), type(config)
    inputs = load_file(f"{{method}}-inputs.safetensors")
    images = inputs["pixel_values"].flatten(0, -4)
    processor = AutoImageProcessor.from_pretrained(method, **trusted)
    encoder = AutoModel.from_pretrained(method, **trusted)
    model, report = AutoModelForPreTraining.from_pretrained(method, output_loading_info=True, **trusted)
    assert not any(report.values()), report
    with torch.no_grad():
        save(processor(image, return_tensors="pt"), f"{{method}}-processor.safetensors")
        pil = AutoImageProcessor.from_pretrained(method, backend="pil", **trusted)
        save(pil(image, return_tensors="pt"), f"{{method}}-processor-pil.safetensors")
        save(encoder(images), f"{{method}}-encoder.safetensors")
        save(model(**inputs), f"{{method}}-pretraining.safetensors")
        model.save_pretrained(f"{{method}}-again")
        processor.save_pretrained(f"{{method}}-again")
        model = AutoModelForPreTraining.from_pretrained(f"{{method}}-again", **trusted)
        save(model(**inputs), f"{{method}}-again.safetensors")
        processor = AutoImageProcessor.from_pretrained(f"{{method}}-again", **trusted)
        save(processor(image, return_tensors="pt"), f"{{method}}-processor-again.safetensors")
    if method == "vqkd":
        continue

    model = AutoModelForImageClassification.from_pretrained(f"{{method}}-classifier", **trusted)
    backbone = AutoBackbone.from_config(AutoConfig.from_pretrained(method, out_indices=[1], **trusted), **trusted)
    assert type(backbone).__name__.endswith("Backbone") and len(backbone.channels) == 1
    with torch.no_grad():
        save(model(images), f"{{method}}-classification.safetensors")
    features = pipeline("image-feature-extraction", model=method, **trusted)(image)
    np.save(f"{{method}}-features.npy", np.array(features))
    scores = pipeline("image-classification", model=f"{{method}}-classifier", **trusted)(image)
    np.save(f"{{method}}-scores.npy", [score["score"] for score in sorted(scores, key=lambda score: score["label"])])

masked = AutoModelForMaskedImageModeling.from_pretrained("beitv2", **trusted)
with torch.no_grad():
    save(masked(**load_file("beitv2-inputs.safetensors")), "beitv2-masked.safetensors")
teacher = AutoModelForPreTraining.from_pretrained("ibot", subfolder="teacher", **trusted)
with torch.no_grad():
    save(teacher(**load_file("ibot-inputs.safetensors")), "ibot-teacher.safetensors")
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Models with code, and what a process without this package made of them."""
    root = tmp_path_factory.mktemp("remote_code")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "image.png")
    for method in METHODS:
        pretraining_model(method).save_pretrained(root / method)
        image_processor(method).save_pretrained(root / method)
        save_file(inputs_of(method), root / f"{method}-inputs.safetensors")
        if method == "ibot":
            shaken(pretraining_model(method)).save_pretrained(root / "ibot" / "teacher")
        add_code(root / method)
        if method != "vqkd":
            classifier_of(root / method, method).save_pretrained(root / f"{method}-classifier")
            image_processor(method).save_pretrained(root / f"{method}-classifier")
            add_code(root / f"{method}-classifier")
    run_fresh(WITHOUT_THE_PACKAGE.format(root=str(root)), {"HF_MODULES_CACHE": str(root / "modules")})
    return root


def assert_saved(file: Path, expected: dict[str, torch.Tensor]):
    actual = load_file(file)
    assert actual.keys() == expected.keys() and actual
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=1e-6, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_same_numbers_without_the_package(root, method):
    inputs, model, image = inputs_of(method), pretraining_model(method), Image.open(root / "image.png")
    expected = tensors_of(model(**inputs))
    assert expected["loss"].isfinite()
    assert_saved(root / f"{method}-pretraining.safetensors", expected)
    assert_saved(root / f"{method}-again.safetensors", expected)

    images = inputs["pixel_values"].flatten(0, -4)
    assert_saved(root / f"{method}-encoder.safetensors", tensors_of(model.base_model(images)))
    pixel_values = image_processor(method)(image, return_tensors="pt")
    assert_saved(root / f"{method}-processor-pil.safetensors", dict(pixel_values))
    pixel_values = in_default_backend(image_processor(method))(image, return_tensors="pt")
    assert_saved(root / f"{method}-processor.safetensors", dict(pixel_values))
    assert_saved(root / f"{method}-processor-again.safetensors", dict(pixel_values))
    if method == "vqkd":
        return

    features = model.base_model(**pixel_values).last_hidden_state
    np.testing.assert_allclose(np.load(root / f"{method}-features.npy"), features, rtol=0, atol=1e-6)
    classifier = classifier_of(root / method, method)
    assert_saved(root / f"{method}-classification.safetensors", tensors_of(classifier(images)))
    scores = classifier(**pixel_values).logits.softmax(-1)[0]
    np.testing.assert_allclose(np.load(root / f"{method}-scores.npy"), scores, rtol=0, atol=1e-6)


@torch.no_grad()
def test_further_heads_without_the_package(root):
    model = pretraining_model("beitv2")
    assert_saved(root / "beitv2-masked.safetensors", tensors_of(model(**inputs_of("beitv2"))))
    student, teacher = pretraining_model("ibot"), shaken(pretraining_model("ibot"))
    expected = tensors_of(teacher(**inputs_of("ibot")))
    assert not torch.allclose(expected["loss"], student(**inputs_of("ibot")).loss)
    assert_saved(root / "ibot-teacher.safetensors", expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_package_wins_where_it_is_imported(root, method):
    processor_class = type(in_default_backend(image_processor(method)))
    for flag in ({}, {"trust_remote_code": False}, {"trust_remote_code": True}):
        model = AutoModel.from_pretrained(root / method, **flag)
        assert type(model) is type(pretraining_model(method).base_model)
        assert type(AutoConfig.from_pretrained(root / method, **flag)) is type(model.config)
        assert type(AutoImageProcessor.from_pretrained(root / method, **flag)) is processor_class


FROM_THE_HUB = """
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoBackbone, AutoModel, AutoModelForPreTraining, AutoImageProcessor

trusted = dict(trust_remote_code=True)
for name, options in (("ibot", dict(subfolder="teacher")), ("beitv2", dict())):
    backbone = AutoBackbone.from_pretrained(f"org/{{name}}", out_indices=[1], **trusted)
    encoder = AutoModel.from_pretrained(f"org/{{name}}", **trusted)
    model = AutoModelForPreTraining.from_pretrained(f"org/{{name}}", **options, **trusted)
    processor = AutoImageProcessor.from_pretrained(f"org/{{name}}", **trusted)
    assert all(type(part).__module__.startswith("transformers_modules.org.") for part in (backbone, model, processor))
    inputs = load_file(f"{root}/{{name}}-inputs.safetensors")
    images = inputs["pixel_values"].flatten(0, -4)
    with torch.no_grad():
        results = {{
            "loss": model(**inputs).loss,
            "map": backbone(images).feature_maps[0],
            "tokens": encoder(images).last_hidden_state,
        }}
    save_file(results, f"{root}/{{name}}-hub.safetensors")
"""


@torch.no_grad()
def test_from_the_hub(root, loopback_hub):
    """There the code of a repository has one place, and a backbone can be loaded by name."""
    api = HfApi(endpoint=loopback_hub.url, token=TOKEN)
    for method in ("ibot", "beitv2"):
        api.create_repo(f"org/{method}")
        api.upload_folder(repo_id=f"org/{method}", folder_path=root / method)
    environment = loopback_hub.environment | {"HF_MODULES_CACHE": str(root / "hub-modules")}
    run_fresh(FROM_THE_HUB.format(root=root), environment)
    for method, backbone_class in (("ibot", hf_mim.IBotBackbone), ("beitv2", hf_mim.Beitv2Backbone)):
        inputs, model = inputs_of(method), pretraining_model(method)
        images = inputs["pixel_values"].flatten(0, -4)
        backbone = backbone_class.from_pretrained(root / method, out_indices=[1]).eval()
        expected = {
            "loss": (shaken(pretraining_model(method)) if method == "ibot" else model)(**inputs).loss,
            "map": backbone(images).feature_maps[0],
            "tokens": model.base_model(images).last_hidden_state,
        }
        assert_saved(root / f"{method}-hub.safetensors", expected)


def test_what_is_in_the_folder(root, tmp_path):
    model, processor = pretraining_model("ibot"), image_processor("ibot")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config, preprocessing = (
        json.loads((tmp_path / name).read_text()) for name in ("config.json", "preprocessor_config.json")
    )
    before = {file.name for file in tmp_path.iterdir()}
    added = add_code(tmp_path)
    assert added == [
        "configuration_common.py",
        "configuration_ibot.py",
        "head_ibot.py",
        "image_processing_mim.py",
        "image_processing_pil_mim.py",
        "layers.py",
        "modeling_common.py",
        "modeling_ibot.py",
        "modeling_ibot_pretraining.py",
    ]
    assert {file.name for file in tmp_path.iterdir()} == before | set(added)
    for name in added:
        assert (tmp_path / name).read_bytes() == (MODELING / name).read_bytes()
    assert json.loads((tmp_path / "config.json").read_text()) == config | {"auto_map": AUTO_MAPS["ibot"]}
    auto_map = {"AutoImageProcessor": PROCESSOR_MAPS["IBotImageProcessor"]["AutoImageProcessor"]}
    assert json.loads((tmp_path / "preprocessor_config.json").read_text()) == preprocessing | {"auto_map": auto_map}

    teacher = root / "ibot" / "teacher"
    assert json.loads((teacher / "config.json").read_text())["auto_map"] == AUTO_MAPS["ibot"]
    assert {file.name for file in teacher.iterdir()} == {"config.json", "model.safetensors"}
    contents = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert add_code(str(tmp_path)) == added
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == contents
    # And the next model that this process saves is saved without code.
    model.save_pretrained(tmp_path / "next")
    processor.save_pretrained(tmp_path / "next")
    assert not list((tmp_path / "next").glob("*.py"))
    assert "auto_map" not in (tmp_path / "next" / "config.json").read_text()
    assert "auto_map" not in (tmp_path / "next" / "preprocessor_config.json").read_text()
    # Nor does a native processor name the code of the one that it was made from.
    assert "auto_map" not in native_image_processor(AutoImageProcessor.from_pretrained(tmp_path)).to_dict()


def test_folders_that_get_no_code(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        add_code(tmp_path)
    config = BeitConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16)
    BeitModel(config).save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="holds a model of type 'beit', which loads without the code"):
        add_code(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    (tmp_path / "config.json").write_text('{"model_type": "ibot"')
    with pytest.raises(OSError, match="config.json is not a JSON file"):
        add_code(tmp_path)
    assert not list(tmp_path.glob("*.py"))


def test_a_native_image_processor_needs_no_code(tmp_path):
    pretraining_model("dbot").save_pretrained(tmp_path)
    native_image_processor(image_processor("dbot")).save_pretrained(tmp_path)
    before = (tmp_path / "preprocessor_config.json").read_bytes()
    assert not [name for name in add_code(tmp_path) if name.startswith("image_processing")]
    assert (tmp_path / "preprocessor_config.json").read_bytes() == before


def test_the_maps_say_what_the_package_registers():
    """Every class that `import hf_mim` registers with an Auto class is also in the remote code, under that class."""
    configs = [getattr(hf_mim, name) for name in hf_mim.__all__ if name.endswith("Config")]
    assert set(AUTO_MAPS) == {config.model_type for config in configs}
    for config in configs:
        registered = {"AutoConfig": config}
        for name in (
            "AutoModel",
            "AutoModelForPreTraining",
            "AutoModelForMaskedImageModeling",
            "AutoModelForImageClassification",
            "AutoBackbone",
        ):
            if config in getattr(transformers, name)._model_mapping:
                registered[name] = getattr(transformers, name)._model_mapping[config]
        expected = {name: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for name, cls in registered.items()}
        assert AUTO_MAPS[config.model_type] == expected


@pytest.mark.parametrize("name", PROCESSOR_MAPS)
def test_the_image_processors_are_where_the_maps_say(name):
    for backend, suffix in (("torchvision", ""), ("pil", "Pil")):
        module, class_name = PROCESSOR_MAPS[name]["AutoImageProcessor"][backend].split(".")
        assert class_name == name + suffix
        assert hasattr(importlib.import_module(f"hf_mim.modeling.{module}"), class_name)


@pytest.mark.parametrize("file", sorted(MODELING.glob("*.py")), ids=lambda file: file.name)
def test_files_are_fit_to_travel(file):
    """Only `from .file import name` among siblings, at the top; nothing else that a lone folder would not have."""
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    siblings = [node for node in imports if isinstance(node, ast.ImportFrom) and node.level]
    assert all(node in tree.body and node.level == 1 and node.module for node in siblings)
    modules = {node.module for node in siblings}
    assert all((MODELING / f"{module}.py").is_file() for module in modules)
    # transformers finds them by a regular expression, which takes lines of a docstring for code.
    assert set(get_relative_imports(file)) == modules
    others = set(get_imports(file)) - set(sys.stdlib_module_names)
    assert others <= {"huggingface_hub", "numpy", "scipy", "torch", "transformers"}
    # The namespace of an operator is no import.
    assert "hf_mim" not in text.replace('"hf_mim::', "")


@torch.no_grad()
def test_the_operator_is_registered_twice(root, tmp_path, monkeypatch):
    """Once by the package and once by the code of a folder: both go on working."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    model, images = pretraining_model("beitv2").base_model, torch.randn(1, 3, 40, 32)
    expected = model(images).last_hidden_state
    try:
        remote_class = get_class_from_dynamic_module("modeling_beitv2.Beitv2Model", root / "beitv2")
        assert remote_class is not type(model)
        remote = remote_class.from_pretrained(root / "beitv2").eval()
        assert torch.equal(remote(images).last_hidden_state, expected)
        assert torch.equal(model(images).last_hidden_state, expected)
        step = torch.compile(
            lambda x: x + relative_position_beitv2.spline_matrix(5, 9), backend="eager", fullgraph=True
        )
        assert torch.equal(step(torch.zeros(9, 5).double()), relative_position_beitv2.spline_matrix(5, 9))
    finally:
        for name in set(sys.modules) - known:
            if name.startswith("transformers_modules"):
                del sys.modules[name]
