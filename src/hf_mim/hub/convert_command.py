"""`hf-mim convert`: a checkpoint of an original code becomes a folder."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import transformers
from transformers import PreTrainedModel

from .catalogue import CatalogueEntry, find_entry, format_catalogue
from .config_overrides import parse_overrides
from .convert import ConvertedCheckpoint, check_output, convert_checkpoint, save_converted
from .download import check_sha256, default_cache_dir, download_file, recorded_address
from .layout import MODEL_TYPES


def main(argv: Sequence[str] | None = None):
    """
    Convert a checkpoint, write the folder, and print what was read, left behind and written, and how to load it. With
    `--list`, print the published checkpoints instead.

    Raises:
        ValueError, OSError: As [`convert_checkpoint`] and [`save_converted`]; nothing is written then.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--list" in argv:
        if len(argv) > 1:
            raise ValueError("--list stands alone: hf-mim convert --list")
        print(format_catalogue())
        return
    arguments = _parser().parse_args(argv)
    transformers.utils.logging.disable_progress_bar()  # one for each model, which is written in a second
    output = Path(arguments.output_dir)
    check_output(output.expanduser())  # before minutes of work
    overrides = parse_overrides(",".join(arguments.config_overrides))
    for name in ("source", "family", "num_attention_heads"):
        if name in overrides:
            raise ValueError(f"config_overrides: {name} has an argument of its own (hf-mim convert --help)")
    entry = _published(arguments)
    address, file = None, arguments.file or arguments.source
    if entry is not None and arguments.file is None:
        address, file = _fetch(entry, arguments)
    if arguments.sha256 is not None:
        check_sha256(file, arguments.sha256)
    family = arguments.family or (entry.family if entry is not None else None)
    converted = convert_checkpoint(file, family, arguments.num_attention_heads, **overrides)
    written = save_converted(converted, output, arguments.native, arguments.which, entry, address)

    print(f"read     {file}: {_sizes(converted)}")
    for change in converted.dropped:
        print(f"note     {change}")
    for folder, model in written.items():
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        print(f"wrote    {output / folder}: {type(model).__name__}, {millions:.1f} M parameters")
    print("\nto load it:\n" + "\n".join(f"    {line}" for line in _loading_lines(output, written)))


def _published(arguments: argparse.Namespace) -> CatalogueEntry | None:
    """The published checkpoint that SOURCE names; None if it is a path."""
    source = Path(arguments.source)
    if not (source.exists() or source.suffix or len(source.parts) > 1):
        return find_entry(arguments.source)
    for option in ("file", "mirror", "cache_dir", "encoder_only"):
        if getattr(arguments, option):
            raise ValueError(f"--{option} is for published checkpoints (--list), and {source} is a path")
    return None


def _fetch(entry: CatalogueEntry, arguments: argparse.Namespace) -> tuple[str, Path]:
    """Where the file of a published checkpoint came from and lies; it is downloaded unless it is there."""
    if entry.share is not None:
        raise ValueError(
            f"{entry.name} lies in a cloud share, from which no program can fetch it: open {entry.share}, save the "
            "file, and pass it with --file FILE"
        )
    name = entry.encoder_file if arguments.encoder_only else entry.file
    if name is None:
        raise ValueError(f"{entry.name} has one file only: leave out --encoder_only")
    address = (arguments.mirror.rstrip("/") + "/" if arguments.mirror else entry.files) + name
    folder = Path(arguments.cache_dir).expanduser() if arguments.cache_dir else default_cache_dir()
    file = download_file(address, folder / entry.name / Path(name).name)
    return recorded_address(file), file


def _sizes(converted: ConvertedCheckpoint) -> str:
    config = converted.config
    networks = "one network" if converted.teacher is None else "student, teacher and centres"
    if config.model_type == "ibot_swin":
        blocks, heads = "-".join(map(str, config.depths)), "-".join(map(str, config.num_heads))
    else:
        blocks, heads = config.num_hidden_layers, config.num_attention_heads
    height, width = (converted.image_processor.crop_size[side] for side in ("height", "width"))
    return (
        f"{config.model_type}, {networks}; {blocks} blocks, width {config.hidden_size}, {heads} heads, patches of "
        f"{config.patch_size}, images of {height} x {width}"
    )


def _loading_lines(output: Path, written: dict[str, PreTrainedModel]) -> list[str]:
    name = type(written["."]).__name__
    if type(written["."]).__module__.startswith("transformers."):
        lines = [f"from transformers import AutoImageProcessor, {name}"]
    else:
        lines = [f"from hf_mim import {name}", "from transformers import AutoImageProcessor"]
    lines += [
        "",
        f'model = {name}.from_pretrained("{output}")',
        f'processor = AutoImageProcessor.from_pretrained("{output}")',
    ]
    full = next((folder for folder, model in written.items() if type(model).__name__.endswith("ForPreTraining")), None)
    if full is not None:
        lines += ["", f"hf-mim pretrain RECIPE --model_name_or_path {output / full} ..."]
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-mim convert",
        description="Convert a checkpoint that the original code of a method wrote. Pickles are read without running "
        "any code in them, and every tensor is accounted for.",
        epilog="OUTPUT_DIR gets the most complete model that the file holds, with its image processor; of a full iBOT "
        "checkpoint also teacher/ with the centres, so that training can go on from it.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a .pth, .pt, .bin or .safetensors file, or the name of a published checkpoint, which is downloaded",
    )
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="a new or empty folder")
    parser.add_argument("--list", action="store_true", help="print the published checkpoints, and do nothing else")
    parser.add_argument("--family", choices=MODEL_TYPES, help="found from the names of the tensors when not given")
    parser.add_argument(
        "--which", choices=("teacher", "student"), help="take one network of a full iBOT checkpoint, and it alone"
    )
    parser.add_argument(
        "--native",
        action="store_true",
        help="write a model of transformers, which loads without hf_mim, and what goes beyond it into pretraining/",
    )
    parser.add_argument(
        "--num_attention_heads", type=int, help="needed where the width is not that of a published model"
    )
    parser.add_argument(
        "--config_overrides",
        action="append",
        default=[],
        metavar="NAME=VALUE,...",
        help="fields of the configuration, such as image_size=[224,448]",
    )
    published = parser.add_argument_group("published checkpoints")
    published.add_argument(
        "--encoder_only",
        action="store_true",
        help="download the smaller file with the encoder alone, where the authors publish one (iBOT)",
    )
    published.add_argument("--file", help="the file of this name, fetched by hand")
    published.add_argument(
        "--mirror", metavar="URL", help="take the file of the same name from this address instead of the authors'"
    )
    published.add_argument("--cache_dir", help="where downloads are kept; by default the folder hf_mim in HF_HOME")
    published.add_argument("--sha256", help="the SHA-256 that the file must have, in hexadecimal")
    return parser
