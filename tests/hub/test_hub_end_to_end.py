"""From a folder to the Hub and back, as strangers get it: in other processes, by name, without this package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image

from hf_mim import DBotConfig, DBotForImageClassification, DBotImageProcessorPil, IBotImageProcessorPil
from hf_mim.hub.export import export_native, native_image_processor
from hf_mim.hub.publish import publish
from tests.testing.fresh_process import run_fresh
from tests.testing.loopback import LoopbackHub
from tests.testing.loopback_store import TOKEN
from tests.testing.tiny_run import CARD, tiny_model, write_run
from tests.testing.tiny_training import COMMON, TINY


WITHOUT_THE_PACKAGE = """
import json
import numpy as np
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining, pipeline

folder = FOLDER
image = Image.open(folder + "/image.png")
model, report = AutoModel.from_pretrained("org/ibot-tiny", output_loading_info=True)
assert not any(report.values()), report
processor = AutoImageProcessor.from_pretrained("org/ibot-tiny")
with torch.no_grad():
    outputs = model(**processor(image, return_tensors="pt"))
    coded = AutoModel.from_pretrained("org/ibot-tiny-pretrain", trust_remote_code=True).eval()
    own = AutoImageProcessor.from_pretrained("org/ibot-tiny-pretrain", trust_remote_code=True)
    student = coded(**own(image, return_tensors="pt")).last_hidden_state
full = AutoModelForPreTraining.from_pretrained("org/ibot-tiny-pretrain", trust_remote_code=True)
# Its task is in the card.
by_card = pipeline(model="org/ibot-tiny", device="cpu")
extractor = pipeline("image-feature-extraction", model="org/ibot-tiny", pool=True, device="cpu")
classifier = pipeline("image-classification", model="org/dbot-tiny", device="cpu", function_to_apply="none")
np.savez(
    folder + "/fresh.npz",
    tokens=outputs.last_hidden_state, pooled=outputs.pooler_output, student=student,
    by_card=by_card(image), extracted=extractor(image),
    scores=[entry["score"] for entry in sorted(classifier(image), key=lambda entry: entry["label"])],
)
card = ModelCard.load("org/ibot-tiny")
print(json.dumps({
    "license": card.data.license, "name": card.data.model_name, "result": card.data.eval_results[0].metric_value,
    "task": by_card.task, "parameters": sum(parameter.numel() for parameter in full.parameters()),
}))
"""

WITH_THE_PACKAGE = """
import json, sys
import torch
from hf_mim.training import run_pretrain
from transformers import AutoModelForPreTraining

folder, options = sys.argv[1], json.loads(sys.argv[2])
student, report = AutoModelForPreTraining.from_pretrained("org/ibot-tiny-pretrain", output_loading_info=True)
assert not any(report.values()), report
teacher = AutoModelForPreTraining.from_pretrained("org/ibot-tiny-pretrain", subfolder="teacher")
torch.save({"student": student.state_dict(), "teacher": teacher.state_dict()}, folder + "/loaded.pt")
losses = {}
sources = {"hub": "org/ibot-tiny-pretrain", "run": folder + "/run/pretraining", "alone": folder + "/alone"}
for name, source in sources.items():
    run_pretrain.main([*options, "--model_name_or_path", source, "--output_dir", f"{folder}/on-{name}"])
    history = json.load(open(f"{folder}/on-{name}/trainer_state.json"))["log_history"]
    losses[name] = [entry["loss"] for entry in history if "loss" in entry]
print(json.dumps(losses))
"""


def api(hub: LoopbackHub) -> HfApi:
    return HfApi(endpoint=hub.url, token=TOKEN)


def run(hub: LoopbackHub, *command) -> str:
    """Standard output of a command that takes `hub` for the Hub."""
    done = subprocess.run(
        list(map(str, command)), env=os.environ | hub.environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def hf(hub: LoopbackHub, *arguments) -> str:
    return run(hub, Path(sys.executable).with_name("hf"), *arguments)


def noise(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_photos(folder: Path):
    (folder / "noise").mkdir(parents=True)
    for i in range(8):
        noise((20 + i, 24)).save(folder / "noise" / f"{i}.png")


@torch.no_grad()
def test_without_the_package(loopback_hub, tmp_path):
    teacher = write_run(tmp_path / "run")
    publish(
        tmp_path / "run", "org/ibot-tiny", full=True, with_code=True, api=api(loopback_hub), report=lambda line: None
    )

    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 16, "patch_size": 8}
    classifier = DBotForImageClassification(DBotConfig(**sizes, num_labels=3, use_mean_pooling=False)).eval()
    dbot_processor = DBotImageProcessorPil(size={"height": 16, "width": 16}, crop_size={"height": 16, "width": 16})
    export_native(classifier).save_pretrained(tmp_path / "classifier")
    native_image_processor(dbot_processor).save_pretrained(tmp_path / "classifier")
    card = CARD.replace("![Its curves](curves.png)", "").replace("image-feature-extraction", "image-classification")
    (tmp_path / "classifier" / "README.md").write_text(card)
    publish(tmp_path / "classifier", "org/dbot-tiny", api=api(loopback_hub), report=lambda line: None)

    image = noise((30, 40))
    image.save(tmp_path / "image.png")
    script = WITHOUT_THE_PACKAGE.replace("FOLDER", repr(str(tmp_path)))
    facts = json.loads(run_fresh(script, loopback_hub.environment).splitlines()[-1])
    assert facts == {
        "license": "apache-2.0",
        "name": "ibot-tiny",
        "result": 61.5,
        "task": "image-feature-extraction",
        "parameters": teacher.num_parameters(),
    }
    processor = IBotImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16})
    pixels = processor(image, return_tensors="pt")
    expected = teacher.ibot(**pixels).last_hidden_state.numpy()
    student = tiny_model(0).ibot(**pixels).last_hidden_state.numpy()
    scores = classifier(**dbot_processor(image, return_tensors="pt")).logits[0].numpy()
    found = np.load(tmp_path / "fresh.npz")
    for name, values in {
        "tokens": expected,
        "by_card": expected,
        "pooled": expected[:, 0],
        "extracted": expected[:, 0],
        "student": student,
        "scores": scores,
    }.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5, err_msg=name)

    hf(loopback_hub, "download", "org/ibot-tiny", "--local-dir", tmp_path / "downloaded")
    for path, content in loopback_hub.files("org/ibot-tiny").items():
        assert (tmp_path / "downloaded" / path).read_bytes() == content


@pytest.mark.slow
def test_with_the_package_training_goes_on_from_the_hub(loopback_hub, tmp_path):
    teacher = write_run(tmp_path / "run")
    publish(tmp_path / "run", "org/ibot-tiny", full=True, api=api(loopback_hub), report=lambda line: None)
    shutil.copytree(tmp_path / "run" / "pretraining", tmp_path / "alone", ignore=shutil.ignore_patterns("teacher"))
    write_photos(tmp_path / "photos")
    options = [
        *(*COMMON, "--train_dir", str(tmp_path / "photos"), "--patch_size", "8", "--max_steps", "1"),
        *("--warmup_epochs", "0", "--warmup_teacher_temp_epochs", "0"),
        *("--local_crops_number", "2", "--local_crop_size", "8"),
    ]
    output = run(loopback_hub, sys.executable, "-c", WITH_THE_PACKAGE, tmp_path, json.dumps(options))
    loaded = torch.load(tmp_path / "loaded.pt")
    for name, model in {"student": tiny_model(0), "teacher": teacher}.items():
        expected = model.state_dict()
        assert loaded[name].keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in loaded[name].items())
    losses = json.loads(output.splitlines()[-1])
    assert losses["hub"] == losses["run"] and losses["hub"] != losses["alone"]


@pytest.mark.slow
def test_from_machine_to_machine(loopback_hub, tmp_path):
    """A run pushes checkpoints and result; another one goes on from a downloaded checkpoint to the same end."""
    write_photos(tmp_path / "photos")
    pretrain = (sys.executable, "-m", "hf_mim", "pretrain", *TINY, "--train_dir", tmp_path / "photos")
    push = ("--push_to_hub", "--hub_strategy", "checkpoint", "--hub_always_push", "--save_strategy", "epoch")
    run(loopback_hub, *pretrain, *push, "--hub_model_id", "org/first", "--output_dir", tmp_path / "first")
    assert loopback_hub.commits("org/first-pretrain")[1:] == [
        "Upload checkpoint-2",
        "Upload checkpoint-4",
        "Upload IBotForPreTraining with hf_mim",
    ]
    commits = loopback_hub.repositories["org/first-pretrain"].commits
    revision = next(commit.oid for commit in commits if commit.title == "Upload checkpoint-2")
    hf(
        loopback_hub,
        *("download", "org/first-pretrain", "--revision", revision, "--include", "last-checkpoint/*"),
        *("--local-dir", tmp_path / "downloaded"),
    )
    resume = ("--resume_from_checkpoint", tmp_path / "downloaded" / "last-checkpoint")
    run(
        loopback_hub,
        *pretrain,
        *resume,
        *("--push_to_hub", "--hub_model_id", "org/second", "--output_dir", tmp_path / "second"),
    )
    state = json.loads((tmp_path / "second" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3, 4]
    for name in ("", "-pretrain"):
        first, second = (loopback_hub.files(f"org/{run}{name}") for run in ("first", "second"))
        weights = [path for path in first if path.endswith(".safetensors")]
        assert first.keys() == second.keys() and len(weights) == (3 if name else 1)
        assert all(first[path] == second[path] for path in weights)


@pytest.mark.slow
def test_of_two_processes_the_first_one_uploads(loopback_hub, tmp_path):
    write_photos(tmp_path / "photos")
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    push = ("--push_to_hub", "--hub_strategy", "checkpoint", "--hub_always_push", "--save_strategy", "epoch")
    options = ("--train_dir", tmp_path / "photos", "--hub_model_id", "org/two", "--output_dir", tmp_path / "two")
    run(loopback_hub, *command, "-m", "hf_mim.training.run_pretrain", *TINY, *push, *options)
    assert loopback_hub.commits("org/two") == ["initial commit", "Upload ViTModel with hf_mim"]
    assert loopback_hub.commits("org/two-pretrain")[1:] == [
        "Upload checkpoint-1",
        "Upload checkpoint-2",
        "Upload IBotForPreTraining with hf_mim",
    ]
    assert loopback_hub.requests.count("GET /api/whoami-v2") == 4
