"""Any plain ViT of transformers, seen from inside: loading it, its blocks, its grid of patches."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModel, BaseImageProcessor, PreTrainedModel

from ..modeling.modeling_vqkd import VQKDModel
from ..utils.console import first_line
from ..utils.loading import without_load_report


def load_encoder(source: str | Path) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """The image encoder in a folder or on the Hub, in float32 and evaluation mode, with its image processor.

    Of a model with several parts it is the image tower (CLIP, SigLIP) or the encoder (VQ-KD); heads are left out. A
    ViTMAE is set to show all patches.

    Raises:
        ValueError: if there is no model or no image processor, weights are missing, or it does not take images.
    """
    if str(source).startswith(("/", ".", "~")) and not Path(source).is_dir():
        raise ValueError(f"{source}: there is no such folder; MODEL is a folder or a model id of the Hub")
    try:
        with without_load_report():
            model, report = AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: no model can be loaded ({first_line(error)})") from error
    try:
        image_processor = AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        message = first_line(error)
        raise ValueError(f"{source}: no image processor can be loaded ({message})") from error
    # what encoders come without, and no block reads
    unused = ("mask_token", "pooler.")
    missing = sorted(key for key in report["missing_keys"] if not any(part in key for part in unused))
    if missing:
        raise ValueError(f"{source}: the checkpoint lacks {len(missing)} weights, such as {missing[0]}")

    encoder = model.encoder if isinstance(model, VQKDModel) else getattr(model, "vision_model", model)
    if encoder.main_input_name != "pixel_values":
        raise ValueError(f"{source}: {type(encoder).__name__} takes {encoder.main_input_name}, not images")
    if encoder.config.model_type == "vit_mae":
        encoder.config.mask_ratio = 0.0
    return encoder.eval(), image_processor


@contextmanager
def eager_evaluation(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode and eager attention, the only one that gives its weights; afterwards both are as before."""
    implementation = model.config._attn_implementation
    modes = [(module, module.training) for module in model.modules()]
    model.set_attn_implementation("eager")
    model.eval()
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)
        for module, training in modes:
            module.training = training


def forward_options(model: PreTrainedModel, pixel_values: torch.Tensor) -> dict:
    """Keyword arguments with which a ViT accepts images of another size than it was trained on, and hides none."""
    options: dict = {}
    if "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
        options["interpolate_pos_encoding"] = True
    if model.config.model_type == "vit_mae":
        # it sorts the patches by this noise
        rows, columns = patch_grid(model, pixel_values)
        noise = torch.arange(rows * columns, dtype=torch.float32, device=model.device)
        options["noise"] = noise.expand(len(pixel_values), -1)
    return options


def patch_size(model: PreTrainedModel) -> tuple[int, int]:
    """Height and width of a patch in pixels.

    Raises:
        ValueError: for a model whose configuration tells no patch size.
    """
    size = getattr(model.config, "patch_size", None)
    if isinstance(size, int):
        return size, size
    if isinstance(size, Sequence) and len(size) == 2:
        return tuple(size)
    raise ValueError(f"{type(model).__name__} has no (single) patch size in its configuration: it is no plain ViT")


def patch_grid(model: PreTrainedModel, pixel_values: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of patches that the model cuts images `[B, C, H, W]` into; raises what `patch_size` does."""
    height, width = patch_size(model)
    return pixel_values.shape[-2] // height, pixel_values.shape[-1] // width


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks, in the order in which they run.

    Raises:
        ValueError: if the model has none, or several towers of them.
    """
    depth = getattr(model.config, "num_hidden_layers", None)
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if len(found) != 1 or not depth:
        raise ValueError(
            f"{type(model).__name__} has no single stack of {depth} blocks (num_hidden_layers of its configuration): "
            "it is no plain ViT encoder"
        )
    return found[0]


def count_prefix(model: PreTrainedModel, tokens: int, grid: tuple[int, int]) -> int:
    """Number of tokens in front of the patches: CLS, a distillation token, registers.

    Raises:
        ValueError: if so many tokens are not these and one for every patch.
    """
    prefix = tokens - grid[0] * grid[1]
    if prefix not in (0, 1, 2, 1 + (getattr(model.config, "num_register_tokens", 0) or 0)):
        raise ValueError(
            f"{type(model).__name__} has {tokens} tokens for {grid[0]}x{grid[1]} patches: it is no plain ViT, or it "
            "leaves out patches"
        )
    return prefix


@torch.no_grad()
def run_with_hooks(
    model: PreTrainedModel, pixel_values: torch.Tensor, hooks: Sequence[tuple[nn.Module, Callable]]
) -> None:
    """One forward pass in `eager_evaluation`, without gradients, with forward hooks that are removed afterwards."""
    handles = []
    with eager_evaluation(model):
        try:
            handles.extend(module.register_forward_hook(hook) for module, hook in hooks)
            model(pixel_values.to(model.device, model.dtype), **forward_options(model, pixel_values))
        finally:
            for handle in handles:
                handle.remove()
