"""From what a model sees back to what a person can look at."""

import numpy as np
import torch
from transformers import BaseImageProcessor


def undo_normalisation(pixel_values: torch.Tensor, image_processor: BaseImageProcessor) -> np.ndarray:
    """Pictures `[B, H, W, 3]` (`[B, H, W]` for one channel) in [0, 1] from the processor's output `[B, C, H, W]`."""
    if image_processor.do_normalize:
        channels = pixel_values.shape[1]
        mean = torch.tensor(image_processor.image_mean).expand(channels)[:, None, None]
        std = torch.tensor(image_processor.image_std).expand(channels)[:, None, None]
        pixel_values = pixel_values * std + mean
    pictures = pixel_values.clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return pictures[..., 0] if pictures.shape[-1] == 1 else pictures[..., :3]
