"""`hf-mim convert`: a checkpoint of an original code becomes a folder."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import transformers
from transformers import PreTrainedModel

from ...methods import FAMILIES, method_of_config
from ...utils.config_overrides import parse_overrides
from ..catalogue import CatalogueEntry, describe_sizes, find_entry, format_catalogue, load_catalogue
from ..download import check_sha256, default_cache_dir, download_file, recorded_address
from .checkpoint import ConvertedCheckpoint, check_output, convert_checkpoint, save_converted


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
    written = save_converted(converted, output, arguments.native, arguments.which, entry, address, shown_command(argv))

    print(f"read     {file}: {_contents(converted)}")
    for change in converted.dropped:
        print(f"note     {change}")
    for folder, model in written.items():
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        print(f"wrote    {output / folder}: {type(model).__name__}, {millions:.1f} M parameters")
    print("\nto load it:\n" + "\n".join(f"    {line}" for line in _loading_lines(output, written)))


def _published(arguments: argparse.Namespace) -> CatalogueEntry | None:
    """The published checkpoint that SOURCE names; None if it is a path."""
    source = Path(arguments.source)
    if "://" in arguments.source:
        raise ValueError("SOURCE is an address: fetch the file and give its path, or take a published one by its name")
    # A folder is no checkpoint, and cannot hide one.
    if arguments.source in load_catalogue() and not source.is_file():
        return load_catalogue()[arguments.source]
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
    if arguments.mirror and ("@" in urlsplit(arguments.mirror).netloc or urlsplit(arguments.mirror).query):
        raise ValueError("--mirror has a user name, password or query in it, which the card would show: leave it out")
    name = entry.encoder_file if arguments.encoder_only else entry.file
    if name is None:
        raise ValueError(f"{entry.name} has one file only: leave out --encoder_only")
    address = (arguments.mirror.rstrip("/") + "/" if arguments.mirror else entry.files) + name
    folder = Path(arguments.cache_dir).expanduser() if arguments.cache_dir else default_cache_dir()
    file = download_file(address, folder / entry.name / Path(name).name)
    return recorded_address(file), file


def shown_command(argv: Sequence[str]) -> str:
    """The command with these arguments, as a card shows it: without what is of one machine alone."""
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
    networks += " with centres" if converted.centers else ""
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
        lines += [f"# RECIPE is one of this method and size, such as {recipe}"]
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
    parser.add_argument("--family", choices=FAMILIES, help="found from the names of the tensors when not given")
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
        "--mirror",
        metavar="URL",
        help="take the file from this address instead of the authors', with the folder in which they have it, as in "
        "URL/vitb_16/checkpoint.pth",
    )
    published.add_argument("--cache_dir", help="where downloads are kept; by default the folder hf_mim in HF_HOME")
    published.add_argument("--sha256", help="the SHA-256 that the file must have, in hexadecimal")
    return parser
