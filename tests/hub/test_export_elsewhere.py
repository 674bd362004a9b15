"""Exported models where this package is not installed: loaded, run, in pipelines, fine-tuned by the plain Trainer."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel, Trainer, TrainingArguments

from hf_mim import (
    Beitv2Config,
    Beitv2ForImageClassification,
    Beitv2ForPreTraining,
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
    IBotSwinForImageClassification,
    IBotSwinForPreTraining,
)
from hf_mim.hub.export import export_native, native_image_processor
from tests.testing.fresh_process import run_fresh
from tests.testing.image_processing import in_default_backend


SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=24, patch_size=8, drop_path_rate=0)
CLASSES = dict(id2label={0: "cat", 1: "dog", 2: "owl"}, label2id={"cat": 0, "dog": 1, "owl": 2})
IBOT = dict(out_dim=16, head_hidden_size=24, head_bottleneck_size=8)
SWIN = dict(
    embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=3, image_size=24, patch_size=2, drop_path_rate=0
)
BEITV2 = dict(vocab_size=16, early_layers=1, use_relative_position_bias=True)
DBOT = dict(decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
# As in fine-tuning, where the native model has a table as well.
TUNED = DBOT | dict(trainable_position_embeddings=True)
ENCODERS = {
    "ibot": (IBotForPreTraining, IBotConfig(**SIZES, **IBOT, layer_scale_init_value=0.1), IBotImageProcessorPil),
    "ibot_swin": (IBotSwinForPreTraining, IBotSwinConfig(**SWIN, **IBOT), IBotImageProcessorPil),
    "beitv2": (Beitv2ForPreTraining, Beitv2Config(**SIZES, **BEITV2), Beitv2ImageProcessorPil),
    "dbot": (DBotForPreTraining, DBotConfig(**SIZES, **DBOT), DBotImageProcessorPil),
    "vit_mae": (DBotForPreTraining, DBotConfig(**SIZES, **DBOT, mask_ratio=0.6), DBotImageProcessorPil),
}
CLASSIFIERS = {
    "ibot_cls": (IBotForImageClassification, IBotConfig(**SIZES, **CLASSES), IBotImageProcessorPil),
    "ibot_mean": (
        IBotForImageClassification,
        IBotConfig(**SIZES, **CLASSES, use_mean_pooling=True),
        IBotImageProcessorPil,
    ),
    "swin": (IBotSwinForImageClassification, IBotSwinConfig(**SWIN, **CLASSES), IBotImageProcessorPil),
    "beitv2_mean": (
        Beitv2ForImageClassification,
        Beitv2Config(**SIZES, **CLASSES, **BEITV2, use_mean_pooling=True),
        Beitv2ImageProcessorPil,
    ),
    "dbot_cls": (DBotForImageClassification, DBotConfig(**SIZES, **CLASSES, **TUNED), DBotImageProcessorPil),
    "dbot_mean": (
        DBotForImageClassification,
        DBotConfig(**SIZES, **CLASSES, **TUNED, use_mean_pooling=True),
        DBotImageProcessorPil,
    ),
}
PICTURES = np.random.default_rng(0).integers(0, 256, (6, 40, 50, 3), dtype=np.uint8)


def fine_tune(model: PreTrainedModel, pixel_values: torch.Tensor, output: str) -> list[float]:
    """Losses of three steps on all pictures at once."""
    data = [{"pixel_values": image, "labels": number % 3} for number, image in enumerate(pixel_values)]
    arguments = TrainingArguments(
        output,
        max_steps=3,
        per_device_train_batch_size=len(data),
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=data)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


ELSEWHERE = f"""
import json, os
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline
from transformers import PreTrainedModel, Trainer, TrainingArguments

{inspect.getsource(fine_tune)}
root = Path(os.environ["ROOT"])
pictures = [Image.fromarray(picture) for picture in np.load(root / "pictures.npy")]
noise = torch.from_numpy(np.load(root / "noise.npy"))
results = {{}}
for kind in os.environ["KINDS"].split():
    folder = root / kind
    is_encoder = kind in os.environ["ENCODERS"].split()
    auto_class = AutoModel if is_encoder else AutoModelForImageClassification
    model, report = auto_class.from_pretrained(folder, output_loading_info=True, trust_remote_code=False)
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    assert not any(report.values()), report
    assert type(model).__module__.startswith("transformers.models.")
    assert type(processor).__module__.startswith("transformers.models.")
    pixel_values = processor(pictures, return_tensors="pt")["pixel_values"]
    options = {{"noise": noise}} if kind == "vit_mae" else {{}}
    with torch.no_grad():
        outputs = model(pixel_values, **options)
    np.savez(folder / "outputs.npz", pixel_values=pixel_values, **{{name: outputs[name] for name in outputs}})
    result = results[kind] = {{"class": type(model).__name__}}
    if is_encoder:
        extract = pipeline("image-feature-extraction", model=str(folder))
        result["features"] = extract(pictures[0])
        if kind != "vit_mae":
            result["pooled"] = extract(pictures[0], pool=True)
    else:
        result["scores"] = pipeline("image-classification", model=str(folder))(pictures[0])
    if kind != "vit_mae":
        # Of an encoder, the classifier is new.
        torch.manual_seed(0)
        model = AutoModelForImageClassification.from_pretrained(folder, num_labels=3)
        result["losses"] = fine_tune(model, pixel_values, str(root / "trainer"))
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Our models, and what a process without this package made of their exports."""
    root = tmp_path_factory.mktemp("exported")
    np.save(root / "pictures.npy", PICTURES)
    np.save(root / "noise.npy", torch.rand(len(PICTURES), 9).numpy())
    models = {}
    for kind, (model_class, config, processor_class) in (ENCODERS | CLASSIFIERS).items():
        torch.manual_seed(1)
        model = model_class(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.rand_like(parameter) - 0.15)
        export_native(model, "vit_mae" if kind == "vit_mae" else None).save_pretrained(root / kind)
        processor = processor_class(size={"shortest_edge": 30}, crop_size={"height": 24, "width": 24})
        native_image_processor(processor).save_pretrained(root / kind)
        # The process elsewhere asks for no backend.
        models[kind] = (model, in_default_backend(processor))
    names = {"ROOT": str(root), "KINDS": " ".join(models), "ENCODERS": " ".join(ENCODERS)}
    results = json.loads(run_fresh(ELSEWHERE, names, timeout=300).splitlines()[-1])
    return root, models, results


def pixels(exported: tuple, kind: str) -> torch.Tensor:
    processor = exported[1][kind][1]
    return processor([Image.fromarray(picture) for picture in PICTURES], return_tensors="pt")["pixel_values"]


def assert_close(actual, expected: torch.Tensor):
    torch.testing.assert_close(torch.as_tensor(actual), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_encoders(exported, kind):
    root, models, results = exported
    encoder, images = models[kind][0].base_model, pixels(exported, kind)
    outputs, result = np.load(root / kind / "outputs.npz"), results[kind]
    classes = {"ibot_swin": "SwinModel", "beitv2": "BeitModel", "vit_mae": "ViTMAEModel"}
    assert result["class"] == classes.get(kind, "ViTModel")
    np.testing.assert_array_equal(outputs["pixel_values"], images.numpy())
    if kind == "vit_mae":
        expected = encoder(images, noise=torch.from_numpy(np.load(root / "noise.npy")))
        assert outputs["last_hidden_state"].shape == (6, 1 + 3, 32)
        assert_close(outputs["last_hidden_state"], expected.last_hidden_state)
        # The pipeline cannot give it a noise.
        assert np.shape(result["features"]) == (1, 1 + 3, 32)
        return
    expected = encoder(images)
    # A Swin has no token 0, which is the mean patch here.
    tokens = expected.last_hidden_state[:, 1:] if kind == "ibot_swin" else expected.last_hidden_state
    assert_close(outputs["last_hidden_state"], tokens)
    assert_close(outputs["pooler_output"], expected.pooler_output)
    assert_close(result["features"], tokens[:1])
    assert_close(result["pooled"], expected.pooler_output[:1])
    losses = result["losses"]
    assert len(losses) == 3 and losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_classifiers(exported, kind, tmp_path):
    """Their fine-tuning goes as that of the model that they were made of."""
    root, models, results = exported
    model, images = models[kind][0], pixels(exported, kind)
    outputs, result = np.load(root / kind / "outputs.npz"), results[kind]
    native = {"ibot_cls": "ViT", "dbot_cls": "ViT", "swin": "Swin"}.get(kind, "Beit")
    assert result["class"] == f"{native}ForImageClassification"
    with torch.no_grad():
        logits = model(images).logits
    assert_close(outputs["logits"], logits)
    scores = {entry["label"]: entry["score"] for entry in result["scores"]}
    for number, name in CLASSES["id2label"].items():
        assert scores[name] == pytest.approx(logits[0].softmax(0)[number].item(), abs=1e-5)
    losses = fine_tune(model, images, str(tmp_path))
    assert losses[2] < losses[0] and result["losses"][2] < result["losses"][0]
    if kind != "swin":  # the native one has other weights, which give the same numbers
        assert result["losses"] == pytest.approx(losses, abs=1e-4)


def test_nothing_of_ours_is_in_the_folders(exported):
    root = exported[0]
    for kind in ENCODERS | CLASSIFIERS:
        names = {path.name for path in Path(root / kind).iterdir()} - {"outputs.npz"}
        assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}
        for name in ("config.json", "preprocessor_config.json"):
            text = (root / kind / name).read_text()
            assert "auto_map" not in text and "hf_mim" not in text and str(root) not in text
