"""Fixtures shared by the whole suite."""

import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from hypothesis import settings
from safetensors.torch import load_file

from tests.testing.loopback import LoopbackHub
from tests.testing.paths import GOLDEN, SHARED, SHARED_DATA


# A busy machine must not fail a test.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_collection_finish():
    """accelerate collects garbage after every run, and would look through all imported libraries each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def clean_compiler():
    """What a test has compiled, and the sizes it saw, would change how the next one compiles in the same process."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the repository; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real images of ../shared/data are not on this machine")
    return SHARED_DATA


def _partly_shared_golden(method: str):
    """
    `load(name)` gives the tensors of tests/golden/METHOD/name.safetensors. Those that would take too much room there
    are beside the repository; tests that need them are skipped where they are absent.
    """

    def load(name: str) -> dict[str, torch.Tensor]:
        for folder in (GOLDEN / method, SHARED / "reference" / method):
            if (folder / f"{name}.safetensors").is_file():
                return load_file(folder / f"{name}.safetensors")
        pytest.skip(f"{name}.safetensors of ../shared/reference/{method} is not on this machine")

    return load


@pytest.fixture(scope="session")
def ibot_golden():
    """`ibot_golden(name)` gives (tensors, description) of the original iBOT."""
    descriptions = json.loads((GOLDEN / "ibot" / "golden.json").read_text())["files"]
    load = _partly_shared_golden("ibot")
    return lambda name: (load(name), descriptions[f"{name}.safetensors"])


@pytest.fixture(scope="session")
def beitv2_golden():
    """`beitv2_golden(name)` gives tensors of the original BEiT v2."""
    return _partly_shared_golden("beitv2")


@pytest.fixture(scope="session")
def dbot_golden():
    """`dbot_golden(name)` gives tensors of the original dBOT."""
    return _partly_shared_golden("dbot")


@pytest.fixture
def loopback_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """
    A [`LoopbackHub`]. Child processes find it through `loopback_hub.environment`; in this process, which knows the
    real one, take `HfApi(endpoint=loopback_hub.url, token=TOKEN)`.
    """
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with LoopbackHub() as hub:
        yield hub
