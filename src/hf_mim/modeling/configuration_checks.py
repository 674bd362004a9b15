"""What the configurations of all methods compute from their fields, and refuse."""

from transformers import PreTrainedConfig


def grid_of(config: PreTrainedConfig) -> tuple[int, int]:
    """Rows and columns of patches in an image of `config.image_size`."""
    size = (config.image_size, config.image_size) if isinstance(config.image_size, int) else config.image_size
    return size[0] // config.patch_size, size[1] // config.patch_size


def check_counts(config: PreTrainedConfig, *names: str):
    """Raises a `ValueError` for the first of the named fields that is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")


def check_rates(config: PreTrainedConfig, *names: str):
    """Raises a `ValueError` for the first of the named fields that does not lie in [0, 1)."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {getattr(config, name)}")


def check_heads(config: PreTrainedConfig, part: str = ""):
    """Raises a `ValueError` if the attention heads of the encoder, or of another `part`, do not share its width."""
    width, heads = getattr(config, f"{part}hidden_size"), getattr(config, f"{part}num_attention_heads")
    if width % heads:
        raise ValueError(f"{part}hidden_size ({width}) must be a multiple of {part}num_attention_heads ({heads})")


def check_image_size(config: PreTrainedConfig):
    """Raises a `ValueError` unless `image_size` is one number or two, all of them multiples of `patch_size`."""
    size = [config.image_size] if isinstance(config.image_size, int) else list(config.image_size)
    if not isinstance(config.image_size, int) and len(size) != 2:
        raise ValueError(f"image_size must be one number or (height, width), got {size}")
    if any(side < config.patch_size or side % config.patch_size for side in size):
        raise ValueError(f"image_size ({config.image_size}) must be a multiple of patch_size ({config.patch_size})")
