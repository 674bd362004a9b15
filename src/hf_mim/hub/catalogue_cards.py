"""Write a model card for every published checkpoint: `python -m hf_mim.hub.catalogue_cards FOLDER`."""

import sys
from pathlib import Path

from ..modeling.configuration_beitv2 import Beitv2Config
from ..modeling.configuration_dbot import DBotConfig
from ..modeling.configuration_ibot_swin import IBotSwinConfig
from ..modeling.configuration_vqkd import VQKDConfig
from ..utils.files import replaced_file
from .catalogue import ARCHITECTURES, CatalogueEntry, load_catalogue
from .convert.command import shown_command
from .converted_card import build_converted_card


def main(argv: list[str]):
    """Write `NAME.md` for every entry to the folder, and delete the cards of removed entries."""
    if len(argv) != 1 or argv[0].startswith("-"):
        raise SystemExit("usage: python -m hf_mim.hub.catalogue_cards FOLDER")
    folder, catalogue = Path(argv[0]), load_catalogue()
    for name, entry in catalogue.items():
        with replaced_file(folder / f"{name}.md") as file:
            file.write_text(catalogue_card(entry), encoding="utf-8")
    for file in folder.glob("*.md"):
        if file.stem not in catalogue:
            file.unlink()


def catalogue_card(entry: CatalogueEntry) -> str:
    """Build the card of a published checkpoint, converted with `--native` if transformers has an equivalent model."""
    model_class = loaded_class(entry)
    native = model_class not in ("VQKDModel", "IBotSwinModel")
    options = ["--native"] if native else ["--encoder_only"] if entry.encoder_url is not None else []
    if entry.network == "student":
        options += ["--which", "student"]
    if entry.share is not None:
        options += ["--file", "FILE"]
    return build_converted_card(
        entry.name,
        entry.family,
        model_class,
        ARCHITECTURES[entry.architecture.split("/")[0]][0],
        entry,
        address=entry.url if native or entry.encoder_url is None else entry.encoder_url,
        network=entry.network,
        command=shown_command([entry.name, "OUT", *options]),
    )


def loaded_class(entry: CatalogueEntry) -> str:
    """Return the class of an entry's model: native, or ours if transformers has no equivalent."""
    if entry.family == VQKDConfig.model_type:
        return "VQKDModel"
    if entry.family == IBotSwinConfig.model_type:
        # With windows of 14, the last stage (7 x 7) is smaller than a window, which transformers handles differently.
        return "SwinModel" if entry.architecture == "Swin-T/7" else "IBotSwinModel"
    if entry.classes is not None:
        # Fine-tuned with mean pooling of the patches, which transformers' ViT does not support.
        return "BeitForImageClassification"
    # dBOT with CLIP as its teacher uses the BEiT architecture.
    is_symmetric = entry.family == DBotConfig.model_type and entry.teacher is not None
    return "BeitModel" if entry.family == Beitv2Config.model_type or is_symmetric else "ViTModel"


if __name__ == "__main__":
    main(sys.argv[1:])
