"""Schedules against the arrays of the original codes (tests/golden/*/schedules.*)."""

import json
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_mim import Beitv2Config, Beitv2ForPreTraining
from hf_mim.training.schedules import cosine_schedule, teacher_temperature
from tests.testing.paths import GOLDEN


def test_golden_schedules(ibot_golden):
    arrays, description = ibot_golden("schedules")
    atol = description["tolerance"]["atol"]
    checked = set()
    for entry in description["entries"]:
        if isinstance(entry["args"], list):
            base, final, epochs, steps = entry["args"]
            options = entry["kwargs"]
            warmup, start = options.get("warmup_epochs", 0) * steps, options.get("start_warmup_value", 0.0)
            ours = [cosine_schedule(i, base, final, epochs * steps, warmup, start) for i in range(epochs * steps)]
            pairs = {entry["key"]: ours}
        else:
            args = entry["args"]
            epochs = range(args["nepochs"])
            warmup, start = args["warmup_teacher_temp_epochs"], args.get("mim_start_epoch", 0)
            suffix = entry["key"][-1]
            cls = [teacher_temperature(e, args["warmup_teacher_temp"], args["teacher_temp"], warmup) for e in epochs]
            patch = [
                teacher_temperature(e, args["warmup_teacher_temp2"], args["teacher_temp2"], warmup, start)
                for e in epochs
            ]
            pairs = {f"teacher_temp_cls_{suffix}": cls, f"teacher_temp_patch_{suffix}": patch}
        for key, values in pairs.items():
            expected = arrays[key].double()
            torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), expected, rtol=0, atol=atol)
            checked.add(key)
    assert checked == set(arrays)


def test_past_the_end_and_short_warmups():
    assert cosine_schedule(10, 1.0, 0.1, 10) == 0.1
    assert cosine_schedule(0, 1.0, 0.1, 10, warmup_steps=1) == 0.0
    assert cosine_schedule(1, 1.0, 0.1, 10, warmup_steps=1) == 1.0
    assert teacher_temperature(0, 0.04, 0.07, 0) == 0.07
    assert teacher_temperature(0, 0.04, 0.07, 1) == 0.04


@given(
    base=st.floats(1e-6, 1.0),
    final=st.floats(0.0, 1.0),
    total=st.integers(2, 500),
    share=st.floats(0.0, 0.99),
)
def test_stays_between_its_ends(base, final, total, share):
    warmup = int(share * total)
    values = [cosine_schedule(i, base, final, total, warmup) for i in range(total)]
    assert values[warmup] == pytest.approx(base)
    assert all(-1e-12 <= v <= base + 1e-12 for v in values[:warmup])
    low, high = min(base, final) - 1e-12, max(base, final) + 1e-12
    assert all(low <= v <= high for v in values[warmup:])
    steps = [b - a for a, b in zip(values[warmup:], values[warmup + 1 :], strict=False)]
    assert all(s * (final - base) >= -1e-12 for s in steps)


BEITV2 = json.loads((GOLDEN / "beitv2" / "schedules.json").read_text())


@pytest.mark.parametrize("name", BEITV2["lr_wd_schedules"])
def test_beitv2_schedules(name):
    """The same function as iBOT's, with warm-up steps that go before warm-up epochs (`utils.py`)."""
    entry = BEITV2["lr_wd_schedules"][name]
    base, final, epochs, steps = entry["args"]
    warmup = entry["kwargs"].get("warmup_steps") or entry["kwargs"].get("warmup_epochs", 0) * steps
    ours = [cosine_schedule(i, base, final, epochs * steps, warmup) for i in range(epochs * steps)]
    if "raises" in entry:
        # The original stops with an assertion; the schedule itself is the one that its options describe.
        assert (ours[0], ours[warmup - 1], len(ours)) == (0.0, base, 15)
    else:
        assert ours == pytest.approx(entry["values"], rel=1e-12)


@pytest.mark.parametrize("name", BEITV2["drop_path"])
def test_beitv2_stochastic_depth(name):
    expected = BEITV2["drop_path"][name]
    depth, rate, early, head = re.fullmatch(r"depth(\d+)_rate([\d.]+)_early(\d+)_head(\d+)", name).groups()
    config = Beitv2Config(
        hidden_size=4,
        num_attention_heads=1,
        num_hidden_layers=int(depth),
        drop_path_rate=float(rate),
        early_layers=int(early),
        head_layers=int(head),
        vocab_size=2,
    )
    model = Beitv2ForPreTraining(config)
    assert [layer.drop_path.rate for layer in model.beitv2.layers] == pytest.approx(expected["blocks"], abs=1e-7)
    assert [layer.drop_path.rate for layer in model.head_layers] == pytest.approx(expected["cls_pt_layers"], abs=1e-7)
