"""
Color augmentation of multi-crop views: batched on the tensor's device, with the 8-bit arithmetic of Pillow.

The recipe is that of iBOT's code (`main_ibot.py: DataAugmentationiBOT`), which works on Pillow images: color jitter in
a random order, grayscale, Gaussian blur, solarization. Here the random numbers are drawn on the host
(`hf_mim.data.views`), and the arithmetic runs on batches of uint8 views. Every operation gives exactly the bytes that
Pillow gives on x86-64; the tests compare them, for the hue shift over all 2^24 colors.

Results are exact because float32 is exact for integers below 2^24, the blur's 24-bit fixed point uses int32, and
nothing is divided by a Python number, which CUDA would replace by a multiplication with the rounded reciprocal.

Which operation applies to which view is decided on the host, in NumPy: nothing here waits for the device.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import permutations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


# Columns of a parameter table [M, 8]. The first four are also the numbers of the jitter operations in JITTER_ORDERS.
BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER, GRAYSCALE, BLUR, SOLARIZE = range(8)
JITTER_ORDERS = tuple(permutations((BRIGHTNESS, CONTRAST, SATURATION, HUE)))
NEUTRAL = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)

# Values to process at once: on a CPU as many as its caches hold, on a GPU few enough to bound the memory of copies.
PIECE_ON_CPU, PIECE_ON_GPU = 2**19, 2**26

# 1 / 255^2, see `_shift_hue`.
HUE_UNIT = 1 / 65025

Operation = Callable[[Tensor, np.ndarray], None]


def color_batch(batch: dict[str, Tensor], parameters: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> None:
    """
    Replace the uint8 views of a batch by augmented and normalized ones, see [`color_views`].

    Args:
        batch (`dict[str, Tensor]`): Has `pixel_values` `[B, G, C, H, W]` and perhaps `local_pixel_values`
            `[B, L, C, h, w]`.
        parameters (`np.ndarray` of shape `(B, G+L, 8)`): Color parameters of the views.
        mean, std (`Sequence[float]`): C numbers each.
    """
    num_globals = batch["pixel_values"].shape[1]
    parts = {"pixel_values": parameters[:, :num_globals], "local_pixel_values": parameters[:, num_globals:]}
    for name, part in parts.items():
        if name in batch:
            views = batch[name]
            colored = color_views(views.flatten(0, 1), part.reshape(-1, part.shape[-1]), mean, std)
            batch[name] = colored.unflatten(0, views.shape[:2])


def color_views(views: Tensor, parameters: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """
    Augment the colors of uint8 views and normalize them.

    Per view: the jitter operations in the view's order, grayscale, Gaussian blur, solarization (threshold 128), then
    `(x / 255 - mean) / std`. Neutral entries cost nothing, so a table of `NEUTRAL` rows only normalizes.

    With one channel, saturation, hue and grayscale do nothing, and contrast pivots on the mean of that channel. With
    four (RGBA), the blur acts on all of them and everything else on the first three.

    Args:
        views (`Tensor` of shape `(M, C, H, W)`): uint8, C = 1, 3 or 4, on any device. Not modified.
        parameters (`np.ndarray` of shape `(M, 8)`): Columns as named in this module: factors of brightness, contrast
            and saturation (>= 0, 1 = off), hue shift in turns (0 = off), index into `JITTER_ORDERS`, grayscale flag,
            Gaussian blur radius in pixels (0 = off), solarize flag. It stays on the host, so that nothing waits for
            the device.
        mean, std (`Sequence[float]`): C numbers each, for values in [0, 1].

    Returns:
        `Tensor` of shape `(M, C, H, W)`: float32 on the device of `views`. The result of a view does not depend on the
        rest of the batch.

    Raises:
        ValueError: For another dtype, rank or channel count, a table of another shape, or mean or std of another
            length.
    """
    if views.dtype != torch.uint8 or views.ndim != 4 or views.shape[1] not in (1, 3, 4):
        raise ValueError(f"views must be uint8 [M, C, H, W] with C = 1, 3 or 4, got {views.dtype} {list(views.shape)}")
    views_count, channels = views.shape[:2]
    if parameters.shape != (views_count, len(NEUTRAL)):
        raise ValueError(f"parameters must have shape {(views_count, len(NEUTRAL))}, got {parameters.shape}")
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"mean and std need {channels} values for {channels} channels, got {len(mean)} and {len(std)}"
        )

    device = views.device
    white = torch.full((), 255.0, device=device)
    center, scale = (_upload(np.asarray(v, dtype=np.float32).reshape(-1, 1, 1), device) for v in (mean, std))
    # Sort similar views next to each other, so that most operations can work on a slice.
    jittered = (parameters[:, :4] != NEUTRAL[:4]).any(axis=1)
    rows = np.lexsort((parameters[:, BLUR], np.where(jittered, parameters[:, ORDER], -1)))
    step = max(1, (PIECE_ON_CPU if device.type == "cpu" else PIECE_ON_GPU) // max(1, views[0:1].numel()))
    colored = torch.empty(views.shape, dtype=torch.float32, device=device)
    for start in range(0, views_count, step):
        piece = rows[start : start + step]
        x = _gather(views, piece).float()
        _augment(x, parameters[piece])
        _scatter(x.div_(white).sub_(center).div_(scale), colored, piece)
    return colored


def normalize_views(views: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return `(x / 255 - mean) / std` of uint8 views `[M, C, H, W]` in float32; otherwise as [`color_views`]."""
    return color_views(views, np.tile(NEUTRAL, (len(views), 1)), mean, std)


def _augment(x: Tensor, parameters: np.ndarray) -> None:
    """Apply all operations in place. Here and below, `x` `[M, C, H, W]` is float32 with integers from 0 to 255."""
    colors = x[:, :3]
    operations: list[tuple[int, Operation]] = [(BRIGHTNESS, _brightness), (CONTRAST, _contrast)]
    if x.shape[1] > 1:
        operations += [(SATURATION, _saturation), (HUE, _shift_hue)]
    orders = np.asarray(JITTER_ORDERS)[parameters[:, ORDER].astype(np.int64)]
    for position in range(4):
        for column, operation in operations:
            wanted = (orders[:, position] == column) & (parameters[:, column] != NEUTRAL[column])
            _apply(operation, colors, parameters[:, column], wanted)
    if x.shape[1] > 1:
        _apply(_grayscale, colors, parameters[:, GRAYSCALE], parameters[:, GRAYSCALE] != 0)
    _apply_blur(x, parameters[:, BLUR])
    _apply(_solarize, colors, parameters[:, SOLARIZE], parameters[:, SOLARIZE] != 0)


def _apply(operation: Operation, x: Tensor, values: np.ndarray, wanted: np.ndarray) -> None:
    """Run the in-place `operation(views, values)` on the wanted views of `x`."""
    rows = np.flatnonzero(wanted)
    if len(rows) == 0:
        return
    first, last = rows[0], rows[-1] + 1
    if last - first == len(rows):
        operation(x[first:last], values[first:last])
    else:
        part = _gather(x, rows)
        operation(part, values[rows])
        _scatter(part, x, rows)


def _gather(x: Tensor, rows: np.ndarray) -> Tensor:
    return x.index_select(0, _upload(rows, x.device))


def _scatter(part: Tensor, x: Tensor, rows: np.ndarray) -> None:
    # Few kernel launches on a GPU, and three times as fast as index_copy_ on a CPU.
    torch._foreach_copy_([x[row] for row in rows], list(part.unbind()))


def _upload(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)


def _per_view(values: np.ndarray, dtype: type, device: torch.device) -> Tensor:
    return _upload(values.astype(dtype), device).view(-1, 1, 1, 1)


def _luminance(x: Tensor) -> Tensor:
    """Convert to Pillow's mode L: `[M, 3 or 1, H, W]` -> `[M, 1, H, W]`."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, dim=1)
    # The weights are multiples of 2^-16: all sums are exact.
    half = torch.full((), 0.5, device=x.device)
    weighted = torch.add(half, red, alpha=19595 / 2**16).add_(green, alpha=38470 / 2**16)
    return weighted.add_(blue, alpha=7471 / 2**16).floor_()


def _brightness(x: Tensor, factors: np.ndarray) -> None:
    x.mul_(_per_view(factors, np.float32, x.device)).clamp_(0, 255).floor_()


def _blend(x: Tensor, degenerate: Tensor, factors: np.ndarray) -> None:
    x.sub_(degenerate).mul_(_per_view(factors, np.float32, x.device)).add_(degenerate).clamp_(0, 255).floor_()


def _contrast(x: Tensor, factors: np.ndarray) -> None:
    pixels = x.shape[2] * x.shape[3]
    # The sum of a row is exact in float32, the sum of an image is not.
    total = _luminance(x).sum(dim=3, keepdim=True).long().sum(dim=2, keepdim=True)
    _blend(x, ((2 * total + pixels) // (2 * pixels)).float(), factors)


def _saturation(x: Tensor, factors: np.ndarray) -> None:
    _blend(x, _luminance(x), factors)


def _grayscale(x: Tensor, _: np.ndarray) -> None:
    x.copy_(_luminance(x).expand_as(x))


def _solarize(x: Tensor, _: np.ndarray) -> None:
    torch.minimum(x, 255 - x, out=x)


@cache
def _hue_table(device: torch.device) -> Tensor:
    """Return Pillow's 8-bit hue by the differences R - G and G - B: entry 511 (R - G + 255) + (G - B + 255)."""
    red, blue = np.meshgrid(np.arange(-255, 256), np.arange(255, -256, -1), indexing="ij")
    colors = np.stack([red, np.zeros_like(red), blue], axis=-1)
    colors -= colors.min(axis=-1, keepdims=True)
    hsv = Image.fromarray(colors.astype(np.uint8)).convert("HSV")
    return torch.from_numpy(np.asarray(hsv)[..., 0].flatten()).to(device)


def _shift_hue(x: Tensor, shifts: np.ndarray) -> None:
    """Convert to HSV and back in Pillow's 8 bits, with the hue shifted by int(255 * shift) in between."""
    red, green, blue = x.split(1, dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = torch.minimum(torch.minimum(red, green), blue).neg_().add_(value)

    index = torch.add(torch.full((), 512.0 * 255, device=x.device), red, alpha=511)
    index = index.sub_(green, alpha=510).sub_(blue).to(torch.int32)
    hue = _hue_table(x.device).index_select(0, index.flatten()).view(index.shape)
    hue += _per_view((shifts * 255).astype(np.int64) % 256, np.uint8, x.device)  # uint8: wraps around, as it must

    # Each channel is the value minus a share of value * saturation, which is a trapezoid over the hue circle of
    # 6 * 255 steps. Rounded factors do no harm: for all shares and products the result rounds to the right integer.
    product = chroma.mul_(255).div_(value.clamp(min=1)).floor_().mul_(value).mul_(HUE_UNIT)
    hue = hue.float().mul_(6)
    shares = ((hue - 765).abs_().neg_().add_(510), (hue - 510).abs_().sub_(255), (hue - 1020).abs_().sub_(255))
    for channel, share in zip((red, green, blue), shares, strict=True):
        torch.sub(value, share.clamp_(0, 255).mul_(product).round_(), out=channel)


def _apply_blur(x: Tensor, radii: np.ndarray) -> None:
    """
    Apply Pillow's GaussianBlur: three extended box blurs along each axis, each of them rounded to 8 bits.

    A box weights the pixels up to `reach` away by `inner` and the next ones by `outer`, in units of 2^-24. Its width
    is that of Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering" (SSVM 2011),
    computed in single precision as Pillow does.
    """
    one = np.float32(1)
    variance = radii.astype(np.float32) ** 2 / (3 * one)
    length = np.sqrt(12.0 * variance.astype(np.float64) + 1.0).astype(np.float32)
    whole = np.floor((length - one) / (2 * one))
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) * (whole + 1)))
    half_width = whole + fraction
    reach = half_width.astype(np.int64)
    inner = (np.float32(2**24) / (half_width * 2 + 1)).astype(np.int64)
    outer = (2**24 - (2 * reach + 1) * inner) // 2
    boxes = np.stack([reach, inner, outer], axis=1)
    for group in np.unique(reach[radii > 0]):
        _apply(_box_blurs, x, boxes, (radii > 0) & (reach == group))


def _box_blurs(x: Tensor, boxes: np.ndarray) -> None:
    """Blur with `boxes`, int64 [M, 3]: reach (the same in all rows), inner and outer weight."""
    reach = int(boxes[0, 0])
    # Centered at 128, the weighted sums fit in int32. The weights may fall short of 1 by one unit.
    shortfall = 2**24 - boxes @ [0, 2 * reach + 1, 2]
    rounding, inner, outer = (
        _per_view(column, np.int32, x.device).flatten(1)
        for column in (2**23 - 128 * shortfall, boxes[:, 1], boxes[:, 2])
    )
    # Planes with a margin stay contiguous under any shift: what a shift carries from one row or plane into the next
    # lands in the margin, which is refilled before each pass.
    margin = reach + 1
    height, width = x.shape[2:]
    planes = x.new_empty((*x.shape[:2], height + 2 * margin, width + 2 * margin), dtype=torch.int32)
    others = torch.empty_like(planes)
    inside = (..., slice(margin, margin + height), slice(margin, margin + width))
    planes[inside] = x
    planes.sub_(128)
    for dim, size, stride in ((3, width, 1), (2, height, width + 2 * margin)):
        length = planes[0].numel() - 2 * margin * stride
        for _ in range(3):
            planes.narrow(dim, 0, margin).copy_(planes.narrow(dim, margin, 1))
            planes.narrow(dim, margin + size, margin).copy_(planes.narrow(dim, margin + size - 1, 1))
            far_left, *near, far_right = (
                planes.flatten(1).narrow(1, shift * stride, length) for shift in range(2 * margin + 1)
            )
            y = torch.add(far_left, far_right, out=others.flatten(1).narrow(1, margin * stride, length)).mul_(outer)
            for neighbor in near:
                y.addcmul_(neighbor, inner)
            y.add_(rounding).bitwise_right_shift_(24)
            planes, others = others, planes
    x.copy_(planes[inside]).add_(128)
