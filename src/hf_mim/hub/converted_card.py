"""The model cards of converted checkpoints: of published ones from the catalogue, of others from what is known."""

import transformers
from huggingface_hub import EvalResult, ModelCardData

from .catalogue import FIGURES, CatalogueEntry
from .run_card import TEMPLATES, tidy


METHODS = {
    "ibot": ("iBOT", "https://arxiv.org/abs/2111.07832"),
    "ibot_swin": ("iBOT", "https://arxiv.org/abs/2111.07832"),
    "beitv2": ("BEiT v2", "https://arxiv.org/abs/2208.06366"),
    "vqkd": ("BEiT v2", "https://arxiv.org/abs/2208.06366"),
    "dbot": ("dBOT", "https://arxiv.org/abs/2209.03917"),
}
IDEAS = {
    "ibot": "A Vision Transformer learns to predict what a moving average of itself sees in the masked patches of an "
    "image and in other views of it.",
    "ibot_swin": "A Swin Transformer learns to predict what a moving average of itself sees in the masked regions of "
    "an image and in other views of it.",
    "beitv2": "A Vision Transformer sees an image with masked patches and learns to predict the codes that a frozen "
    "tokenizer gives them.",
    "vqkd": "It gives every patch of an image a code, from which the features of a frozen teacher can be restored.",
    "dbot": "A Vision Transformer sees a quarter of the patches of an image and learns to predict the features that a "
    "frozen network gives to the others.",
    "dbot_symmetric": "A Vision Transformer sees an image with masked patches and learns to predict the features that "
    "a frozen teacher, which sees all of the image, gives them.",
}
# Measured on the images of ImageNet-1K that are held out for it, of the file itself.
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
) -> str:
    """
    The text of `README.md` for a converted checkpoint.

    Args:
        name (`str`): Name of the model, or the repository.
        family (`str`): Family of the converter.
        model_class (`str`): Class of the model that is loaded from the folder: one of ours or of transformers.
        hidden_size (`int`): Width of its features.
        entry (`CatalogueEntry`, *optional*): What is known of a published checkpoint.
        source (`str`, *optional*): Name of the file, where it is not a published one.
        address (`str`, *optional*): Where the file was fetched.
        network (`str`, *optional*): Which network of the file is loaded.
        command (`str`, *optional*): The command that converts it.
        versions (`dict[str, str]`, *optional*): Of the packages that converted it.
    """
    native = hasattr(transformers, model_class)
    kind, auto_class = _kind(model_class)
    pipeline = {"classifier": "image-classification", "encoder": "image-feature-extraction"}.get(kind)
    symmetric = family == "dbot" and model_class.startswith("Beit") and (entry is None or entry.masks == "block")
    method, paper = METHODS[family]
    reported = {} if entry is None else entry.reported
    # In the metadata stands only what is true of the network that is loaded.
    own = [figure for figure in reported if figure in OWN_FIGURES and network == entry.network]
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
                source_url=entry.page,
            )
            for figure in own
        ]
        or None,
    )
    text = TEMPLATES.get_template("converted.md").render(
        card_data=data.to_yaml(),
        name=name,
        entry=entry,
        method=method,
        paper=paper,
        source=source,
        address=address,
        network=network,
        # Figures of the network that is not here.
        other=entry is not None and entry.network is not None and entry.network not in (network or entry.network),
        command=command,
        versions=versions or {},
        kind=kind,
        native=native,
        auto_class=auto_class,
        idea=IDEAS["dbot_symmetric" if symmetric else family],
        usage=_usage(kind, family, model_class, hidden_size, native),
        loading=_loading(kind, family, model_class, native),
        intended=_intended(kind, name),
        reported={_long_name(figure): f"{value:.1f}" for figure, value in reported.items()},
        citation=f"citation_{ {'iBOT': 'ibot', 'BEiT v2': 'beitv2', 'dBOT': 'dbot'}[method] }.md",
    )
    return tidy(text)


def _kind(model_class: str) -> tuple[str, str]:
    """What a class is, and the Auto class that loads it."""
    if model_class == "VQKDModel":
        return "tokenizer", "AutoModel"
    if model_class.endswith("ForImageClassification"):
        return "classifier", "AutoModelForImageClassification"
    if model_class.endswith("ForPreTraining"):
        return "pre-training model", "AutoModelForPreTraining"
    return "encoder", "AutoModel"


def _usage(kind: str, family: str, model_class: str, width: int, native: bool) -> list[str]:
    if kind == "tokenizer":
        return [
            'codes = model.encode(**processor(image, return_tensors="pt"))  # [1, patches]',
            "features = model.decode(codes)  # of every patch, in the space of the teacher",
        ]
    if kind == "classifier":
        return [
            'logits = model(**processor(image, return_tensors="pt")).logits',
            "logits.argmax(-1)  # number of the class, in the order of the training data",
        ]
    if kind == "pre-training model":
        return [f"encoder = model.base_model  # features of {width} numbers"]
    lines = ['outputs = model(**processor(image, return_tensors="pt"))']
    if family == "ibot_swin":
        regions = "regions" if native else "1 + regions"
        return [
            *lines,
            f"outputs.pooler_output  # [1, {width}]: one feature for the image, the mean of its regions",
            f"outputs.last_hidden_state  # [1, {regions}, {width}]",
        ]
    if family == "dbot":
        lines.append(f"outputs.last_hidden_state[:, 1:].mean(1)  # [1, {width}]: one feature for the image")
    else:
        lines.append(f"outputs.pooler_output  # [1, {width}]: one feature for the image, the CLS token")
    return [*lines, f"outputs.last_hidden_state  # [1, 1 + patches, {width}]: CLS token and patches"]


def _loading(kind: str, family: str, model_class: str, native: bool) -> str:
    if kind == "tokenizer":
        return "Its class comes from the package `hf_mim`; transformers has none for tokenizers of images."
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
            "an encoder to predict these codes.\nThey are no compressed images, from which pixels could be restored."
        )
    if kind == "classifier":
        return (
            "It is meant for classification into the classes that it was fine-tuned on, and as the start of further\n"
            "fine-tuning."
        )
    if kind == "pre-training model":
        return f"It is meant for going on with the pre-training: `hf-mim pretrain RECIPE --model_name_or_path {name}`."
    return (
        "The features are meant for classification by neighbours or with a linear layer, for retrieval, and as the\n"
        "start of fine-tuning for classification, detection or segmentation."
    )


def _long_name(figure: str) -> str:
    """A figure with the data that it is of."""
    if figure == "codes_used":
        return "codes of the tokenizer that are in use"
    if figure in ("coco_box_ap", "ade20k_miou"):
        return f"{FIGURES[figure]}, fine-tuned"
    return f"ImageNet-1K {FIGURES[figure]}" if figure in ("top1", "top5") else f"ImageNet-1K top-1, {FIGURES[figure]}"
