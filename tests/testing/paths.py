"""Folders with the numbers and images that tests read."""

from pathlib import Path


GOLDEN = Path(__file__).parents[1] / "golden"
SHARED = Path(__file__).parents[3] / "shared"
SHARED_DATA = SHARED / "data"
