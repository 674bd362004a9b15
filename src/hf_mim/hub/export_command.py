"""The `hf-mim export` command: save a model as a native transformers model, and optionally as an ONNX file."""

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
from ..utils.command_line import CommandParser
from ..utils.files import replaced_folder, shown_folder
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
    Export a model, save it, and print what was written, at which image sizes it is exact, and how to load it.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments after `hf-mim export`. Defaults to the command line.

    Raises:
        ValueError, OSError: As for [`load_source`], [`~hf_mim.hub.export.export_native`] and
            [`~hf_mim.hub.export_onnx.export_onnx`], or if the folder is not empty. Nothing is written in this case.
    """
    arguments = _parser().parse_args(argv)
    output = Path(arguments.output_dir).expanduser()
    check_output(output)  # fail before a long download
    if arguments.onnx:
        check_packages()
    place = os.path.expanduser(arguments.model)
    source, model, processor = load_source(place)
    is_native = model.config.model_type in NATIVE
    if is_native:
        if arguments.architecture or not arguments.onnx:
            raise ValueError(
                f"{source} is already a {type(model).__name__} of transformers: there is nothing to export"
            )
        native = model
    else:
        native = export_native(model, arguments.architecture)

    lines, name = [], output.resolve().name
    sizes = "" if is_native else other_sizes(native)
    loading = _loading_lines(shown_folder(output), native, processor is not None)
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
                f"wrote    {output / ONNX_FILE}: {' and '.join(names)} for any number of images",
                f"         of exactly {height} x {width} pixels; within {difference:.1e} of torch",
            ]
    print(f"read     {source}: {type(model).__name__}")
    print(f"wrote    {output}: {type(native).__name__}, {native.num_parameters() / 1e6:.1f} M parameters")
    if not is_native:
        print(f"         {sizes}")
    if processor is None:
        print(f"         {arguments.model} has no image processor, so none is written")
    for line in lines:
        print(line)
    print("\nto load it, with or without hf_mim installed:")
    print("\n".join(f"    {line}" for line in _loading_lines(str(output), native, processor is not None)))


def load_source(name: str) -> tuple[str, PreTrainedModel, BaseImageProcessor | None]:
    """
    Load the model to export from a folder or the Hub, with its image processor if there is one.

    For an iBOT pre-training model that was saved with its teacher, the teacher is loaded, because it is the network
    to deploy.

    Args:
        name (`str`): Folder or Hub id.

    Returns:
        The loaded folder or Hub id (`name`, or its `teacher`), the encoder or classifier, and the image processor.

    Raises:
        ValueError, OSError: If there is no model, it is not of a supported method, or weights are missing; if the
            teacher exists but cannot be loaded, or the Hub cannot be reached.
    """
    name = find_source(name)
    config = load_config(name)
    if config.model_type not in OURS + NATIVE:
        raise ValueError(
            f"{name} has the model type {config.model_type!r}; only these types can be exported: {', '.join(OURS)}"
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
    """Return whether a teacher exists. If it is damaged, loading fails later instead of using the student."""
    return cached_file(name, CONFIG_NAME, subfolder=TEACHER_FOLDER) is not None


def _is_classifier(config: PreTrainedConfig) -> bool:
    return any(name.endswith("ForImageClassification") for name in config.architectures or [])


def _loading_lines(name: str, native: PreTrainedModel, has_processor: bool) -> list[str]:
    auto_class = "AutoModelForImageClassification" if _is_classifier(native.config) else "AutoModel"
    lines = [f"from transformers import {auto_class}", f'model = {auto_class}.from_pretrained("{name}")']
    if native.config.model_type == "vit_mae":
        # Otherwise it masks most patches.
        lines[1] = f'model = {auto_class}.from_pretrained("{name}", mask_ratio=0.0)  # sees all patches'
    if has_processor:
        lines[0] = f"from transformers import AutoImageProcessor, {auto_class}"
        lines.append(f'processor = AutoImageProcessor.from_pretrained("{name}")')
    return lines


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="hf-mim export",
        description="Save a model and its image processor as native transformers classes (ViT, BEiT, Swin, ViTMAE). "
        "The outputs are the same, and the model loads where hf_mim is not installed.",
        epilog="From a pre-training model, the encoder is exported; for iBOT, the teacher's encoder if it was saved "
        "with the model.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of an encoder, classifier or full model")
    parser.add_argument("output_dir", metavar="OUT", help="a new or empty folder")
    parser.add_argument(
        "--architecture",
        choices=("vit_mae",),
        help="export dBOT's encoder as a ViTMAE, which encodes only visible patches; by default the matching class",
    )
    parser.add_argument(
        "--onnx",
        action="store_true",
        help=f"also write {ONNX_FILE}, for any batch size at the model's image size (requires hf_mim[onnx]); MODEL "
        "may then also be a native transformers model",
    )
    return parser
