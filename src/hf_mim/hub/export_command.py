"""`hf-mim export MODEL OUT`: a model as one of transformers' own, and as an ONNX file."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import CONFIG_NAME, cached_file

from ..methods import has_online_teacher
from ..utils.files import replaced_folder
from ..utils.layout import TEACHER_FOLDER
from ..utils.loading import find_source, load_config, load_image_processor, load_model
from .convert.checkpoint import check_output
from .export import EXPORTERS, export_native, native_image_processor, other_sizes
from .export_onnx import check_packages, export_onnx
from .run_card import build_exported_card


OURS = tuple(config_class.model_type for config_class in EXPORTERS)
NATIVE = ("vit", "vit_mae", "beit", "swin")
ONNX_FILE = "model.onnx"


def main(argv: Sequence[str] | None = None):
    """
    Export a model, write the folder, and print what was written, at which sizes it is exact, and how to load it.

    Raises:
        ValueError, OSError: As [`load_source`], [`~hf_mim.hub.export.export_native`] and
            [`~hf_mim.hub.export_onnx.export_onnx`], or if the folder is not empty; nothing is written then.
    """
    arguments = _parser().parse_args(argv)
    output = Path(arguments.output_dir).expanduser()
    check_output(output)  # before minutes of work
    if arguments.onnx:
        check_packages()
    place = os.path.expanduser(arguments.model)
    source, model, processor = load_source(place)
    is_native = model.config.model_type in NATIVE
    if is_native:
        if arguments.architecture or not arguments.onnx:
            raise ValueError(f"{source} is a plain {type(model).__name__} of transformers: nothing is to be done")
        native = model
    else:
        native = export_native(model, arguments.architecture)

    lines, name = [], output.resolve().name
    sizes = "" if is_native else other_sizes(native)
    loading = _loading_lines(name, native, processor is not None)
    card = build_exported_card(name, place, source != place, native, loading, sizes)
    with replaced_folder(output.resolve()) as folder:
        native.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        if processor is not None:
            (processor if is_native else native_image_processor(processor)).save_pretrained(folder)
        if arguments.onnx:
            names, difference = export_onnx(native, folder / ONNX_FILE)
            size = native.config.image_size
            height, width = (size, size) if isinstance(size, int) else size
            lines += [
                f"wrote    {output / ONNX_FILE}: {' and '.join(names)} of any number of images",
                f"         of {height} x {width} pixels and no other size; within {difference:.1e} of torch",
            ]
    print(f"read     {source}: {type(model).__name__}")
    print(f"wrote    {output}: {type(native).__name__}, {native.num_parameters() / 1e6:.1f} M parameters")
    if not is_native:
        print(f"         {sizes}")
    if processor is None:
        print(f"         {arguments.model} has no image processor: there is none to write")
    for line in lines:
        print(line)
    print("\nto load it, where hf_mim need not be:")
    print("\n".join(f"    {line}" for line in _loading_lines(str(output), native, processor is not None)))


def load_source(name: str) -> tuple[str, PreTrainedModel, BaseImageProcessor | None]:
    """
    The model to export from a folder or the Hub, with its image processor if there is one.

    Of a pre-training model of iBOT with its teacher beside it, that is the teacher: the network that is deployed.

    Returns:
        What was read (`name`, or its `teacher`), the encoder or classifier, and the image processor.

    Raises:
        ValueError, OSError: If there is no model, none of these methods, or one that lacks weights; if its teacher is
            there and cannot be loaded, or the Hub cannot be asked for it.
    """
    name = find_source(name)
    config = load_config(name)
    if config.model_type not in OURS + NATIVE:
        raise ValueError(
            f"{name} is a model of type {config.model_type!r}; what can be exported is of type {', '.join(OURS)}"
        )
    place, source = {}, name
    if has_online_teacher(config.model_type) and _has_teacher(name):
        place, source = {"subfolder": TEACHER_FOLDER}, f"{name}/{TEACHER_FOLDER}"
    auto_class = AutoModelForImageClassification if _is_classifier(config) else AutoModel
    model = load_model(name, auto_class, unused=("mask_token",), **place)
    try:
        processor: BaseImageProcessor | None = load_image_processor(name)
    except ValueError:
        processor = None
    return source, model, processor


def _has_teacher(name: str) -> bool:
    """Only whether it is there: if it is damaged, or the Hub does not answer, the student must not stand in for it."""
    return cached_file(name, CONFIG_NAME, subfolder=TEACHER_FOLDER) is not None


def _is_classifier(config: PreTrainedConfig) -> bool:
    return any(name.endswith("ForImageClassification") for name in config.architectures or [])


def _loading_lines(name: str, native: PreTrainedModel, has_processor: bool) -> list[str]:
    auto_class = "AutoModelForImageClassification" if _is_classifier(native.config) else "AutoModel"
    lines = [f"from transformers import {auto_class}", f'model = {auto_class}.from_pretrained("{name}")']
    if native.config.model_type == "vit_mae":
        # Otherwise it hides most patches from itself.
        lines[1] = f'model = {auto_class}.from_pretrained("{name}", mask_ratio=0.0)  # sees all patches'
    if has_processor:
        lines[0] = f"from transformers import AutoImageProcessor, {auto_class}"
        lines.append(f'processor = AutoImageProcessor.from_pretrained("{name}")')
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-mim export",
        description="Write a model as one of transformers' own (ViT, BEiT, Swin, ViTMAE), with the same numbers, that "
        "loads where hf_mim is not installed; and its image processor.",
        epilog="A pre-training model gives its encoder: of iBOT, the teacher's, if it lies beside it.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of an encoder, classifier or full model")
    parser.add_argument("output_dir", metavar="OUT", help="a new or empty folder")
    parser.add_argument(
        "--architecture",
        choices=("vit_mae",),
        help="dBOT's encoder as a ViTMAE, which sees the patches that a mask leaves; without it, what fits the model",
    )
    parser.add_argument(
        "--onnx",
        action="store_true",
        help=f"also write {ONNX_FILE}, for batches of any number of images of the model's size (needs hf_mim[onnx]); "
        "MODEL may then be one of transformers' own already",
    )
    return parser
