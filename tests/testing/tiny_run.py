"""A folder as a finished run leaves it, made in a moment."""

import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from hf_mim import IBotConfig, IBotForPreTraining, IBotImageProcessorPil
from hf_mim.hub.export import export_native, native_image_processor


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
    "out_dim": 16,
    "head_hidden_size": 24,
    "head_bottleneck_size": 8,
}
CARD = """---
library_name: transformers
pipeline_tag: image-feature-extraction
license: apache-2.0
tags:
- hf_mim
- ibot
model-index:
- name: tiny-run
  results:
  - task:
      type: image-classification
    dataset:
      type: photos
      name: photos
    metrics:
    - type: accuracy
      value: 61.5
---

# tiny-run

An encoder.

![Its curves](curves.png)

## Use

```python
model = AutoModel.from_pretrained("tiny-run")
```

## Limits

It has learned nothing.
"""


def tiny_model(seed: int, **overrides) -> IBotForPreTraining:
    """A model without dropout, in which no tensor has the value that its initialization gives it."""
    torch.manual_seed(seed)
    model = IBotForPreTraining(IBotConfig(**SIZES | {"drop_path_rate": 0.0} | overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def write_run(folder: Path) -> IBotForPreTraining:
    """Fill `folder` like a finished run of iBOT, with what does not belong on the Hub as well; gives the teacher."""
    student, teacher = tiny_model(0), tiny_model(1)
    processor = IBotImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16})
    export_native(teacher).save_pretrained(folder)
    native_image_processor(processor).save_pretrained(folder)
    student.save_pretrained(folder / "pretraining")
    processor.save_pretrained(folder / "pretraining")
    teacher.save_pretrained(folder / "pretraining" / "teacher")
    centers = {"cls_center": torch.full((16,), 0.25), "patch_center": torch.linspace(-1, 1, 16)}
    save_file(centers, folder / "pretraining" / "teacher" / "centers.safetensors")
    (folder / "README.md").write_text(CARD)
    (folder / "metrics.json").write_text(json.dumps({"eval_knn_20_top1": 61.5}))
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results" / "knn.yaml").write_text("- value: 61.5\n")
    Image.new("RGB", (8, 8), "red").save(folder / "curves.png")
    Image.new("RGB", (8, 8), "blue").save(folder / "not_shown.png")

    (folder / "checkpoint-4").mkdir()
    torch.save({}, folder / "checkpoint-4" / "optimizer.pt")
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / "trainer_state.json").write_text("{}")
    return teacher
