"""The `hf-mim convert` command: convert a checkpoint of an original implementation."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import transformers
from transformers import PreTrainedModel

from ...methods import FAMILIES, method_of_config
from ...utils.command_line import CommandParser, positive_count
from ...utils.config_overrides import parse_overrides
from ..catalogue import CatalogueEntry, describe_sizes, find_entry, format_catalogue, load_catalogue
from ..download import check_sha256, default_cache_dir, download_file, recorded_address
from .checkpoint import ConvertedCheckpoint, check_output, convert_checkpoint, save_converted


def main(argv: Sequence[str] | None = None):
    """
    Convert a checkpoint, save it, and print what was read, dropped and written, and how to load it.

    With `--list`, print the published checkpoints instead.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments after `hf-mim convert`. Defaults to the command line.

    Raises:
        ValueError, OSError: As for [`convert_checkpoint`] and [`save_converted`]. Nothing is written in this case.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--list" in argv:
        if len(argv) > 1:
            raise ValueError("--list takes no other arguments: hf-mim convert --list")
        print(format_catalogue())
        return
    arguments = _parser().parse_args(argv)
    transformers.utils.logging.disable_progress_bar()  # saving a model takes about a second
    output = Path(arguments.output_dir)
    check_output(output.expanduser())  # fail before a long download
    overrides = parse_overrides(",".join(arguments.config_overrides))
    for name in ("source", "family", "num_attention_heads"):
        if name in overrides:
            raise ValueError(f"config_overrides: {name} has its own argument (see hf-mim convert --help)")
    entry = _published(arguments)
    address, file = None, arguments.file or arguments.source
    if entry is not None and arguments.file is None:
        address, file = _fetch(entry, arguments)
    if arguments.sha256 is not None:
        check_sha256(file, arguments.sha256)
    family = arguments.family or (entry.family if entry is not None else None)
    converted = convert_checkpoint(file, family, arguments.num_attention_heads, **overrides)
    written = save_converted(converted, output, arguments.native, arguments.which, entry, address, shown_command(argv))

    print(f"read     {file}: {_contents(converted)}")
    for change in converted.dropped:
        print(f"note     {change}")
    for folder, model in written.items():
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        print(f"wrote    {output / folder}: {type(model).__name__}, {millions:.1f} M parameters")
    print("\nto load it:\n" + "\n".join(f"    {line}" for line in _loading_lines(output, written)))


def _published(arguments: argparse.Namespace) -> CatalogueEntry | None:
    """Return the published checkpoint that SOURCE names, or None if SOURCE is a path."""
    source = Path(arguments.source)
    if "://" in arguments.source:
        raise ValueError("SOURCE is a URL: download the file and pass its path, or pass a published checkpoint's name")
    # A folder is not a checkpoint, so it does not shadow a published one of the same name.
    if arguments.source in load_catalogue() and not source.is_file():
        return load_catalogue()[arguments.source]
    if not (source.exists() or source.suffix or len(source.parts) > 1):
        return find_entry(arguments.source)
    for option in ("file", "mirror", "cache_dir", "encoder_only"):
        if getattr(arguments, option):
            raise ValueError(f"--{option} is for published checkpoints (--list), but {source} is a path")
    return None


def _fetch(entry: CatalogueEntry, arguments: argparse.Namespace) -> tuple[str, Path]:
    """Download the file of a published checkpoint unless it is cached, and return its URL and path."""
    if entry.share is not None:
        raise ValueError(
            f"{entry.name} is in a cloud share and cannot be downloaded automatically: open {entry.share}, save the "
            "file, and pass it with --file FILE"
        )
    if arguments.mirror and ("@" in urlsplit(arguments.mirror).netloc or urlsplit(arguments.mirror).query):
        raise ValueError("--mirror contains a user name, password or query, which the card would show: remove it")
    name = entry.encoder_file if arguments.encoder_only else entry.file
    if name is None:
        raise ValueError(f"{entry.name} has only one file: leave out --encoder_only")
    address = (arguments.mirror.rstrip("/") + "/" if arguments.mirror else entry.files) + name
    folder = Path(arguments.cache_dir).expanduser() if arguments.cache_dir else default_cache_dir()
    file = download_file(address, folder / entry.name / Path(name).name)
    return recorded_address(file), file


def shown_command(argv: Sequence[str]) -> str:
    """Format the command for a card, without the paths and options that are specific to one machine."""
    arguments = _parser().parse_args(argv)
    words = ["hf-mim", "convert", Path(arguments.source).name, "OUT"]
    for option in ("family", "which", "num_attention_heads", "sha256"):
        if getattr(arguments, option) is not None:
            words += [f"--{option}", str(getattr(arguments, option))]
    for overrides in arguments.config_overrides:
        words += ["--config_overrides", overrides]
    words += [f"--{flag}" for flag in ("native", "encoder_only") if getattr(arguments, flag)]
    words += ["--file", "FILE"] if arguments.file else []
    return shlex.join(words)


def _contents(converted: ConvertedCheckpoint) -> str:
    networks = "one network" if converted.teacher is None else "student and teacher"
    networks += " with centers" if converted.centers else ""
    return f"{converted.config.model_type}, {networks}; {describe_sizes(converted.model)}"


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
        recipe = method_of_config(written[full].config).recipe
        lines += ["", f"hf-mim pretrain RECIPE --model_name_or_path {output / full} ..."]
        lines += [f"# RECIPE is a recipe of this method and size, such as {recipe}"]
    return lines


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="hf-mim convert",
        description="Convert a checkpoint written by a method's original code. Pickles are read without running "
        "any code in them, and every tensor is accounted for.",
        epilog="The most complete model in the file and its image processor are saved to OUTPUT_DIR. For a full iBOT "
        "checkpoint, teacher/ with the centers is saved too, so that training can continue from it.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a .pth, .pt, .bin or .safetensors file, or the name of a published checkpoint to download",
    )
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="a new or empty folder")
    parser.add_argument("--list", action="store_true", help="list the published checkpoints and exit")
    parser.add_argument("--family", choices=FAMILIES, help="detected from the tensor names by default")
    parser.add_argument(
        "--which", choices=("teacher", "student"), help="save only one network of a full iBOT checkpoint"
    )
    parser.add_argument(
        "--native",
        action="store_true",
        help="save a transformers model, which loads without hf_mim; the full pre-training model goes to pretraining/",
    )
    parser.add_argument(
        "--num_attention_heads", type=positive_count, help="required if no published model has the same width"
    )
    parser.add_argument(
        "--config_overrides",
        action="append",
        default=[],
        metavar="NAME=VALUE,...",
        help="configuration fields to override, such as image_size=[224,448]",
    )
    published = parser.add_argument_group("published checkpoints")
    published.add_argument(
        "--encoder_only",
        action="store_true",
        help="download the smaller file with only the encoder, if the authors publish one (iBOT)",
    )
    published.add_argument("--file", help="path of the checkpoint's file, if already downloaded")
    published.add_argument(
        "--mirror",
        metavar="URL",
        help="download from this address instead of the authors' server, with the same subfolders, as in "
        "URL/vitb_16/checkpoint.pth",
    )
    published.add_argument("--cache_dir", help="folder for downloads; by default hf_mim in HF_HOME")
    published.add_argument("--sha256", help="the expected SHA-256 of the file, in hexadecimal")
    return parser
