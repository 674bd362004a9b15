"""Export native models to ONNX with torch's exporter, and compare the outputs of ONNX Runtime with torch."""

import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel


# Largest accepted difference from torch: ATOL + RTOL times the largest absolute output.
ATOL, RTOL = 1e-4, 1e-5
# An ONNX file is limited to 2 GiB, so the weights of larger models go to a second file.
LARGEST_FILE = 1_900_000_000


def check_packages():
    """Raise a `ValueError` if a package that [`export_onnx`] requires is not installed."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"ONNX export requires {', '.join(missing)}: pip install hf_mim[onnx]")


@torch.no_grad()
def export_onnx(native: PreTrainedModel, file: Path) -> tuple[list[str], float]:
    """
    Export a native encoder or classifier to an ONNX file in float32 and verify it.

    The file accepts any batch size at `config.image_size`. Its input is `pixel_values` `[batch, C, H, W]`. Its outputs
    have the names of the model's outputs: `last_hidden_state` and `pooler_output`, or `logits`. They are compared with
    torch for batches of one and three images.

    Args:
        native (`PreTrainedModel`): Result of [`~hf_mim.hub.export.export_native`]. It is not modified.
        file (`Path`): Destination file. A model of more than about 1.9 GB gets a second file, `{file}.data`.

    Returns:
        `tuple[list[str], float]`: The names of the outputs, and their largest absolute difference from torch.

    Raises:
        ValueError: If packages are missing, if the model draws random numbers (ViTMAE), or if an output of ONNX
            Runtime differs from torch by more than 1e-4 plus 1e-5 times the largest value. In the last case, the file
            has been written but must not be used.
    """
    check_packages()
    from onnxruntime import InferenceSession

    config = native.config
    if config.model_type == "vit_mae":
        raise ValueError("a ViTMAE drops random patches, which an ONNX file cannot do: export the model as a ViT")
    model = copy.deepcopy(native).float().cpu().eval()
    # The exporter cannot decompose fused attention with a position bias.
    model.set_attn_implementation("eager")
    size = (config.image_size, config.image_size) if isinstance(config.image_size, int) else tuple(config.image_size)
    generator = torch.Generator().manual_seed(0)
    two, one, three = (torch.randn(n, config.num_channels, *size, generator=generator) for n in (2, 1, 3))

    # torch 2.7 cannot export a size without an upper bound.
    batch = torch.export.Dim("batch", max=2**31 - 1)
    names = list(model(two))
    with _quiet():
        program = torch.onnx.export(
            _Outputs(model, names).eval(),
            (two,),
            dynamo=True,
            input_names=["pixel_values"],
            output_names=names,
            dynamic_shapes={"pixel_values": {0: batch}},
            verbose=False,
        )
        assert program is not None
        # The exporter records the source line of each node, which includes local paths.
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()
        size_in_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
        program.save(file, external_data=size_in_bytes > LARGEST_FILE)

    session = InferenceSession(file, providers=["CPUExecutionProvider"])
    difference = 0.0
    for images in (one, three):
        expected = model(images)
        for name, found in zip(names, session.run(names, {"pixel_values": images.numpy()}), strict=True):
            largest = (torch.from_numpy(found) - expected[name]).abs().max().item()
            # `not <=` also catches NaN.
            accepted = ATOL + RTOL * expected[name].abs().max().item()
            if not largest <= accepted:
                raise ValueError(
                    f"the ONNX file is wrong: its {name} differs from torch's by up to {largest:.1e}, more than "
                    f"{accepted:.1e}"
                )
            difference = max(difference, largest)
    return names, difference


class _Outputs(nn.Module):
    """Wrapper that returns the named outputs of a model as a plain tuple."""

    def __init__(self, model: PreTrainedModel, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.model(pixel_values)
        return tuple(outputs[name] for name in self.names)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about optional packages and its own deprecated code, but not its errors."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
