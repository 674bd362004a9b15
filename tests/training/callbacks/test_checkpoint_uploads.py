"""What the trainer uploads: checkpoints while it trains, the result at the end, as `hf-mim publish` does."""

import json
import logging
import os
import signal
import threading
from functools import partial

import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image
from transformers import TrainerCallback

from hf_mim.training.callbacks import checkpoint_uploads as hub_uploads
from tests.testing.loopback_store import TOKEN
from tests.testing.tiny_training import pretrain, tiny_trainer, tiny_vqkd_trainer


PUSH = {"push_to_hub": True, "hub_model_id": "org/tiny", "hub_token": TOKEN}
CHECKPOINTS = PUSH | {"hub_strategy": "checkpoint", "save_strategy": "steps", "save_steps": 2}


@pytest.fixture
def hub(loopback_hub, monkeypatch):
    """The trainers of this process take this one for the Hub."""
    monkeypatch.setattr(hub_uploads, "HfApi", partial(HfApi, endpoint=loopback_hub.url))
    return loopback_hub


def assert_same_weights(trainer, other):
    for network, expected in ((trainer.model, other.model), (trainer.teacher, other.teacher)):
        expected = expected.state_dict()
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, expected[name]), name


def test_a_run_goes_on_elsewhere_from_its_uploaded_checkpoint(hub, tmp_path):
    trainer = tiny_trainer(tmp_path / "run", hub_always_push=True, hub_private_repo=True, **CHECKPOINTS)
    trainer.train()
    assert list(hub.repositories) == ["org/tiny-pretrain"] and hub.is_private("org/tiny-pretrain")
    assert hub.commits("org/tiny-pretrain") == ["initial commit", "Upload checkpoint-2", "Upload checkpoint-4"]
    assert not (tmp_path / "run" / hub_uploads.UPLOADING_FOLDER).exists()

    uploaded, checkpoint = hub.files("org/tiny-pretrain"), tmp_path / "run" / "checkpoint-4"
    names = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    assert uploaded.keys() == {f"last-checkpoint/{name}" for name in names - {"training_args.bin"}}
    for name in ("model.safetensors", "optimizer.pt", "teacher/centers.safetensors"):
        assert uploaded[f"last-checkpoint/{name}"] == (checkpoint / name).read_bytes()
    assert "training_args.bin" in names
    assert "training_args.bin" not in json.loads(uploaded["last-checkpoint/manifest.json"])["files"]
    assert not [name for name, content in uploaded.items() if TOKEN.encode() in content]

    api = HfApi(endpoint=hub.url, token=TOKEN)
    earlier = api.list_repo_commits("org/tiny-pretrain")[1].commit_id
    api.snapshot_download("org/tiny-pretrain", revision=earlier, local_dir=tmp_path / "downloaded")
    resumed = tiny_trainer(tmp_path / "elsewhere")
    resumed.train(resume_from_checkpoint=str(tmp_path / "downloaded" / "last-checkpoint"))
    assert resumed.state.global_step == 4 and resumed.state.log_history[1]["step"] == 2
    assert_same_weights(resumed, trainer)


def test_a_failing_upload_does_not_stop_the_training(hub, tmp_path, caplog):
    undisturbed = tiny_trainer(tmp_path / "undisturbed")
    undisturbed.train()
    hub.refuse_commits = True
    trainer = tiny_trainer(tmp_path / "run", hub_always_push=True, **CHECKPOINTS)
    trainer.train()
    assert_same_weights(trainer, undisturbed)
    warnings = [record.message for record in caplog.records if record.name == hub_uploads.logger.name]
    assert len(warnings) == 2
    for step, warning in zip((2, 4), warnings, strict=True):
        assert warning.startswith(f"checkpoint-{step} is not uploaded, training continues: the token may not")
    assert hub.files("org/tiny-pretrain") == {}


def test_nothing_of_this_machine_is_in_a_checkpoint(hub, tmp_path, caplog):
    trainer = tiny_trainer(tmp_path / "run", **CHECKPOINTS, save_total_limit=1)
    trainer.add_callback(BestAtOnce())
    trainer.train()
    own = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    uploaded = json.loads(hub.files("org/tiny-pretrain")["last-checkpoint/trainer_state.json"])
    assert own["best_model_checkpoint"] == str(tmp_path / "run" / "checkpoint-4")
    assert uploaded == own | {"best_model_checkpoint": "checkpoint-4"}
    assert not [path for path, content in hub.files("org/tiny-pretrain").items() if str(tmp_path).encode() in content]

    trainer = tiny_trainer(tmp_path / "other", **CHECKPOINTS | {"hub_model_id": "org/other"})
    trainer.model.config.notes = str(tmp_path)
    trainer.train()
    assert f": {tmp_path} is a local path" in caplog.text
    assert "org/other-pretrain" not in hub.repositories


class BestAtOnce(TrainerCallback):
    """As if every evaluation were better than the one before."""

    def on_step_end(self, args, state, control, **kwargs):
        state.best_global_step = state.global_step


class ReleaseAtStep(TrainerCallback):
    def __init__(self, event: threading.Event, step: int):
        self.event, self.step = event, step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.event.set()


class ReleaseAtEnd(TrainerCallback):
    def __init__(self, event: threading.Event):
        self.event = event

    def on_save(self, args, state, control, **kwargs):
        if control.should_training_stop:
            threading.Timer(0.3, self.event.set).start()


class StopAtStep(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_an_interrupted_run_leaves_its_last_checkpoint(hub, tmp_path):
    trainer = tiny_trainer(tmp_path, callbacks=[StopAtStep(3)], **CHECKPOINTS | {"save_steps": 100})
    with pytest.raises(SystemExit):
        trainer.train()
    assert hub.commits("org/tiny-pretrain")[1:] == ["Upload checkpoint-3"]
    assert json.loads(hub.files("org/tiny-pretrain")["last-checkpoint/trainer_state.json"])["global_step"] == 3


@pytest.fixture
def released(monkeypatch):
    """An event without which no upload ends."""
    released, send = threading.Event(), hub_uploads.send

    def send_later(*args):
        assert released.wait(30)
        return send(*args)

    monkeypatch.setattr(hub_uploads, "send", send_later)
    return released


@pytest.mark.parametrize("always", [False, True])
def test_the_training_does_not_wait_for_an_upload(hub, tmp_path, caplog, released, always):
    """If it did, the release would never come. The last checkpoint arrives whatever happens."""
    options = CHECKPOINTS | {"save_steps": 1, "save_total_limit": 1, "hub_always_push": always}
    tiny_trainer(tmp_path, callbacks=[ReleaseAtStep(released, 3)], **options).train()
    # Long removed from the run when it was sent.
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    titles = hub.commits("org/tiny-pretrain")[1:]
    left_out = [record.message for record in caplog.records if "an earlier upload is not finished" in record.message]
    if always:
        assert titles == [f"Upload checkpoint-{step}" for step in (1, 2, 3, 4)] and not left_out
    else:
        assert titles[0] == "Upload checkpoint-1" and "Upload checkpoint-2" not in titles
        assert titles[-1] == "Upload checkpoint-4"
        assert (
            left_out[0] == "checkpoint-2 is not uploaded: an earlier upload is not finished, and checkpoint-3 is newer"
        )
    assert json.loads(hub.files("org/tiny-pretrain")["last-checkpoint/trainer_state.json"])["global_step"] == 4


def test_interrupted_while_another_checkpoint_is_on_its_way(hub, tmp_path, released):
    callbacks = [StopAtStep(2), ReleaseAtEnd(released)]
    with pytest.raises(SystemExit):
        tiny_trainer(tmp_path, callbacks=callbacks, **CHECKPOINTS | {"save_steps": 1}).train()
    assert hub.commits("org/tiny-pretrain")[1:] == ["Upload checkpoint-1", "Upload checkpoint-2"]


def test_checkpoints_of_a_tokenizer_go_where_it_goes(hub, tmp_path):
    tiny_vqkd_trainer(tmp_path, max_steps=2, **CHECKPOINTS).train()
    assert list(hub.repositories) == ["org/tiny"]
    assert "last-checkpoint/teacher/reference.json" in hub.files("org/tiny")


def test_a_trainer_alone_has_no_result(hub, tmp_path):
    trainer = tiny_trainer(tmp_path, **PUSH)
    with pytest.raises(ValueError, match="a trainer alone has no result to upload: `hf-mim pretrain --push_to_hub`"):
        trainer.push_to_hub()
    assert hub.requests == []


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Images, and the options of a run whose result is uploaded."""
    folder = tmp_path_factory.mktemp("pictures") / "train" / "noise"
    folder.mkdir(parents=True)
    for i in range(4):
        Image.effect_noise((20, 20), 60).convert("RGB").save(folder / f"{i}.png")
    push = ("--push_to_hub", "--hub_model_id", "org/tiny", "--hub_token", TOKEN)
    return ("--train_dir", folder.parent, "--max_steps", "2", *push)


def test_the_result_is_published(hub, options, tmp_path, caplog):
    output = tmp_path / "run"
    pretrain(*options, "--hub_strategy", "checkpoint", "--save_strategy", "steps", "--save_steps", "1", output=output)
    encoder, full = hub.files("org/tiny"), hub.files("org/tiny-pretrain")
    for path in ("model.safetensors", "metrics.json", "curves.png", "attention.png"):
        assert encoder[path] == (output / path).read_bytes()
    for path in ("model.safetensors", "teacher/model.safetensors", "teacher/centers.safetensors"):
        assert full[path] == (output / "pretraining" / path).read_bytes()
    assert b'from_pretrained("org/tiny")' in encoder["README.md"]
    assert not [path for path, content in (encoder | full).items() if TOKEN.encode() in content]
    # The checkpoint was there while it was of use.
    assert "Upload checkpoint-1" in hub.commits("org/tiny-pretrain")
    assert not [path for path in (*encoder, *full) if "checkpoint" in path or path.endswith((".bin", ".pt", ".pth"))]

    # Started again, a finished run trains nothing and looks whether its result is there.
    commits = hub.commits("org/tiny")
    assert pretrain(*options, output=output) == {}
    assert hub.commits("org/tiny") == commits


def test_a_result_that_cannot_be_uploaded_is_not_lost(hub, options, tmp_path):
    hub.refuse_commits = True
    with pytest.raises(OSError, match="the run is finished and saved, but not uploaded: the token may not") as error:
        pretrain(*options, "--hub_private_repo", "true", output=tmp_path / "run")
    assert str(error.value).endswith(f"hf-mim publish {tmp_path}/run org/tiny --full --private")
    assert (tmp_path / "run" / "metrics.json").is_file()
    hub.refuse_commits = False
    assert pretrain(*options, "--hub_private_repo", "true", output=tmp_path / "run") == {}
    assert "model.safetensors" in hub.files("org/tiny") and hub.is_private("org/tiny-pretrain")


def test_a_wrong_token_shows_before_the_first_step(hub, options, tmp_path):
    with pytest.raises(PermissionError, match="does not accept the token"):
        pretrain(*options, "--hub_token", "hf_wrong", output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_hub_that_cannot_be_reached_is_tried_again_at_the_end(hub, options, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(hub_uploads, "HfApi", partial(HfApi, endpoint="http://127.0.0.1:9"))
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(OSError, match="saved, but not uploaded: .* cannot be reached"),
    ):
        pretrain(*options, output=tmp_path / "run")
    assert "http://127.0.0.1:9 cannot be reached" in caplog.text and "The run starts nevertheless" in caplog.text
    assert (tmp_path / "run" / "model.safetensors").is_file()
