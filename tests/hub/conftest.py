"""A Hub of its own for every test that asks for one."""

from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from .loopback import LoopbackHub


@pytest.fixture
def loopback_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """
    A [`LoopbackHub`]. Child processes find it through `loopback_hub.environment`; in this process, which knows the
    real one, take `HfApi(endpoint=loopback_hub.url, token=TOKEN)`.
    """
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with LoopbackHub() as hub:
        yield hub
