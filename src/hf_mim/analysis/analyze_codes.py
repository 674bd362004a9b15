"""
`hf-mim analyze codes TOKENIZER IMAGES...`: draw patches that share a code of a visual tokenizer, and count how often
each code is used.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import BaseImageProcessor

from ..data.sources import random_subset
from ..modeling.modeling_vqkd import VQKDModel
from ..modeling.quantizer_vqkd import code_statistics
from ..utils.command_line import CommandParser, positive_count
from ..utils.files import replaced_file
from ..utils.loading import find_source, load_config, load_model_and_processor
from .codes import encode_images, plot_codes, plot_usage
from .inputs import load_images


def analyze_codes(
    tokenizer: str | Path,
    images: Sequence[str | Path],
    output_dir: str | Path,
    *,
    split: str = "train",
    dataset_config_name: str | None = None,
    image_column_name: str | None = None,
    max_images: int | None = 1000,
    num_codes: int = 32,
    patches_per_code: int = 12,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> dict:
    """
    Draw and count the codes that a VQ-KD tokenizer gives to the patches of images.

    Args:
        tokenizer (`str` or `Path`): Folder or Hub id of a [`VQKDModel`] with its image processor.
        images (`Sequence[str | Path]`): Files, folders and names of datasets ("photo-tiles", ids of Hub datasets) in
            any combination, as [`~hf_mim.data.sources.load_image_dataset`] reads them.
        output_dir (`str` or `Path`): Folder for three files, each written atomically. `codes.png`: a row of patches
            for each of some codes. `usage.png`: how often each code is used. `codes.json`: the returned dictionary.
        split (`str`, defaults to `"train"`): Split of folders and datasets that have splits.
        dataset_config_name, image_column_name (`str`, *optional*): For datasets that need them.
        max_images (`int`, *optional*, defaults to 1000): Use a random subset of this size, always the same one. None
            uses all images.
        num_codes (`int`, defaults to 32): Number of codes in `codes.png`. Three quarters are the most used ones, the
            others are rare.
        patches_per_code (`int`, defaults to 12): Number of patches in a row.
        batch_size (`int`, defaults to 64): Images per forward pass.
        device (`str` or `torch.device`, *optional*): Defaults to the GPU if there is one.
        progress (`bool`, defaults to `True`): Show a progress bar.

    Returns:
        `dict`: `codebook_size`, `images`, `patches`, all of [`code_statistics`], `tokenizer`, `sources`, and
        `counts`, the number of patches of each code.

    Raises:
        ValueError: If the model is not a tokenizer or has no codebook, an image is unreadable, or there are no images.
    """
    if max_images is not None and max_images < 1:
        raise ValueError(f"max_images must be at least 1, not {max_images}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    model, image_processor = _load_tokenizer(tokenizer)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides the method's signature
    dataset = load_images(images, split, dataset_config_name, image_column_name)
    dataset = random_subset(dataset, max_images)

    codes = encode_images(model, dataset, image_processor, batch_size, progress)
    counts = np.bincount(codes.ravel(), minlength=model.config.codebook_size)
    result = {
        "codebook_size": len(counts),
        "images": len(codes),
        "patches": codes.size,
        **code_statistics(torch.from_numpy(counts)),
        "tokenizer": str(tokenizer),
        "sources": [str(source) for source in images],
        "counts": counts.tolist(),
    }
    output_dir = Path(output_dir)
    plot_codes(model, dataset, image_processor, codes, output_dir / "codes.png", num_codes, patches_per_code)
    plot_usage(counts, output_dir / "usage.png")
    with replaced_file(output_dir / "codes.json") as file:
        file.write_text(json.dumps(result) + "\n")
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Run [`analyze_codes`] with command-line arguments and print a summary."""
    arguments = vars(_parser().parse_args(argv))
    result = analyze_codes(arguments.pop("tokenizer"), arguments.pop("images"), **arguments)
    used = result["codebook_size"] - result["dead_codes"]
    print(
        f"{used} of {result['codebook_size']} codes ({100 * result['codebook_usage']:.1f} %) are used by "
        f"{result['patches']} patches of {result['images']} images; perplexity {result['perplexity']:.1f}, "
        f"the most frequent code has {100 * result['majority_code']:.1f} %"
    )
    if result["patches"] < 10 * result["codebook_size"]:
        print("with so few patches, some codes are unused only for lack of images (--max_images)")
    print(f"codes.png, usage.png and codes.json are in {arguments['output_dir']}")


def _parser() -> CommandParser:
    parser = CommandParser(prog="hf-mim analyze codes", description=__doc__)
    parser.add_argument("tokenizer", metavar="TOKENIZER", help="folder or Hub id of a VQ-KD tokenizer")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="files, folders, Hub ids, or photo-tiles")
    parser.add_argument("--output_dir", required=True, help="folder for codes.png, usage.png and codes.json")
    parser.add_argument("--split", default="train", help="split of folders and datasets (default: %(default)s)")
    parser.add_argument("--dataset_config_name", help="configuration of a Hub dataset")
    parser.add_argument("--image_column_name", help="column of the images, where it cannot be guessed")
    parser.add_argument(
        "--max_images",
        type=positive_count,
        default=1000,
        help="use a random subset of this size (default: %(default)s)",
    )
    parser.add_argument(
        "--num_codes", type=positive_count, default=32, help="number of codes to draw (default: %(default)s)"
    )
    parser.add_argument(
        "--patches_per_code",
        type=positive_count,
        default=12,
        help="patches to draw of each code (default: %(default)s)",
    )
    parser.add_argument(
        "--batch_size", type=positive_count, default=64, help="images per forward pass (default: %(default)s)"
    )
    parser.add_argument("--device", help="cpu, cuda, mps, ... (default: cuda if there is one)")
    return parser


def _load_tokenizer(source: str | Path) -> tuple[VQKDModel, BaseImageProcessor]:
    source = find_source(source, "TOKENIZER")
    model_type = load_config(source).model_type
    if model_type != "vqkd":
        raise ValueError(f"{source}: a model of type {model_type} has no codes; give a VQ-KD tokenizer")
    model, image_processor = load_model_and_processor(source, VQKDModel, unused=(), dtype=torch.float32)
    assert isinstance(model, VQKDModel)
    return model, image_processor
