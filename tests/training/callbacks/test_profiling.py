"""`--profile` leaves a readable trace of a few steps, whatever the length of the run."""

import json

import pytest

from hf_mim.training.callbacks.profiling import ACTIVE, WAIT, WARM_UP
from tests.testing.tiny_training import tiny_trainer


def ranges(file) -> dict[str, list[tuple[float, float]]]:
    """Begin and end in microseconds of the ranges of a trace, by name."""
    found = {}
    for event in json.loads(file.read_text())["traceEvents"]:
        if event.get("ph") == "X" and event.get("cat") == "user_annotation":
            found.setdefault(event["name"], []).append((event["ts"], event["ts"] + event["dur"]))
    return found


def test_trace_of_three_steps(tmp_path, capsys):
    tiny_trainer(tmp_path, max_steps=10, profile=True).train()
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == [
        "steps-5-to-7-rank-0.json",
        "steps-5-to-7-rank-0.txt",
    ]
    found = ranges(tmp_path / "profile" / "steps-5-to-7-rank-0.json")
    steps = {name: spans for name, spans in found.items() if name.startswith("training step")}
    assert steps.keys() == {"training step 5", "training step 6", "training step 7"}
    for [(begin, end)] in steps.values():
        for part in ("targets", "student"):
            assert sum(begin <= start and stop <= end for start, stop in found[part]) == 1
    assert len(found["wait for data"]) >= 2
    table = (tmp_path / "profile" / "steps-5-to-7-rank-0.txt").read_text()
    assert "Self CPU" in table and "aten::" in table
    printed = capsys.readouterr().out
    assert f"--profile: trace of 3 steps, and the top operators: {tmp_path}/profile/steps-5-to-7-rank-0.*" in printed


@pytest.mark.parametrize("steps", range(1, WAIT + WARM_UP + ACTIVE))
def test_runs_shorter_than_the_schedule(tmp_path, capsys, steps):
    tiny_trainer(tmp_path, max_steps=steps, profile=True).train()
    printed = capsys.readouterr().out
    recorded = steps - WAIT - WARM_UP
    if recorded <= 0:
        assert "--profile: no trace, because the first 4 steps are not recorded" in printed
        assert not (tmp_path / "profile").exists()
    else:
        assert f"--profile: trace of {recorded} steps, because the run was too short for 3" in printed
        found = ranges(tmp_path / "profile" / f"steps-5-to-{steps}-rank-0.json")
        assert {f"training step {5 + i}" for i in range(recorded)} <= found.keys()


def test_a_resumed_run_counts_its_own_steps(tmp_path):
    options = {"max_steps": 12, "save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2}
    whole = tiny_trainer(tmp_path, **options)
    whole.train()
    resumed = tiny_trainer(tmp_path, **options, profile=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    found = ranges(tmp_path / "profile" / "steps-8-to-10-rank-0.json")
    assert {"training step 8", "training step 9", "training step 10"} <= found.keys()
    # Watching changes nothing.
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in resumed.state.log_history if "loss" in entry] == losses
