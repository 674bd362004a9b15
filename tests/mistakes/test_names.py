"""Names of models and datasets: what looks like a path is one, and the Hub is asked once."""

import time

import pytest

from tests.testing.mistakes import refusal


NO_FOLDER = "there is no such folder; MODEL is a folder or a model id of the Hub"
UNREACHABLE = "and the Hub cannot be reached to look for a "


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """A folder `runs` and a file `model.pth`, with a Hub that does not answer."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "model.pth").write_bytes(b"")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate knn runs/nope photo-tiles", f"runs/nope: {NO_FOLDER}"),
        ("evaluate knn ./nope photo-tiles", f"./nope: {NO_FOLDER}"),
        ("evaluate knn /nope photo-tiles", f"/nope: {NO_FOLDER}"),
        ("evaluate knn nope/ photo-tiles", f"nope/: {NO_FOLDER}"),
        ("evaluate knn a/b/c photo-tiles", f"a/b/c: {NO_FOLDER}"),
        ("evaluate knn a\\b photo-tiles", f"a\\b: {NO_FOLDER}"),
        ("evaluate knn model.pth photo-tiles", "model.pth: MODEL is a folder or a model id of the Hub, and this is a"),
        ("evaluate knn org/nope photo-tiles", f"there is no folder org/nope, {UNREACHABLE}model of that name ("),
        ("evaluate knn org/no..pe photo-tiles", "org/no..pe"),
        ("analyze codes runs/nope photo-tiles --output_dir out", "runs/nope: there is no such folder; TOKENIZER is a"),
        ("analyze svd org/nope photo-tiles --output_dir out", f"there is no folder org/nope, {UNREACHABLE}model of"),
        ("export runs/nope out", f"runs/nope: {NO_FOLDER}"),
        ("check-data runs/nope", "dataset_name runs/nope does not exist"),
        ("check-data org/nope", f"there is no folder org/nope, {UNREACHABLE}dataset of that name ("),
        (
            "pretrain quickstart --model_name_or_path runs/nope",
            "runs/nope: there is no such folder; --model_name_or_path",
        ),
        ("pretrain quickstart --model_name_or_path org/nope", f"there is no folder org/nope, {UNREACHABLE}model of"),
        (
            "pretrain vqkd-quickstart --teacher_model_name_or_path runs/nope",
            "--teacher_model_name_or_path is a",
        ),
        ("pretrain beitv2-quickstart --tokenizer_name_or_path runs/nope", "--tokenizer_name_or_path is a folder or a"),
        ("pretrain quickstart --dataset_name org/nope", f"there is no folder org/nope, {UNREACHABLE}dataset of that"),
    ],
)
def test_names_that_lead_nowhere(capsys, words, message):
    start = time.monotonic()
    assert message in refusal(capsys, *words.split(" "))
    # transformers asks the Hub again and again, for half a minute.
    assert time.monotonic() - start < 10
