"""
The quick start walks the recorded path: its losses at every step, to rounding, since before the package was last
restructured. A change that moves them changes what is trained.
"""

import json

import pytest
import torch

from hf_mim.training import run_pretrain
from tests.testing.paths import GOLDEN
from tests.testing.tiny_training import logged_losses


RECORDED = json.loads((GOLDEN / "quickstart_trajectory.json").read_text())


@pytest.mark.parametrize("name", ["short", pytest.param("full", marks=pytest.mark.slow)])
def test_losses_of_the_quick_start(name, tmp_path):
    recorded, threads = RECORDED[name], torch.get_num_threads()
    # Sums over a batch are split among threads.
    torch.set_num_threads(1)
    try:
        run_pretrain.main(["quickstart", *recorded["options"].split(), "--output_dir", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    assert logged_losses(tmp_path) == pytest.approx(recorded["losses"], abs=1e-4)
