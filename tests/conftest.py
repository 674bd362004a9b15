"""Fixtures shared by the whole suite."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


GOLDEN = Path(__file__).parent / "golden"
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the repository; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real images of ../shared/data are not on this machine")
    return SHARED_DATA


@pytest.fixture(scope="session")
def ibot_golden():
    """`ibot_golden(name)` gives (tensors, description) of tests/golden/ibot/name.safetensors."""
    descriptions = json.loads((GOLDEN / "ibot" / "golden.json").read_text())["files"]

    def load(name: str) -> tuple[dict[str, torch.Tensor], dict]:
        file = f"{name}.safetensors"
        return load_file(GOLDEN / "ibot" / file), descriptions[file]

    return load
