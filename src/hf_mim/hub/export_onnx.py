"""Native models as ONNX files: through the exporter of torch, and compared with torch by ONNX Runtime."""

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


# Largest difference from torch that is accepted: this, and this share of the largest number.
ATOL, RTOL = 1e-4, 1e-5
# An ONNX file ends at 2 GiB: the weights of larger models go into a second one beside it.
LARGEST_FILE = 1_900_000_000


def check_packages():
    """Raises a `ValueError` unless everything that [`export_onnx`] needs is installed."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"ONNX files need {', '.join(missing)}: pip install hf_mim[onnx]")


@torch.no_grad()
def export_onnx(native: PreTrainedModel, file: Path) -> tuple[list[str], float]:
    """
    Writes a native encoder or classifier in float32 as an ONNX file, for batches of any number of images of
    `config.image_size`, and compares its outputs with torch's for batches of one and of three.

    Its input is `pixel_values` `[batch, C, H, W]`. Its outputs are those of the model under the same names:
    `last_hidden_state` and `pooler_output`, or `logits`.

    Args:
        native (`PreTrainedModel`): As [`~hf_mim.hub.export.export_native`] gives it; it stays as it is.
        file (`Path`): Where to write. A model of more than about 1.9 GB gets a second file beside it, `{file}.data`.

    Returns:
        The names of the outputs, and the largest absolute difference of any of their numbers.

    Raises:
        ValueError: If packages are missing, if the model draws random numbers (ViTMAE), or if ONNX Runtime gives
            numbers that differ by more than 1e-4 plus 1e-5 of the largest; the file is there then, and worthless.
    """
    check_packages()
    from onnxruntime import InferenceSession

    config = native.config
    if config.model_type == "vit_mae":
        raise ValueError("a ViTMAE leaves out random patches, which a file cannot: export the model as a ViT")
    model = copy.deepcopy(native).float().cpu().eval()
    # The exporter cannot take apart fused attention with a position bias.
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
        # The exporter records the source line of each node, with paths of this machine.
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
            # Not max(): it would pass over a difference that is no number.
            accepted = ATOL + RTOL * expected[name].abs().max().item()
            if not largest <= accepted:
                raise ValueError(
                    f"the ONNX file would be wrong: its {name} differs from torch's by up to {largest:.1e}, more than "
                    f"{accepted:.1e}"
                )
            difference = max(difference, largest)
    return names, difference


class _Outputs(nn.Module):
    """A model with its named outputs as a plain tuple."""

    def __init__(self, model: PreTrainedModel, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.model(pixel_values)
        return tuple(outputs[name] for name in self.names)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that are absent and on its own old code; errors are raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
