"""Convert checkpoints of the original implementations to models of this package."""

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
from ...utils.files import replaced_folder, shown_folder
from ...utils.layout import CENTERS_FILE, TEACHER_FOLDER
from ..catalogue import CatalogueEntry, check_published
from ..converted_card import build_converted_card
from ..export import export_native, native_image_processor
from .families import find_family, load_converter
from .image_processors import original_image_processor
from .reading import OfficialCheckpoint, read_official


# Models that hold more than the encoder or classifier of transformers can take.
PRETRAINING = (IBotForPreTraining, IBotSwinForPreTraining, Beitv2ForPreTraining, DBotForPreTraining)


@dataclass
class ConvertedCheckpoint:
    """
    Result of [`convert_checkpoint`].

    Attributes:
        model (`PreTrainedModel`): The most complete model that the file supports. For a full iBOT checkpoint, this is
            the student.
        teacher (`PreTrainedModel`, *optional*): The teacher of a full iBOT checkpoint.
        config (`PreTrainedConfig`): Configuration of `model`.
        family (`str`): The family that was detected or given.
        source (`str`): Name of the file.
        image_processor (`BaseImageProcessor`): The evaluation transform of the original implementation.
        network (`str`, *optional*): `"student"` or `"teacher"` if the file holds only one of iBOT's networks. The
            mask token, which only a student has, distinguishes them.
        centers (`dict[str, Tensor]`): `cls_center` `[K]` and `patch_center` `[P]` of a full iBOT checkpoint, as
            [`IBotTrainer`] saves them with its teacher. Empty for other checkpoints.
        dropped (`list[str]`): Parts of the file that were left out or changed, each with the reason.
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
    Convert a checkpoint of an original implementation, or a state dict with its tensor names.

    Pickles are read without running any code in them. Sizes are inferred from the shapes. No tensor is skipped
    silently: one that is missing, or that is neither used nor known to be unnecessary, raises an error with its name.

    Args:
        source (`str`, `Path` or `Mapping`): A `.pth`, `.pt`, `.bin` or `.safetensors` file, or its content.
        family (`str`, *optional*): `"ibot"`, `"ibot_swin"`, `"beitv2"`, `"vqkd"` or `"dbot"`. Detected from the
            tensors by default. A plain ViT with a CLS token (as in DINO or timm) has the tensor names of iBOT's
            encoder and computes the same function at its own image size. MAE's encoder is converted as dBOT, and
            fine-tuned models of dBOT's symmetric variant as BEiT v2.
        num_attention_heads (`int`, *optional*): Number of attention heads of the encoder. Defaults to the number in
            the published model of the same width.
        **config_overrides: Configuration fields that cannot be inferred from the weights, or are inferred wrongly.

    Returns:
        [`ConvertedCheckpoint`]: Models in float32 and eval mode.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is damaged, holds code, or belongs to another family; if a tensor is missing,
            unexpected or of the wrong shape; if the number of heads is unknown; if an override is unknown or
            contradictory.
    """
    checkpoint = read_official(source)
    networks = checkpoint.networks
    first = "student" if "student" in networks else "model"
    family = find_family(networks[first], family, checkpoint.name)
    if "teacher" in networks and not has_online_teacher(family):
        raise ValueError(f"{checkpoint.name} holds a student and a teacher, so it is an iBOT checkpoint, not {family}")
    model = _convert(family, checkpoint, first, num_attention_heads, config_overrides)
    teacher = None
    if "teacher" in networks:
        # The head has the same trainable parameters as the student's, and a teacher has no stochastic depth.
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
    Save a converted checkpoint to a new folder, which `hf-mim pretrain --model_name_or_path` can continue from.

    The folder contains the model and its image processor. For a full iBOT checkpoint, `teacher/` contains the teacher
    and the centers. With `native`, the folder has the layout of a finished run instead: the encoder (the teacher's,
    for a full iBOT checkpoint) or the classifier as a transformers model at the root, and the full pre-training model
    in `pretraining/`. A model card, `README.md`, is always written.

    Args:
        converted (`ConvertedCheckpoint`): Result of [`convert_checkpoint`].
        output_dir (`str` or `Path`): A new or empty folder. It is written completely or not at all.
        native (`bool`, defaults to `False`): Whether to save a transformers model. Not possible for a tokenizer.
        which (`str`, *optional*): `"teacher"` or `"student"`, to save only one network of a full iBOT checkpoint.
        entry (`CatalogueEntry`, *optional*): The published checkpoint that this is, for the card.
        address (`str`, *optional*): The URL of the downloaded file, for the card.
        command (`str`, *optional*): The conversion command, for the card.

    Returns:
        `dict[str, PreTrainedModel]`: The saved models, by their folder within `output_dir`.

    Raises:
        ValueError: If the folder is not empty; if the checkpoint cannot be the published one; if `which` is given for
            a file with a single network; if no transformers model is equivalent.
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
            raise ValueError("which requires a full checkpoint with student and teacher; this file holds one network")
        model, teacher = (teacher if which == "teacher" else model), None

    written: dict[str, PreTrainedModel] = {}
    with replaced_folder(output) as folder:
        full = "."
        if native:
            deployed = model if teacher is None else teacher
            if isinstance(deployed, VQKDModel):
                raise ValueError("a VQ-KD tokenizer has no counterpart in transformers: convert it without --native")
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
        names = output.name, shown_folder(output)
        card = _card(names, converted, written["."], native, which, entry, address, command)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return written


def _card(
    names: tuple[str, str],
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
    name, location = names
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
        location=location,
    )


def check_output(output_dir: Path):
    """Raise a `ValueError` unless `output_dir` is a new or empty folder."""
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        raise ValueError(f"{output_dir} exists and is not an empty folder: choose another one")


def _convert(
    family: str, checkpoint: OfficialCheckpoint, network: str, num_attention_heads: int | None, overrides: dict
) -> PreTrainedModel:
    weights, name = checkpoint.networks[network], checkpoint.name
    if len(checkpoint.networks) > 1:
        name = f"{name} ({network})"
    converter = load_converter(family)
    return converter.convert(weights, name, num_attention_heads, converter.options(checkpoint.args) | overrides)


def _changes(family: str, checkpoint: OfficialCheckpoint, config: PreTrainedConfig) -> list[str]:
    """List the tensors that are changed or dropped rather than only renamed."""
    networks = checkpoint.networks
    types = {
        tensor.dtype for weights in networks.values() for tensor in weights.values() if tensor.is_floating_point()
    }
    changes = [
        f"{str(dtype).removeprefix('torch.')}: becomes float32" for dtype in sorted(types - {torch.float32}, key=str)
    ]
    if "teacher" in networks and not checkpoint.centers:
        changes.append("centers: the file has no ibot_loss, so training cannot continue from it")
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
            raise ValueError(f"{checkpoint.name}: ibot_loss must contain a {name} of {size} values")
    return {
        name: checkpoint.centers[official].detach().flatten().to(torch.float32, copy=True)
        for name, official in (("cls_center", "center"), ("patch_center", "center2"))
    }
