"""Model cards of converted checkpoints, with the facts from the catalogue if they are published ones."""

import transformers
from huggingface_hub import EvalResult, ModelCardData

from ..methods import Method, find_method, method_of_converted
from ..modeling.configuration_beitv2 import Beitv2Config
from .catalogue import FIGURES, CatalogueEntry
from .run_card import TEMPLATES, tidy


# Results of the file itself, measured on ImageNet-1K's validation images.
OWN_FIGURES = ("knn", "linear", "top1", "top5")
IMAGENET = "ILSVRC/imagenet-1k"


def build_converted_card(
    name: str,
    family: str,
    model_class: str,
    hidden_size: int,
    entry: CatalogueEntry | None = None,
    source: str | None = None,
    address: str | None = None,
    network: str | None = None,
    command: str | None = None,
    versions: dict[str, str] | None = None,
    location: str | None = None,
) -> str:
    """
    Return the text of `README.md` for a converted checkpoint.

    Args:
        name (`str`): Name of the model, or the repository.
        family (`str`): Family of the converter.
        model_class (`str`): Class of the model in the folder, one of ours or of transformers.
        hidden_size (`int`): Width of its features.
        entry (`CatalogueEntry`, *optional*): Catalogue entry of a published checkpoint.
        source (`str`, *optional*): Name of the file, if it is not a published one.
        address (`str`, *optional*): URL from which the file was downloaded.
        network (`str`, *optional*): Which network of the file is loaded.
        command (`str`, *optional*): The command that converts it.
        versions (`dict[str, str]`, *optional*): Versions of the packages that converted it.
        location (`str`, *optional*): Folder that the code in the card loads. Defaults to the name.
    """
    native = hasattr(transformers, model_class)
    kind, auto_class = _kind(model_class)
    pipeline = {"classifier": "image-classification", "encoder": "image-feature-extraction"}.get(kind)
    is_beit = model_class.startswith("Beit") and (entry is None or entry.masks == "block")
    method = method_of_converted(family, Beitv2Config.model_type) if is_beit else find_method(family)
    reported = {} if entry is None else entry.reported
    # The metadata get only the results of the network that is loaded.
    own = (
        [] if entry is None else [figure for figure in reported if figure in OWN_FIGURES and network == entry.network]
    )
    data = ModelCardData(
        license=None if entry is None else entry.license,
        library_name="transformers" if native else "hf_mim",
        pipeline_tag=pipeline if native else None,
        tags=["hf_mim", family, "masked-image-modeling", "self-supervised-learning"],
        datasets=[IMAGENET] if entry is not None and entry.data == "ImageNet-1K" else None,
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=IMAGENET,
                dataset_name="ImageNet-1K",
                dataset_split="validation",
                metric_type="accuracy",
                metric_name=FIGURES[figure],
                metric_value=reported[figure],
                source_name="reported by the authors",
                source_url=None if entry is None else entry.page,
            )
            for figure in own
        ]
        or None,
    )
    text = TEMPLATES.get_template(f"{method.name}.md").render(
        layout="converted.md",
        card_data=data.to_yaml(),
        name=name,
        location=location or name,
        entry=entry,
        method=method,
        source=source,
        address=address,
        network=network,
        # The reported results belong to the other network.
        other=entry is not None and entry.network is not None and entry.network not in (network or entry.network),
        command=command,
        versions=versions or {},
        kind=kind,
        native=native,
        auto_class=auto_class,
        usage=_usage(kind, method, model_class, hidden_size, native),
        loading=_loading(kind, model_class, native),
        intended=_intended(kind, location or name),
        reported={_long_name(figure): f"{value:.1f}" for figure, value in reported.items()},
    )
    return tidy(text)


def _kind(model_class: str) -> tuple[str, str]:
    """Return the kind of a model and the Auto class that loads it."""
    if model_class == "VQKDModel":
        return "tokenizer", "AutoModel"
    if model_class.endswith("ForImageClassification"):
        return "classifier", "AutoModelForImageClassification"
    if model_class.endswith("ForPreTraining"):
        return "pre-training model", "AutoModelForPreTraining"
    return "encoder", "AutoModel"


def _usage(kind: str, method: Method, model_class: str, width: int, native: bool) -> list[str]:
    if kind == "tokenizer":
        return [
            'codes = model.encode(**processor(image, return_tensors="pt"))  # [1, patches]',
            "features = model.decode(codes)  # of every patch, in the space of the teacher",
        ]
    if kind == "classifier":
        return [
            'logits = model(**processor(image, return_tensors="pt")).logits',
            "logits.argmax(-1)  # index of the class, in the order of the training data",
        ]
    if kind == "pre-training model":
        return [f"encoder = model.base_model  # features of {width} numbers"]
    lines = ['outputs = model(**processor(image, return_tensors="pt"))']
    if "Swin" in model_class:
        regions = "regions" if native else "1 + regions"
        return [
            *lines,
            f"outputs.pooler_output  # [1, {width}]: one feature for the image, the mean of its regions",
            f"outputs.last_hidden_state  # [1, {regions}, {width}]",
        ]
    if method.pools_patches:
        lines.append(f"outputs.last_hidden_state[:, 1:].mean(1)  # [1, {width}]: one feature for the image")
    else:
        lines.append(f"outputs.pooler_output  # [1, {width}]: one feature for the image, the CLS token")
    return [*lines, f"outputs.last_hidden_state  # [1, 1 + patches, {width}]: CLS token and patches"]


def _loading(kind: str, model_class: str, native: bool) -> str:
    if kind == "tokenizer":
        return "Its class comes from the package `hf_mim`; transformers has no class for image tokenizers."
    if not native:
        return "Its class comes from the package `hf_mim`."
    plain = next(name for name in ("ViT", "Beit", "Swin") if model_class.startswith(name))
    resizing = {
        "ViT": "For images of another size pass `interpolate_pos_encoding=True`; transformers then\n"
        "interpolates the position table differently from the original code and from `hf_mim`.",
        "Beit": "At images of another size transformers resizes the position tables\n"
        "differently from the original code and from `hf_mim`.",
        "Swin": "At images of another size transformers fits the windows to the last stages,\n"
        "which the original code and `hf_mim` do not.",
    }[plain]
    return f"This is a plain {'BEiT' if plain == 'Beit' else plain} of transformers. {resizing}"


def _intended(kind: str, name: str) -> str:
    if kind == "tokenizer":
        return (
            f"`hf-mim pretrain RECIPE --tokenizer_name_or_path {name}`, with a recipe such as `beitv2-vitb16`, trains "
            "an encoder to predict these codes.\nThey are not compressed images: pixels cannot be restored from them."
        )
    if kind == "classifier":
        return (
            "It is meant for classification into the classes that it was fine-tuned on, and as the start of further\n"
            "fine-tuning."
        )
    if kind == "pre-training model":
        return f"It is meant for continued pre-training: `hf-mim pretrain RECIPE --model_name_or_path {name}`."
    return (
        "The features are meant for classification by neighbors or with a linear layer, for retrieval, and as the\n"
        "start of fine-tuning for classification, detection or segmentation."
    )


def _long_name(figure: str) -> str:
    """Return the name of a result together with its dataset."""
    if figure == "codes_used":
        return "codes of the tokenizer that are in use"
    if figure in ("coco_box_ap", "ade20k_miou"):
        return f"{FIGURES[figure]}, fine-tuned"
    return f"ImageNet-1K {FIGURES[figure]}" if figure in ("top1", "top5") else f"ImageNet-1K top-1, {FIGURES[figure]}"
