"""
`hf-mim analyze distance MODEL IMAGES...` and `hf-mim analyze svd MODEL IMAGES...`: how far the heads of encoders look,
and how few directions their patch features fill, layer by layer.
"""

import argparse
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
from ..utils.files import replaced_file
from .encoders import load_encoder, patch_size
from .inputs import load_images, process_images
from .properties import attention_distances, even_attention_distance, singular_value_shares
from .property_plots import plot_distances, plot_shares


PURPOSES = {
    "distance": "mean attention distance of every head and layer of one or several encoders",
    "svd": "share of the largest singular values of the patch features, layer by layer, of one or several encoders",
}


Measure = Callable[[PreTrainedModel, torch.Tensor], torch.Tensor]


@dataclass
class _Viewer:
    """An encoder and the way in which it sees images."""

    name: str
    source: str
    encoder: PreTrainedModel
    image_processor: BaseImageProcessor
    image_size: tuple[int, int] | None = None

    def see(self, dataset: datasets.Dataset, rows: range) -> torch.Tensor:
        """Normalised images `[len(rows), C, H, W]`, of the size of the first image that was ever seen."""
        channels = getattr(self.encoder.config, "num_channels", 3)
        images = [process_images(dataset, [row], self.image_processor, channels) for row in rows]
        for image in images:
            height, width = image.shape[-2:]
            self.image_size = self.image_size or (height, width)
            if (height, width) != self.image_size:
                raise ValueError(
                    f"the image processor of {self.source} gives images of {self.image_size[0]}x{self.image_size[1]} "
                    f"and of {height}x{width} pixels; it has to bring all to one size"
                )
        return torch.cat(images)

    def describe(self, dataset: datasets.Dataset, measure: Measure) -> dict:
        """What is known after the first image, which the model has to pass."""
        pixel_values = self.see(dataset, range(1))
        try:
            measure(self.encoder, pixel_values)
        except ValueError as error:
            raise ValueError(f"{self.source}: {error}") from error
        return {
            "name": self.name,
            "model": self.source,
            "image_size": [*self.image_size],
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
        """The mean of the measure over all images; the encoder is on the device for that time alone."""
        self.encoder.to(device)
        starts = range(0, len(dataset), batch_size)
        parts = []
        for start in tqdm(starts, desc=self.name, unit="batch", disable=not progress, leave=False):
            rows = range(start, min(start + batch_size, len(dataset)))
            parts.append(measure(self.encoder, self.see(dataset, rows)))
        self.encoder.to("cpu")
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
    """One property of the blocks of one or several encoders, as a picture and as figures.

    Each model sees the images as its own image processor makes them. The figures are means over the images; see
    `hf_mim.analysis.properties` for what they are and how the original averages.

    Args:
        analysis: "distance" or "svd".
        models: folders or Hub ids of plain ViTs with their image processors; of CLIP and the like the image tower is
            taken, of a VQ-KD tokenizer the encoder.
        images: files, folders, or names of data sets, in any mixture, as `hf_mim.analysis.inputs.load_images` reads.
        output_dir: folder for two files, each written whole or not at all: `distance.png` or `svd.png`, and
            `distance.json` or `svd.json` with what is returned.
        top_k: K, the number of singular values of "svd".
        split, dataset_config_name, image_column_name: for folders and data sets that need them.
        max_images: use a random subset of this size, always the same one; None uses all.
        batch_size: images per forward pass; the figures do not depend on it.
        device: by default the GPU if there is one.

    Returns:
        `images` (their number), `sources`, and `models`, one dictionary for each: its `name` in the picture, the
        `model` as given, `image_size` and `patch_size` `[height, width]` in pixels, and, with L layers and h heads,
        for "distance": `distance` `[L][h]`, `mean_distance` `[L]` and `even_distance`, that of attention which is the
        same for all tokens, in pixels of what the model sees;
        for "svd": `shares` `[L][K]` in (0, 1], of the 1, 2, ... K largest singular values.

    Raises:
        ValueError: for an unknown analysis, what is no plain ViT, a model that is given twice, an unreadable image,
            no images, or a `top_k` that is too large.
        OSError: for a file that does not exist.
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
    # A model that is no plain ViT shows at the first image, not after those before it have seen all.
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
    """Names for the legend: as few of the last components of the paths as tell the models apart.

    Raises:
        ValueError: for no model, or one that is given twice.
    """
    paths = [(Path(model).resolve() if Path(model).is_dir() else Path(model)).parts for model in models]
    if not paths or len(set(paths)) < len(paths):
        raise ValueError(f"there has to be at least one model, and none of them twice: {[*map(str, models)]}")
    for count in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-count:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def main(argv: Sequence[str] | None = None) -> None:
    """Run `analyze_properties` with the arguments of a command line, the analysis first, and print the figures."""
    arguments = vars(_parser().parse_args(argv))
    models = [arguments.pop("model"), *arguments.pop("compare_with")]
    analysis, output_dir = arguments.pop("analysis"), arguments.pop("output_dir")
    result = analyze_properties(analysis, models, arguments.pop("images"), output_dir, **arguments)
    for entry in result["models"]:
        if analysis == "distance":
            first, *_, last = 2 * entry["mean_distance"]
            print(
                f"{entry['name']}: mean attention distance {first:.1f} pixels in the first layer, {last:.1f} in the "
                f"last; even attention has {entry['even_distance']:.1f}"
            )
        else:
            first, *_, last = 2 * [100 * shares[-1] for shares in entry["shares"]]
            print(
                f"{entry['name']}: the {len(entry['shares'][0])} largest singular values have {first:.1f} % in the "
                f"first layer, {last:.1f} % in the last"
            )
    print(f"means over {result['images']} images; {analysis}.png and {analysis}.json are in {output_dir}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-mim analyze", description=__doc__, allow_abbrev=False)
    analyses = parser.add_subparsers(dest="analysis", required=True)
    for analysis, purpose in PURPOSES.items():
        command = analyses.add_parser(analysis, help=purpose, description=purpose, allow_abbrev=False)
        command.add_argument("model", metavar="MODEL", help="folder or Hub id of a ViT with its image processor")
        command.add_argument("images", metavar="IMAGES", nargs="+", help="files, folders, Hub ids, or photo-tiles")
        command.add_argument(
            "--compare_with", metavar="MODEL", nargs="+", default=[], help="more models for the same picture"
        )
        command.add_argument("--output_dir", required=True, help=f"folder for {analysis}.png and {analysis}.json")
        if analysis == "svd":
            command.add_argument("--top_k", type=int, default=5, help="singular values (default: %(default)s)")
        command.add_argument("--split", default="train", help="of folders and data sets (default: %(default)s)")
        command.add_argument("--dataset_config_name", help="configuration of a Hub data set")
        command.add_argument("--image_column_name", help="column of the images, where it has to be told")
        command.add_argument(
            "--max_images", type=int, default=500, help="use a random subset of this size (default: %(default)s)"
        )
        command.add_argument("--batch_size", type=int, default=32, help="images per forward pass (default: 32)")
        command.add_argument("--device", help="cpu, cuda, mps, ... (default: cuda if there is one)")
    return parser
