"""The Python training example of the README runs as it stands there."""

import re

import numpy as np
from PIL import Image

from tests.testing.paths import REPOSITORY


def test_training_example(tmp_path, monkeypatch):
    readme = (REPOSITORY / "README.md").read_text()
    blocks = [block for block in re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)]
    (example,) = [block for block in blocks if block.startswith("from hf_mim import") and ".train()" in block]
    random = np.random.default_rng(0)
    for name, level in (("cats", 60), ("dogs", 190)):
        folder = tmp_path / "my_images" / name
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = np.clip(random.normal(level, 30, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
