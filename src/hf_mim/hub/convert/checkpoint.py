"""Checkpoints that the original codes wrote, as models of this package."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from ...methods import has_online_teacher
from ...modeling.modeling_beitv2_pretraining import Beitv2ForPreTraining
from ...modeling.modeling_dbot_pretraining import DBotForPreTraining
from ...modeling.modeling_ibot_pretraining import IBotForPreTraining
from ...modeling.modeling_ibot_swin import IBotSwinForPreTraining
from ...modeling.modeling_vqkd import VQKDModel
from ...utils.files import replaced_folder
from ...utils.layout import CENTERS_FILE, TEACHER_FOLDER
from ..catalogue import CatalogueEntry, check_published
from ..converted_card import build_converted_card
from ..export import export_native, native_image_processor
from .families import find_family, load_converter
from .image_processors import original_image_processor
from .reading import OfficialCheckpoint, read_official


# Models with more in them than an encoder or a classifier of transformers takes.
PRETRAINING = (IBotForPreTraining, IBotSwinForPreTraining, Beitv2ForPreTraining, DBotForPreTraining)


@dataclass
class ConvertedCheckpoint:
    """
    Result of [`convert_checkpoint`].

    Attributes:
        model (`PreTrainedModel`): The most complete model that the file supports; of a full iBOT checkpoint, the
            student.
        teacher (`PreTrainedModel`, *optional*): The teacher of a full iBOT checkpoint.
        config (`PreTrainedConfig`): That of `model`.
        centers (`dict[str, Tensor]`): `cls_center` `[K]` and `patch_center` `[P]` of a full iBOT checkpoint, as
            [`IBotTrainer`] keeps them beside its teacher; otherwise empty.
        family (`str`): The family that was found or given.
        source (`str`): Name of the file.
        network (`str`, *optional*): `"student"` or `"teacher"`, where the file holds one of iBOT's networks alone: of
            the two, only a student has a mask token.
        dropped (`list[str]`): What of the file is left behind or changed, and why.
        image_processor (`BaseImageProcessor`): The transform with which the original evaluates the model.
    """

    model: PreTrainedModel
    teacher: PreTrainedModel | None
    config: PreTrainedConfig
    family: str
    source: str
    image_processor: BaseImageProcessor
    network: str | None = None
    centers: dict[str, Tensor] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


def convert_checkpoint(
    source: str | Path | Mapping,
    family: str | None = None,
    num_attention_heads: int | None = None,
    **config_overrides: Any,
) -> ConvertedCheckpoint:
    """
    Convert a checkpoint of an original code, or a state dict with its names.

    Pickles are read without running any code in them. Sizes come from the shapes. Nothing is skipped in silence: a
    tensor that is neither used nor known to be superfluous, or that is missing, is an error that names it.

    Args:
        source (`str`, `Path` or `Mapping`): A `.pth`, `.pt`, `.bin` or `.safetensors` file, or what it holds.
        family (`str`, *optional*): `"ibot"`, `"ibot_swin"`, `"beitv2"`, `"vqkd"` or `"dbot"`; found from the tensors
            when not given. A plain ViT with a CLS token (DINO's encoder, timm's) has the names of iBOT's encoder and
            is the same function at its own image size. MAE's encoder is dBOT's, and fine-tuned models of dBOT's
            symmetric variant are BEiT v2's.
        num_attention_heads (`int`, *optional*): Attention heads of the encoder; those of the published model of this
            width when not given.
        **config_overrides: Fields of the configuration that the weights do not tell, or tell wrongly.

    Returns:
        [`ConvertedCheckpoint`]: Models in float32 and eval mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, holds code, or is not of this family; if a tensor is missing, left over or
            of another shape; if the number of heads is not known; for an unknown or contradictory override.
    """
    checkpoint = read_official(source)
    networks = checkpoint.networks
    first = "student" if "student" in networks else "model"
    family = find_family(networks[first], family, checkpoint.name)
    if "teacher" in networks and not has_online_teacher(family):
        raise ValueError(f"{checkpoint.name} holds student and teacher, as those of iBOT do, not of {family}")
    model = _convert(family, checkpoint, first, num_attention_heads, config_overrides)
    teacher = None
    if "teacher" in networks:
        # Its head learns what the student's does, and nothing in it is dropped at random.
        options = config_overrides | {"norm_last_layer": model.config.norm_last_layer, "drop_path_rate": 0.0}
        teacher = _convert(family, checkpoint, "teacher", num_attention_heads, options)
    return ConvertedCheckpoint(
        model=model,
        teacher=teacher,
        config=model.config,
        family=family,
        source=checkpoint.name,
        network=_network(family, networks),
        centers=_centers(checkpoint, teacher),
        dropped=checkpoint.dropped + _changes(family, checkpoint, model.config),
        image_processor=original_image_processor(model.config, checkpoint.args),
    )


def save_converted(
    converted: ConvertedCheckpoint,
    output_dir: str | Path,
    native: bool = False,
    which: str | None = None,
    entry: CatalogueEntry | None = None,
    address: str | None = None,
    command: str | None = None,
) -> dict[str, PreTrainedModel]:
    """
    Write a converted checkpoint into a new folder, from which `hf-mim pretrain --model_name_or_path` goes on.

    - The model and its image processor, and of a full iBOT checkpoint `teacher/` with the teacher and the centres;
    - with `native`, the layout of a finished run: at the root the encoder (of a full iBOT checkpoint the teacher's) or
      the classifier as a model of transformers, and in `pretraining/` what the file holds beyond it. A tokenizer has
      no counterpart in transformers;
    - a model card, `README.md`.

    Args:
        converted (`ConvertedCheckpoint`): Result of [`convert_checkpoint`].
        output_dir (`str` or `Path`): A new or empty folder; it appears whole or not at all.
        native (`bool`, defaults to `False`): Whether to write a model of transformers.
        which (`str`, *optional*): `"teacher"` or `"student"`, to take one network of a full iBOT checkpoint alone.
        entry (`CatalogueEntry`, *optional*): Which published checkpoint it is, for the card.
        address (`str`, *optional*): Where the file was fetched, for the card.
        command (`str`, *optional*): The command that does this, for the card.

    Returns:
        `dict[str, PreTrainedModel]`: The models that were written, by their folder within `output_dir`.

    Raises:
        ValueError: If the folder has files in it; if the checkpoint cannot be the published one; if `which` does not
            fit it; if no model of transformers computes the same.
    """
    output = Path(output_dir).expanduser().resolve()
    check_output(output)
    model, teacher = converted.model, converted.teacher
    if entry is not None:
        check_published(entry, model, converted.family, converted.network, converted.source)
    if which not in (None, "teacher", "student"):
        raise ValueError(f"which must be teacher or student, got {which!r}")
    if which is not None:
        if teacher is None:
            raise ValueError("which is for a full checkpoint with student and teacher; this file holds one network")
        model, teacher = (teacher if which == "teacher" else model), None

    written: dict[str, PreTrainedModel] = {}
    with replaced_folder(output) as folder:
        full = "."
        if native:
            deployed = model if teacher is None else teacher
            if isinstance(deployed, VQKDModel):
                raise ValueError("a VQ-KD tokenizer has no counterpart in transformers: convert it without native")
            written["."] = export_native(deployed)
            native_image_processor(converted.image_processor).save_pretrained(folder)
            full = "pretraining"
        if not native or isinstance(model, PRETRAINING):
            written[full] = model
            converted.image_processor.save_pretrained(folder / full)
        if teacher is not None:
            written[str(Path(full, TEACHER_FOLDER))] = teacher
        for name, network in written.items():
            network.save_pretrained(folder / name)
        if teacher is not None and converted.centers:
            save_file(converted.centers, folder / full / TEACHER_FOLDER / CENTERS_FILE)
        card = _card(output.name, converted, written["."], native, which, entry, address, command)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return written


def _card(
    name: str,
    converted: ConvertedCheckpoint,
    root: PreTrainedModel,
    native: bool,
    which: str | None,
    entry: CatalogueEntry | None,
    address: str | None,
    command: str | None,
) -> str:
    whole = converted.teacher is not None
    network = which
    if whole and which is None:
        network = "teacher" if native else "student, and the teacher in `teacher/`"
    elif entry is not None and not whole:
        network = entry.network
    return build_converted_card(
        name,
        converted.family,
        type(root).__name__,
        root.config.hidden_size,
        entry,
        source=converted.source,
        address=address,
        network=network,
        command=command,
        versions={package: importlib.metadata.version(package) for package in ("hf_mim", "transformers")},
    )


def check_output(output_dir: Path):
    """Raises a `ValueError` unless `output_dir` is a new or empty folder."""
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        raise ValueError(f"{output_dir} exists and is not an empty folder: give another one")


def _convert(
    family: str, checkpoint: OfficialCheckpoint, network: str, num_attention_heads: int | None, overrides: dict
) -> PreTrainedModel:
    weights, name = checkpoint.networks[network], checkpoint.name
    if len(checkpoint.networks) > 1:
        name = f"{name} ({network})"
    converter = load_converter(family)
    return converter.convert(weights, name, num_attention_heads, converter.options(checkpoint.args) | overrides)


def _changes(family: str, checkpoint: OfficialCheckpoint, config: PreTrainedConfig) -> list[str]:
    """What becomes of tensors that are not simply renamed."""
    networks = checkpoint.networks
    types = {
        tensor.dtype for weights in networks.values() for tensor in weights.values() if tensor.is_floating_point()
    }
    changes = [
        f"{str(dtype).removeprefix('torch.')}: becomes float32" for dtype in sorted(types - {torch.float32}, key=str)
    ]
    if "teacher" in networks and not checkpoint.centers:
        changes.append("centers: the file has no ibot_loss, so that training cannot go on from it")
    return changes + load_converter(family).dropped(networks, config)


def _network(family: str, networks: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    if not has_online_teacher(family) or "model" not in networks:
        return None
    return "student" if "masked_embed" in networks["model"] else "teacher"


def _centers(checkpoint: OfficialCheckpoint, teacher: PreTrainedModel | None) -> dict[str, Tensor]:
    if teacher is None or not checkpoint.centers:
        return {}
    config = teacher.config
    sizes = {"center": config.out_dim, "center2": config.out_dim if config.shared_head else config.patch_out_dim}
    for name, size in sizes.items():
        if name not in checkpoint.centers or checkpoint.centers[name].numel() != size:
            raise ValueError(f"{checkpoint.name}: ibot_loss must have a {name} of {size} numbers")
    return {
        name: checkpoint.centers[official].detach().flatten().to(torch.float32, copy=True)
        for name, official in (("cls_center", "center"), ("patch_center", "center2"))
    }
