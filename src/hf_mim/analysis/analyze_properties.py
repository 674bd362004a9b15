"""
`hf-mim analyze distance MODEL IMAGES...` and `hf-mim analyze svd MODEL IMAGES...`: measure how far the heads of
encoders look, and how few directions their patch features fill, layer by layer.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, PreTrainedModel

from ..data.sources import random_subset
from ..utils.command_line import CommandParser, positive_count
from ..utils.files import replaced_file
from .encoders import load_encoder, patch_size
from .inputs import load_images, process_images
from .properties import attention_distances, even_attention_distance, singular_value_shares
from .property_plots import plot_distances, plot_shares


PURPOSES = {
    "distance": "Measure the mean attention distance of every head and layer of the encoders.",
    "svd": "Measure the share of the largest singular values of patch features in every layer of the encoders.",
}


Measure = Callable[[PreTrainedModel, torch.Tensor], torch.Tensor]


@dataclass
class _Viewer:
    """An encoder with its image processor, and the image size that the processor produces."""

    name: str
    source: str
    encoder: PreTrainedModel
    image_processor: BaseImageProcessor
    image_size: tuple[int, int] | None = None

    def see(self, dataset: datasets.Dataset, rows: range) -> torch.Tensor:
        """Return normalized images `[len(rows), C, H, W]`; all must have the size of the first one."""
        channels = getattr(self.encoder.config, "num_channels", 3)
        images = [process_images(dataset, [row], self.image_processor, channels) for row in rows]
        for image in images:
            height, width = image.shape[-2:]
            self.image_size = self.image_size or (height, width)
            if (height, width) != self.image_size:
                raise ValueError(
                    f"the image processor of {self.source} gives images of {self.image_size[0]}x{self.image_size[1]} "
                    f"and of {height}x{width} pixels; it must resize all images to one size"
                )
        return torch.cat(images)

    def describe(self, dataset: datasets.Dataset, measure: Measure) -> dict:
        """Run the measure on the first image, which fails if the model does not fit, and return the known facts."""
        pixel_values = self.see(dataset, range(1))
        height, width = pixel_values.shape[-2:]
        try:
            measure(self.encoder, pixel_values)
        except ValueError as error:
            raise ValueError(f"{self.source}: {error}") from error
        return {
            "name": self.name,
            "model": self.source,
            "image_size": [height, width],
            "patch_size": [*patch_size(self.encoder)],
        }

    def mean(
        self,
        dataset: datasets.Dataset,
        measure: Measure,
        batch_size: int,
        device: str | torch.device,
        progress: bool,
    ) -> np.ndarray:
        """Return the mean of the measure over all images; the encoder is on the device only meanwhile."""
        self.encoder.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides the method's signature
        starts = range(0, len(dataset), batch_size)
        parts = []
        for start in tqdm(starts, desc=self.name, unit="batch", disable=None if progress else True, leave=False):
            rows = range(start, min(start + batch_size, len(dataset)))
            parts.append(measure(self.encoder, self.see(dataset, rows)))
        self.encoder.cpu()
        return torch.cat(parts).mean(dim=0).numpy()


def analyze_properties(
    analysis: str,
    models: Sequence[str | Path],
    images: Sequence[str | Path],
    output_dir: str | Path,
    *,
    top_k: int = 5,
    split: str = "train",
    dataset_config_name: str | None = None,
    image_column_name: str | None = None,
    max_images: int | None = 500,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> dict:
    """
    Measure one property of the blocks of one or several encoders, and write it as a plot and as JSON.

    Each model gets the images as its own image processor makes them. The values are means over the images; see
    [`hf_mim.analysis.properties`] for their definitions and for how the original averages.

    Args:
        analysis (`str`): `"distance"` or `"svd"`.
        models (`Sequence[str | Path]`): Folders or Hub ids of plain ViTs with their image processors. For CLIP and
            similar models the image tower is used, for a VQ-KD tokenizer the encoder.
        images (`Sequence[str | Path]`): Files, folders and names of datasets in any combination, as
            [`~hf_mim.analysis.inputs.load_images`] reads them.
        output_dir (`str` or `Path`): Folder for two files, each written atomically: `distance.png` or `svd.png`, and
            `distance.json` or `svd.json` with the returned dictionary.
        top_k (`int`, defaults to 5): K, the number of singular values of `"svd"`.
        split, dataset_config_name, image_column_name (`str`, *optional*): For folders and datasets that need them.
        max_images (`int`, *optional*, defaults to 500): Use a random subset of this size, always the same one. None
            uses all images.
        batch_size (`int`, defaults to 32): Images per forward pass; the results do not depend on it.
        device (`str` or `torch.device`, *optional*): Defaults to the GPU if there is one.
        progress (`bool`, defaults to `True`): Show a progress bar.

    Returns:
        `dict`: `images` (their number), `sources`, and `models`, one dictionary for each: its `name` in the plot, the
        `model` as given, `image_size` and `patch_size` `[height, width]` in pixels, and, with L layers and h heads,
        for `"distance"`: `distance` `[L][h]`, `mean_distance` `[L]` and `even_distance`, the distance under uniform
        attention, in pixels of the processed image;
        for `"svd"`: `shares` `[L][K]` in (0, 1], of the 1, 2, ... K largest singular values.

    Raises:
        ValueError: For an unknown analysis, a model that is not a plain ViT or is given twice, an unreadable image,
            no images, or a `top_k` that is too large.
        OSError: For a file that does not exist.
    """
    if analysis not in PURPOSES:
        raise ValueError(f"analysis must be one of {', '.join(PURPOSES)}, not {analysis!r}")
    for option, value in (("max_images", max_images), ("batch_size", batch_size), ("top_k", top_k)):
        if value is not None and value < 1:
            raise ValueError(f"{option} must be at least 1, not {value}")
    measure = attention_distances if analysis == "distance" else partial(singular_value_shares, top_k=top_k)
    names = short_names(models)
    viewers = [_Viewer(name, str(model), *load_encoder(model)) for name, model in zip(names, models, strict=True)]
    dataset = random_subset(load_images(images, split, dataset_config_name, image_column_name), max_images)
    # A model that is not a plain ViT fails at the first image, not after the other models have processed all images.
    entries = [viewer.describe(dataset, measure) for viewer in viewers]

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    means = {viewer.name: viewer.mean(dataset, measure, batch_size, device, progress) for viewer in viewers}
    for viewer, entry, values in zip(viewers, entries, means.values(), strict=True):
        if analysis == "distance":
            entry["even_distance"] = even_attention_distance(viewer.encoder, viewer.see(dataset, range(1)))
            entry["mean_distance"] = values.mean(axis=1).tolist()
            entry["distance"] = values.tolist()
        else:
            entry["shares"] = values.tolist()

    output_dir = Path(output_dir)
    picture = output_dir / f"{analysis}.png"
    if analysis == "distance":
        plot_distances(means, {entry["name"]: entry["even_distance"] for entry in entries}, picture)
    else:
        plot_shares(means, picture)
    result = {"images": len(dataset), "sources": [str(source) for source in images], "models": entries}
    with replaced_file(output_dir / f"{analysis}.json") as file:
        file.write_text(json.dumps(result) + "\n")
    return result


def short_names(models: Sequence[str | Path]) -> list[str]:
    """
    Return names for the legend: as few trailing components of the paths as distinguish the models.

    Raises:
        ValueError: For no model, or one that is given twice.
    """
    paths = [(Path(model).resolve() if Path(model).is_dir() else Path(model)).parts for model in models]
    if not paths or len(set(paths)) < len(paths):
        raise ValueError(f"give at least one model, and none of them twice, got {[*map(str, models)]}")
    for count in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-count:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def main(argv: Sequence[str] | None = None) -> None:
    """Run [`analyze_properties`] with command-line arguments, the analysis first, and print a summary."""
    arguments = vars(_parser().parse_args(argv))
    models = [arguments.pop("model"), *arguments.pop("compare_with")]
    analysis, output_dir = arguments.pop("analysis"), arguments.pop("output_dir")
    result = analyze_properties(analysis, models, arguments.pop("images"), output_dir, **arguments)
    for entry in result["models"]:
        if analysis == "distance":
            first, *_, last = 2 * entry["mean_distance"]
            print(
                f"{entry['name']}: mean attention distance {first:.1f} pixels in the first layer, {last:.1f} in the "
                f"last; uniform attention has {entry['even_distance']:.1f}"
            )
        else:
            first, *_, last = 2 * [100 * shares[-1] for shares in entry["shares"]]
            print(
                f"{entry['name']}: the {len(entry['shares'][0])} largest singular values have {first:.1f} % in the "
                f"first layer, {last:.1f} % in the last"
            )
    print(f"means over {result['images']} images; {analysis}.png and {analysis}.json are in {output_dir}")


def _parser() -> CommandParser:
    parser = CommandParser(prog="hf-mim analyze", description=__doc__)
    analyses = parser.add_subparsers(dest="analysis", required=True)
    for analysis, purpose in PURPOSES.items():
        command = analyses.add_parser(analysis, help=purpose, description=purpose)
        command.add_argument("model", metavar="MODEL", help="folder or Hub id of a ViT with its image processor")
        command.add_argument("images", metavar="IMAGES", nargs="+", help="files, folders, Hub ids, or photo-tiles")
        command.add_argument(
            "--compare_with", metavar="MODEL", nargs="+", default=[], help="more models for the same plot"
        )
        command.add_argument("--output_dir", required=True, help=f"folder for {analysis}.png and {analysis}.json")
        if analysis == "svd":
            command.add_argument(
                "--top_k", type=positive_count, default=5, help="number of singular values (default: 5)"
            )
        command.add_argument("--split", default="train", help="split of folders and datasets (default: %(default)s)")
        command.add_argument("--dataset_config_name", help="configuration of a Hub dataset")
        command.add_argument("--image_column_name", help="column of the images, where it cannot be guessed")
        command.add_argument(
            "--max_images",
            type=positive_count,
            default=500,
            help="use a random subset of this size (default: %(default)s)",
        )
        command.add_argument(
            "--batch_size", type=positive_count, default=32, help="images per forward pass (default: 32)"
        )
        command.add_argument("--device", help="cpu, cuda, mps, ... (default: cuda if there is one)")
    return parser
