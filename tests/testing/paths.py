"""Folders that tests read."""

from pathlib import Path


REPOSITORY = Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests" / "golden"
SHARED = REPOSITORY.parent / "shared"
SHARED_DATA = SHARED / "data"
