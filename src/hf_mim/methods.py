"""What each method is called and where its parts are. Strings only: importing this file imports no method."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """
    One method of pre-training.

    Args:
        name (`str`): Value of `--model_type`. Except for variants, also the `model_type` of the saved configurations
            and the family of official checkpoints.
        title (`str`): Name in the paper.
        paper (`str`): URL of the paper.
        recipe (`str`): Packaged recipe to name as an example.
        run (`str`): Class of its `hf-mim pretrain` run, `module:class`.
        converter (`str`, *optional*): Module that converts official checkpoints; None for a variant whose checkpoints
            belong to another family.
        native (`str`, *optional*): `model_type` of the transformers encoders that training can start from.
        variant (`tuple[str, str]`, *optional*): For a variant, the family of its official checkpoints and the
            `model_type` of its configurations, both names of other methods.
        marker (`str`, *optional*): Field of the configuration that is None unless the model is of this variant.
        has_online_teacher (`bool`): Whether the teacher is trained along, with centers for its targets. Checkpoints
            then hold both networks, and the teacher is the one to deploy.
        pools_patches (`bool`): Whether the feature of an image is the mean of its patches, not the CLS token.
    """

    name: str
    title: str
    paper: str
    recipe: str
    run: str
    converter: str | None = None
    native: str | None = None
    variant: tuple[str, str] | None = None
    marker: str | None = None
    has_online_teacher: bool = False
    pools_patches: bool = False


IBOT_PAPER = "https://arxiv.org/abs/2111.07832"
BEITV2_PAPER = "https://arxiv.org/abs/2208.06366"
DBOT_PAPER = "https://arxiv.org/abs/2209.03917"
METHODS = (
    Method(
        name="ibot",
        title="iBOT",
        paper=IBOT_PAPER,
        recipe="ibot-vitb16",
        run="hf_mim.training.pretrain.ibot:IBotRun",
        converter="hf_mim.hub.convert.ibot",
        native="vit",
        has_online_teacher=True,
    ),
    Method(
        name="ibot_swin",
        title="iBOT",
        paper=IBOT_PAPER,
        recipe="ibot-swint7",
        run="hf_mim.training.pretrain.ibot:IBotSwinRun",
        converter="hf_mim.hub.convert.ibot_swin",
        native="swin",
        has_online_teacher=True,
    ),
    Method(
        name="beitv2",
        title="BEiT v2",
        paper=BEITV2_PAPER,
        recipe="beitv2-vitb16",
        run="hf_mim.training.pretrain.beitv2:Beitv2Run",
        converter="hf_mim.hub.convert.beitv2",
        native="beit",
    ),
    Method(
        name="vqkd",
        title="BEiT v2",
        paper=BEITV2_PAPER,
        recipe="vqkd-clip-vitb16",
        run="hf_mim.training.pretrain.vqkd:VQKDRun",
        converter="hf_mim.hub.convert.vqkd",
    ),
    Method(
        name="dbot",
        title="dBOT",
        paper=DBOT_PAPER,
        recipe="dbot-vitb16",
        run="hf_mim.training.pretrain.dbot:DBotRun",
        converter="hf_mim.hub.convert.dbot",
        pools_patches=True,
    ),
    Method(
        name="dbot_symmetric",
        title="dBOT",
        paper=DBOT_PAPER,
        recipe="dbot-vitb16-clip",
        run="hf_mim.training.pretrain.dbot:DBotSymmetricRun",
        variant=("dbot", "beitv2"),
        marker="regression_loss",
        pools_patches=True,
    ),
)
METHOD_NAMES = tuple(method.name for method in METHODS)
# Families of official checkpoints, which are the model types of the saved configurations.
FAMILIES = tuple(method.name for method in METHODS if method.converter is not None)


def find_method(name: str) -> Method:
    """Return the row of a method. Raises `ValueError` for an unknown name."""
    for method in METHODS:
        if method.name == name:
            return method
    raise ValueError(f"model_type must be one of {', '.join(METHOD_NAMES)}, got {name!r}")


def method_of_config(config: Any) -> Method:
    """Return the method that trains models with this configuration of ours."""
    for method in METHODS:
        if method.variant is not None and method.marker is not None and config.model_type == method.variant[1]:
            if getattr(config, method.marker, None) is not None:
                return method
    return find_method(config.model_type)


def method_of_converted(family: str, model_type: str) -> Method:
    """Return the method of a converted checkpoint by its family and the `model_type` of its configuration."""
    return next((method for method in METHODS if method.variant == (family, model_type)), find_method(family))


def has_online_teacher(model_type: str) -> bool:
    """Check whether a `model_type`, of ours or of transformers, belongs to a method with an online teacher."""
    return any(method.name == model_type and method.has_online_teacher for method in METHODS)
