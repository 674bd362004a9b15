"""`hf-mim convert`: a checkpoint of an original code becomes a folder."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
import yaml
from transformers import PreTrainedModel

from .convert import FAMILIES, ConvertedCheckpoint, check_output, convert_checkpoint, save_converted


def main(argv: Sequence[str] | None = None):
    """
    Convert a checkpoint, write the folder, and print what was read, left behind and written, and how to load it.

    Raises:
        ValueError, OSError: As [`convert_checkpoint`] and [`save_converted`]; nothing is written then.
    """
    arguments = _parser().parse_args(argv)
    transformers.utils.logging.disable_progress_bar()  # one for each model, which is written in a second
    output = Path(arguments.output_dir)
    check_output(output.expanduser())  # before minutes of work
    overrides = parse_overrides(arguments.config_overrides)
    converted = convert_checkpoint(arguments.source, arguments.family, arguments.num_attention_heads, **overrides)
    written = save_converted(converted, output, native=arguments.native, which=arguments.which)

    print(f"read     {arguments.source}: {_sizes(converted)}")
    for change in converted.dropped:
        print(f"changed  {change}")
    for folder, model in written.items():
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        print(f"wrote    {output / folder}: {type(model).__name__}, {millions:.1f} M parameters")
    print("\nto load it:\n" + "\n".join(f"    {line}" for line in _loading_lines(output, written)))


def parse_overrides(text: str | None) -> dict[str, Any]:
    """
    `"image_size=[224,448],drop_path_rate=0.2"` as a dict with YAML values.

    Raises:
        ValueError: For an entry that is not `name=value`.
    """
    overrides = {}
    for entry in filter(None, re.split(r",(?![^\[]*\])", text or "")):
        name, separator, value = entry.strip().partition("=")
        if not (name and separator):
            raise ValueError(f"config_overrides must be name=value,name=value, got {entry!r}")
        parsed = yaml.safe_load(value)
        # YAML takes 1e-6 for text.
        is_number = isinstance(parsed, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", parsed, re.IGNORECASE)
        overrides[name] = float(parsed) if is_number else parsed
    return overrides


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
    parser.add_argument("source", metavar="SOURCE", help="a .pth, .pt, .bin or .safetensors file")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="a new or empty folder")
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
        metavar="NAME=VALUE,...",
        help="fields of the configuration, such as image_size=[224,448]",
    )
    return parser
