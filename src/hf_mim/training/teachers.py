"""Frozen teachers: any vision model of transformers, as a function from images to one feature per patch."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BaseImageProcessor, CLIPVisionModelWithProjection, PreTrainedModel

from ..hub.run_card import read_card_data
from ..modeling.layers import at_least_float32
from ..utils.console import first_line
from ..utils.loading import load_model
from ..utils.vision import count_prefix, feature_stride, forward_options, show_all_patches


FEATURES = ("auto", "projected", "normed", "raw")


class FeatureTeacher(nn.Module):
    """
    A frozen vision model that computes one feature per patch of a student.

    It is always in evaluation mode, even after `train()`, and its parameters have no gradient.

    Images are resized (bicubic, as in Pillow) so that the grid of the model is the grid of the student. With a student
    of 14 x 14 patches, a teacher of patch size 14 sees 196 x 196 pixels. Alternatively, the model sees images of its
    own size, and its features are resized. Register tokens are left out, and so is the CLS token by default.

    Args:
        model (`PreTrainedModel`): A vision model, or a model with the part `vision_model` and, optionally,
            `visual_projection` (CLIP, SigLIP). It is modified.
        grid (`tuple[int, int]`): Rows and columns of the student's patches.
        image_mean, image_std (`list[float]`): Normalization that the model expects, for values in 0..1.
        feature (`str`, defaults to `"auto"`): `"raw"` is the output of the last block, `"normed"` is the output of the
            final norm, `"projected"` is the output of the projection after it (CLIP: `ln_post` and projection of every
            token, as in `modeling_vqkd.py` of BEiT v2). `"auto"` is the last of these three that the model has.
        resize (`"input"` or `"features"`, defaults to `"input"`): What is resized if the grids differ: the images, or
            (bilinearly) the features that the model computes at its own `image_size`.
        cls_token (`bool`, defaults to `False`): Whether to return the feature of the CLS token, too, if there is one.
        num_channels (`int`, defaults to 3): Channels of the student's images. Either the number of channels of the
            model, or 1 if that is 3. The channel is then repeated.
        name (`str`, *optional*): Where the model comes from, for messages and results.
        license (`str`, *optional*): License of the model.

    Attributes:
        hidden_size (`int`): Width D of the features.
        has_cls_token (`bool`): Whether the first feature is that of the CLS token.

    Raises:
        ValueError: If the model is not a vision model for this number of channels, lacks the feature, or cannot
            compute it on the grid.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        grid: tuple[int, int],
        image_mean: list[float],
        image_std: list[float],
        feature: str = "auto",
        resize: str = "input",
        cls_token: bool = False,
        num_channels: int = 3,
        name: str | None = None,
        license: str | None = None,
    ):
        super().__init__()
        if feature not in FEATURES:
            raise ValueError(f"the teacher's feature must be one of {', '.join(FEATURES)}, got {feature!r}")
        if resize not in ("input", "features"):
            raise ValueError(f"what is resized must be 'input' or 'features', got {resize!r}")
        self.name, self.license, self.grid = name or type(model).__name__, license, grid
        encoder: Any = getattr(model, "vision_model", model)
        if encoder.main_input_name != "pixel_values":
            raise ValueError(f"the teacher {self.name} takes {encoder.main_input_name}: it is not a vision model")
        self.num_channels = getattr(encoder.config, "num_channels", 3)
        if not self._takes(num_channels):
            raise ValueError(
                f"the teacher {self.name} takes images of {self.num_channels} channels, the student of {num_channels}"
            )
        self.encoder = encoder
        show_all_patches(encoder)
        norm = self._take_norm()
        projection = getattr(model, "visual_projection", None)
        if feature == "auto":
            feature = "raw" if norm is None else "normed" if projection is None else "projected"
        if feature == "projected" and projection is None:
            raise ValueError(f"the teacher {self.name} has no projection: choose the feature normed or raw")
        if feature != "raw" and norm is None:
            raise ValueError(f"the teacher {self.name} has no final norm: choose the feature raw")
        self.feature = feature
        self.norm = norm if norm is not None and feature != "raw" else nn.Identity()
        self.projection = projection if projection is not None and feature == "projected" else nn.Identity()
        self.image_mean: torch.Tensor
        self.image_std: torch.Tensor
        self.register_buffer("image_mean", torch.tensor(image_mean).view(-1, 1, 1))
        self.register_buffer("image_std", torch.tensor(image_std).view(-1, 1, 1))
        self._stride = feature_stride(encoder.config)
        # Grid of the features before they are resized.
        self._model_grid = grid if resize == "input" else self._own_grid()
        self.has_cls_token = cls_token
        self.requires_grad_(False).eval()
        features = self._probe()
        self.hidden_size = features.shape[-1]
        self.has_cls_token = features.shape[1] > grid[0] * grid[1]

    @property
    def dtype(self) -> torch.dtype:
        """Data type of weights and features."""
        return self.image_mean.dtype

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images that the model sees, in pixels."""
        return self._model_grid[0] * self._stride[0], self._model_grid[1] * self._stride[1]

    def train(self, mode: bool = True) -> "FeatureTeacher":
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """
        Compute the features of images.

        Args:
            images (`torch.Tensor` of shape `(B, C, H, W)`): Values in 0..1, not normalized. C is the number of
                channels of the model, or 1 if that is 3.

        Returns:
            Features of shape `(B, N, D)`, patches in row-major order, or `(B, 1+N, D)` with the CLS token first.

        Raises:
            ValueError: If the images have another number of channels.
        """
        if not self._takes(images.shape[1]):
            raise ValueError(
                f"the teacher {self.name} takes images of {self.num_channels} channels, got {images.shape[1]}"
            )
        if images.shape[-2:] != self.input_size:
            # Without antialiasing, the bicubic kernel of PyTorch differs from Pillow's, even for upsampling.
            images = nn.functional.interpolate(
                at_least_float32(images), self.input_size, mode="bicubic", align_corners=False, antialias=True
            ).clamp(0, 1)
        pixel_values = (images.to(self.dtype).expand(-1, self.num_channels, -1, -1) - self.image_mean) / self.image_std
        features = self.projection(self.norm(self._tokens(pixel_values))).to(self.dtype)
        if self._model_grid == self.grid:
            return features
        patches = features[:, -self._model_grid[0] * self._model_grid[1] :]
        maps = patches.transpose(1, 2).unflatten(2, self._model_grid)
        maps = nn.functional.interpolate(maps, self.grid, mode="bilinear", align_corners=False, antialias=True)
        return torch.cat((features[:, : -patches.shape[1]], maps.flatten(2).transpose(1, 2)), dim=1)

    def _takes(self, num_channels: int) -> bool:
        return num_channels == self.num_channels or (num_channels, self.num_channels) == (1, 3)

    def _tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the output of the last block: `[B, N, D]`, or `[B, 1+N, D]` with the CLS token."""
        rows, columns = self._model_grid
        options = forward_options(self.encoder, len(pixel_values), self._model_grid)
        hidden = self.encoder(pixel_values, **options).last_hidden_state
        if hidden.ndim == 4:
            if hidden.shape[-2:] != (rows, columns):
                raise ValueError(f"it gives {hidden.shape[-2]}x{hidden.shape[-1]} features")
            return hidden.flatten(2).transpose(1, 2)
        prefix = count_prefix(self.encoder, hidden.shape[1], self._model_grid)
        patches = hidden[:, prefix:]
        has_cls_token = self.has_cls_token and prefix > 0
        return torch.cat((hidden[:, :1], patches), dim=1) if has_cls_token else patches

    def _take_norm(self) -> nn.Module | None:
        """
        Remove the final norm from the encoder, whose output is then the output of its last block.

        Some models apply the norm to pooled features only (CLIP, ConvNeXt, BEiT with mean pooling), so their output
        does not change.

        Returns:
            The norm, or None if there is none.
        """
        pooler = getattr(self.encoder, "pooler", None)
        norms = [(self.encoder, name) for name in ("post_layernorm", "layernorm", "norm")] + [(pooler, "layernorm")]
        found = None
        for owner, name in norms:
            norm = getattr(owner, name, None)
            if isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity):
                found = norm
                setattr(owner, name, nn.Identity())
                break
        if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
            # Not used here, and random if the checkpoint lacks it.
            self.encoder.pooler = None
        return found

    def _probe(self) -> torch.Tensor:
        """Return the features of one image, to find out whether the model works on this grid."""
        try:
            return self(torch.zeros(1, self.num_channels, *self.input_size))
        except Exception as error:
            rows, columns = self.grid
            height, width = self.input_size
            raise ValueError(
                f"the teacher {self.name} cannot give features on the student's grid of {rows}x{columns} patches, for "
                f"which it would see {height}x{width} pixels: {first_line(error)}{self._advice()}"
            ) from error

    def _own_grid(self) -> tuple[int, int]:
        """Return rows and columns of the features of an image of the model's own size."""
        size = getattr(self.encoder.config, "image_size", None)
        if size is None:
            raise ValueError(f"the teacher {self.name} has no image_size of its own: resize its input")
        height, width = (size, size) if isinstance(size, int) else size
        return height // self._stride[0], width // self._stride[1]

    def _advice(self) -> str:
        """Suggest a student with the grid that the model was made for, or return `""` if that does not work either."""
        try:
            self.grid = self._model_grid = self._own_grid()
            self(torch.zeros(1, self.num_channels, *self.input_size))
        except Exception:
            return ""
        rows, columns = self.grid
        return (
            f"; a student of {rows}x{columns} patches fits, such as one with patch_size 16 and image_size "
            f"{16 * rows}x{16 * columns}"
        )


def load_teacher(
    name_or_path: str,
    grid: tuple[int, int],
    feature: str = "auto",
    resize: str = "input",
    cls_token: bool = False,
    num_channels: int = 3,
    **hub_options: Any,
) -> FeatureTeacher:
    """
    Load a vision model from a folder or the Hub as a [`FeatureTeacher`] in float32.

    Args:
        name_or_path (`str`): Folder or Hub id of a vision model of transformers or of this package, with its image
            processor. Only the image tower of models such as CLIP is used, and only the encoder of models with a head.
        grid (`tuple[int, int]`): Rows and columns of the student's patches.
        feature, resize, cls_token, num_channels: As for [`FeatureTeacher`].
        **hub_options: `revision`, `token` and `cache_dir`, as for `from_pretrained`.

    Raises:
        OSError: If the model or its image processor is missing.
        ValueError: If weights are missing, or as for [`FeatureTeacher`].
    """
    config = AutoConfig.from_pretrained(name_or_path, **hub_options)
    model_class: type = AutoModel
    if config.architectures == ["CLIPVisionModelWithProjection"]:
        # AutoModel would load the tower without its projection, because both have the same model type.
        model_class = CLIPVisionModelWithProjection
    model: PreTrainedModel = load_model(
        name_or_path, model_class, unused=("pooler.",), dtype=torch.float32, **hub_options
    )
    processor, _ = BaseImageProcessor.get_image_processor_dict(name_or_path, **hub_options)
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if mean is None or std is None:
        raise ValueError(f"the image processor of the teacher {name_or_path} has no image_mean and image_std")
    return FeatureTeacher(
        model,
        grid,
        mean,
        std,
        feature,
        resize,
        cls_token,
        num_channels,
        name=source_name(name_or_path),
        license=read_card_data(name_or_path, **hub_options).license,
    )


def plain_images(pixel_values: torch.Tensor, image_mean: list[float], image_std: list[float]) -> torch.Tensor:
    """Undo the normalization of images `[B, C, H, W]`. The values are in 0..1, as [`FeatureTeacher`] expects them."""
    mean, std = (pixel_values.new_tensor(values).view(-1, 1, 1) for values in (image_mean, image_std))
    return (pixel_values * std + mean).clamp(0, 1)


def normalized_images(images: torch.Tensor, image_mean: list[float], image_std: list[float]) -> torch.Tensor:
    """Normalize images `[B, C, H, W]` with values in 0..1."""
    mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (image_mean, image_std))
    return (images - mean) / std


def source_name(name_or_path: str) -> str:
    """Return a Hub id unchanged, and the name of a folder without its path, which means nothing on other machines."""
    return Path(name_or_path).resolve().name if Path(name_or_path).is_dir() else name_or_path
