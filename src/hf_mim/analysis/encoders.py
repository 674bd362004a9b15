"""Access to the inside of a plain ViT of transformers: load it, find its blocks, run it with hooks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import BaseImageProcessor, PreTrainedModel

from ..modeling.modeling_vqkd import VQKDModel
from ..utils import vision
from ..utils.loading import load_model_and_processor


def load_encoder(source: str | Path) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    Load an image encoder from a folder or the Hub, in float32 and evaluation mode, with its image processor.

    Of a model with several parts, this is the image tower (CLIP, SigLIP) or the encoder (VQ-KD), without any head. A
    ViTMAE is set to process all patches.

    Args:
        source (`str` or `Path`): Folder or Hub id.

    Raises:
        ValueError: If there is no model or no image processor, weights are missing, or it does not take images.
    """
    model, image_processor = load_model_and_processor(source, dtype=torch.float32)
    encoder = model.encoder if isinstance(model, VQKDModel) else getattr(model, "vision_model", model)
    if encoder.main_input_name != "pixel_values":
        raise ValueError(f"{source}: {type(encoder).__name__} takes {encoder.main_input_name}, not images")
    vision.show_all_patches(encoder)
    return encoder.eval(), image_processor


@contextmanager
def eager_evaluation(model: PreTrainedModel) -> Iterator[None]:
    """
    Put a model in evaluation mode with eager attention, the only implementation that returns attention weights.

    Both are restored afterwards, the mode of every module by itself.
    """
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


def patch_size(model: PreTrainedModel) -> tuple[int, int]:
    """
    Return height and width of a patch in pixels.

    Raises:
        ValueError: If the configuration of the model has no patch size.
    """
    size = vision.patch_size(model.config)
    if size is None:
        raise ValueError(
            f"{type(model).__name__} has no (single) patch size in its configuration: it is not a plain ViT"
        )
    return size


def patch_grid(model: PreTrainedModel, pixel_values: torch.Tensor) -> tuple[int, int]:
    """Return rows and columns of patches in images `[B, C, H, W]`; raises what [`patch_size`] does."""
    height, width = patch_size(model)
    return pixel_values.shape[-2] // height, pixel_values.shape[-1] // width


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """
    Return the transformer blocks, in the order in which they run.

    Raises:
        ValueError: If the model has none, or several stacks of them.
    """
    depth = getattr(model.config, "num_hidden_layers", None)
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if len(found) != 1 or not depth:
        raise ValueError(
            f"{type(model).__name__} has no single stack of {depth} blocks (num_hidden_layers of its configuration): "
            "it is not a plain ViT encoder"
        )
    return found[0]


@torch.no_grad()
def run_with_hooks(
    model: PreTrainedModel, pixel_values: torch.Tensor, hooks: Sequence[tuple[nn.Module, Callable]]
) -> None:
    """
    Run one forward pass in [`eager_evaluation`], without gradients.

    Args:
        model (`PreTrainedModel`): A ViT.
        pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): Normalized images.
        hooks (`Sequence[tuple[nn.Module, Callable]]`): Modules and their forward hooks, which are removed afterwards.
    """
    handles: list[RemovableHandle] = []
    options = vision.forward_options(model, len(pixel_values), patch_grid(model, pixel_values))
    with eager_evaluation(model):
        try:
            handles.extend(module.register_forward_hook(hook) for module, hook in hooks)
            model(pixel_values.to(model.device, model.dtype), **options)
        finally:
            for handle in handles:
                handle.remove()
