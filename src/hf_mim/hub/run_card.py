"""Build the model cards of a run from its options and metrics."""

import re
from pathlib import Path

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments
from transformers.utils import cached_file

from ..methods import find_method, method_of_config


# A method's template fills the blocks of a layout: base.md for a run, converted.md for a converted checkpoint, and
# pretraining.md for a full model. `ModelCard.from_template` does not support template inheritance, and renders missing
# values as blanks.
TEMPLATES = Environment(
    loader=PackageLoader("hf_mim", "model_cards"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
CAPTIONS = {
    "curves.png": "Training curves",
    "attention.png": "Attention of the CLS token in the last layer, one map per head",
    "masks.png": "Crops of some images, with the masked patches in gray",
    "codes.png": "Patches of some images that share a code",
    "usage.png": "How often each code is used",
}
# Metadata that a model inherits from the card of its source.
INHERITED = ("license", "license_name", "license_link", "datasets", "base_model", "tags")
# Sections that a model inherits from the card of its source, with the heading in the new card. Cards of version 0.1
# spell "License" differently.
INHERITED_SECTIONS = {
    "License": "License",
    "Licence": "License",  # codespell:ignore
    "Limits": "Limits",
    "Citation": "Citation",
}
CODE_NOTE = """\
The code of the model is in this repository, and `trust_remote_code=True` runs it: read it first. If the package
`hf_mim` is installed and imported, `trust_remote_code` is not needed.
"""
# The training options in the card, in this order.
TRAINING_OPTIONS = (
    "learning_rate",
    "min_learning_rate",
    "weight_decay",
    "weight_decay_end",
    "adam_beta2",
    "grad_clip",
    "max_grad_norm",
    "freeze_last_layer",
    "momentum_teacher",
    "target",
    "teacher_temp",
    "teacher_patch_temp",
    "warmup_teacher_temp_epochs",
    "global_crops_number",
    "global_crops_scale",
    "local_crops_number",
    "local_crops_scale",
    "color_augmentation",
    "blur_augmentation",
    "pred_ratio",
    "pred_ratio_var",
    "pred_shape",
    "pred_start_epoch",
    "crop_scale",
    "min_crop_scale",
    "stage_epochs",
    "stage_teacher_depth",
    "teacher_feature",
    "color_jitter",
    "num_masking_patches",
    "min_mask_patches_per_block",
    "max_mask_patches_per_block",
    "second_interpolation",
    "seed",
)


def build_card(
    name: str,
    location: str,
    facts: dict,
    args: TrainingArguments,
    config: PreTrainedConfig,
    template: str | None = None,
) -> str:
    """
    Build the `README.md` of a run.

    Args:
        name (`str`): Name of the model.
        location (`str`): Folder that the code in the card loads.
        facts (`dict`): Result of [`~hf_mim.training.pretrain.outputs.collect_metrics`], and the `verdict`.
        args (`TrainingArguments`): The run's options.
        config (`PreTrainedConfig`): Configuration of the encoder.
        template (`str`, *optional*): Name of the template in `model_cards/`. Defaults to the model type.

    Returns:
        `str`: The text of the card.
    """
    template = template or config.model_type
    accuracies = knn_accuracies(facts)
    native = facts.get("native", True)
    data = ModelCardData(
        license=facts["model_license"],
        # The pipeline works only with a native encoder.
        library_name="transformers" if native else "hf_mim",
        pipeline_tag="image-feature-extraction" if native else None,
        tags=["hf_mim", template, "masked-image-modeling", "self-supervised-learning"],
        datasets=None if facts["dataset_id"] is None else [facts["dataset_id"]],
        base_model=facts["base_model"],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                task_name="k-NN classification of frozen features",
                dataset_type=facts["dataset_id"] or facts["data"],
                dataset_name=facts["data"],
                dataset_split=facts["eval_split"],
                metric_type="accuracy",
                metric_name=f"{k}-NN top-1",
                metric_value=round(value, 2),
            )
            for k, value in accuracies.items()
        ]
        or None,
    )
    results = [
        {
            "k": k,
            "trained": value,
            "initial": facts.get(f"initial_knn_{k}_top1"),
            "pixels": facts.get(f"raw_pixels_knn_{k}_top1"),
        }
        for k, value in accuracies.items()
    ]
    options = {option: getattr(args, option, None) for option in TRAINING_OPTIONS}
    options = {option: value for option, value in options.items() if value is not None}
    if not args.max_grad_norm:
        del options["grad_clip"]
    parts = {key.removeprefix("final_"): value for key, value in facts.items() if key.startswith("final_loss_")}
    size = config.image_size
    text = TEMPLATES.get_template(f"{template}.md").render(
        layout="base.md",
        method=find_method(template),
        card_data=data.to_yaml(),
        name=name,
        location=location,
        image_mode={1: "L", 3: "RGB", 4: "RGBA"}.get(config.num_channels, "RGB"),
        facts=facts,
        data=facts["data"] if facts["dataset_id"] is None else _link(facts["dataset_id"], "datasets/"),
        results=results,
        options=options,
        loss_parts=parts,
        captions=CAPTIONS,
        image_size=size if isinstance(size, int) else "×".join(map(str, size)),
        duration=_duration(facts["training_seconds"]) if facts["training_seconds"] else None,
        total_batch=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        config=config,
    )
    return tidy(text)


def knn_accuracies(facts: dict) -> dict[int, float]:
    """Return the top-1 accuracies in percent by number of neighbors, from a run's metrics."""
    names = [key for key in facts if key.startswith("eval_knn_") and key.endswith("_top1")]
    return {int(name.split("_")[2]): facts[name] for name in names}


def build_eval_results(facts: dict, date: str) -> list[dict]:
    """
    Return a run's results as the content of a file in `.eval_results/`, which supports only datasets on the Hub.

    Args:
        facts (`dict`): Result of [`~hf_mim.training.pretrain.outputs.collect_metrics`].
        date (`str`): Date of the evaluation, in ISO 8601.

    Returns:
        `list[dict]`: One entry per number of neighbors. Empty without results or if the dataset is not on the Hub.
    """
    if facts["dataset_id"] is None:
        return []
    notes = f"top-1 accuracy in percent of frozen features, {facts['bank_images']} labeled reference images"
    return eval_result_entries_to_yaml(
        [
            EvalResultEntry(
                dataset_id=facts["dataset_id"], task_id=f"knn_{k}", value=round(value, 2), date=date, notes=notes
            )
            for k, value in knn_accuracies(facts).items()
        ]
    )


def read_card(name_or_path: str, **hub_options: str | None) -> ModelCard | None:
    """Return the card of a model in a folder or on the Hub, or None if it has no card."""
    card = cached_file(
        name_or_path,
        "README.md",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub_options,
    )
    return None if card is None else ModelCard.load(card, ignore_metadata_errors=True)


def read_card_data(name_or_path: str, **hub_options: str | None) -> ModelCardData:
    """Return the metadata of a model's card, in a folder or on the Hub; empty if it has no card."""
    card = read_card(name_or_path, **hub_options)
    if card is None:
        return ModelCardData()
    assert isinstance(card.data, ModelCardData)
    return card.data


def _link(repo_id: str, kind: str = "") -> str:
    return f"[{repo_id}](https://huggingface.co/{kind}{repo_id})"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 1 else "less than 1 s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def tidy(text: str) -> str:
    """Collapse consecutive empty lines, which optional parts leave behind, and strip trailing spaces."""
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" +\n", "\n", text)).strip() + "\n"


def rename_card(card: str, repo_id: str, with_code: bool = False) -> str:
    """
    Rename a card to the repository of its model.

    Title and `model_name` become the name of the repository, and the code in the section "Use" loads `repo_id`.

    Args:
        card (`str`): Text of a `README.md`. Missing metadata, title or section "Use" are not added.
        repo_id (`str`): The repository, `"organization/name"` or `"name"`.
        with_code (`bool`, defaults to `False`): Whether the repository contains the code of the model. It is then
            loaded with `trust_remote_code=True` instead of `import hf_mim`.

    Returns:
        `str`: The text of the new card.
    """
    renamed = ModelCard(card, ignore_metadata_errors=True)
    assert isinstance(renamed.data, ModelCardData)
    renamed.data.model_name = repo_id.split("/")[-1]
    text = re.sub(r"^# .*$", f"# {renamed.data.model_name}", renamed.text, count=1, flags=re.MULTILINE)
    before, heading, rest = text.partition("\n## Use\n")
    use, end, rest = rest.partition("\n## ")
    loaded = re.search(r"""from_pretrained\(["']([^"']+)["']""", use)
    if loaded:
        use = re.sub(rf"(?<![\w./-]){re.escape(loaded[1])}(?![\w./-])", lambda _: repo_id, use)
    if with_code:
        renamed.data.library_name = "transformers"
        use = re.sub(r"^import hf_mim\n", "", use, flags=re.MULTILINE)
        use = use.replace(f'from_pretrained("{repo_id}")', f'from_pretrained("{repo_id}", trust_remote_code=True)')
        use = re.sub(r"(^```python\n.*?^```\n)", rf"\1\n{CODE_NOTE}", use, count=1, flags=re.MULTILINE | re.DOTALL)
    renamed.text = "".join((before, heading, use, end, rest))
    return f"---\n{renamed.data.to_yaml()}\n---\n{renamed.text}"


def build_pretraining_card(
    repo_id: str, encoder_repo_id: str, config: PreTrainedConfig, encoder_card: str, with_code: bool
) -> str:
    """
    Build the card of a full pre-training model that is published next to its encoder.

    The license, datasets, base model, tags and the sections "License", "Limits" and "Citation" are taken from the
    encoder's card.

    Args:
        repo_id (`str`): The repository of the full model.
        encoder_repo_id (`str`): The repository of the encoder.
        config (`PreTrainedConfig`): Configuration of the full model.
        encoder_card (`str`): Text of the encoder's card.
        with_code (`bool`): Whether the repository contains the code of the model.

    Returns:
        `str`: The text of `README.md`.
    """
    encoder = ModelCard(encoder_card, ignore_metadata_errors=True)
    name = repo_id.split("/")[-1]
    data = ModelCardData(
        library_name="transformers" if with_code else "hf_mim",
        model_name=name,
        **{field: encoder.data.get(field) for field in INHERITED},
    )
    method = method_of_config(config)
    text = TEMPLATES.get_template(f"{method.name}.md").render(
        layout="pretraining.md",
        card_data=data.to_yaml(),
        name=name,
        repo_id=repo_id,
        encoder=encoder_repo_id,
        method=method,
        config=config,
        code_note=CODE_NOTE if with_code else None,
        trust=", trust_remote_code=True" if with_code else "",
        sections=_inherited_sections(encoder),
    )
    return tidy(text)


def build_exported_card(
    name: str, source: str, is_teacher: bool, native: PreTrainedModel, loading: list[str], sizes: str
) -> str:
    """
    Build the card of an exported model.

    The license, datasets, base model, tags and the sections "License", "Limits" and "Citation" are taken from the
    card of its source, if there is one.

    Args:
        name (`str`): Name of the model.
        source (`str`): Folder or Hub id of the source.
        is_teacher (`bool`): Whether the exported model is the teacher saved with a pre-training model.
        native (`PreTrainedModel`): The exported model.
        loading (`list[str]`): Lines of Python code that load `name`.
        sizes (`str`): The image sizes at which its outputs equal the source's.

    Returns:
        `str`: The text of `README.md`.
    """
    card = read_card(source)
    if Path(source).is_dir():
        source = Path(source).resolve().name
    data = ModelCardData(
        library_name="transformers",
        # A ViTMAE masks patches at random, so it does not fit the pipeline.
        pipeline_tag=None if native.config.model_type == "vit_mae" else _pipeline(type(native).__name__),
        model_name=name,
        **({"tags": ["hf_mim"]} if card is None else {field: card.data.get(field) for field in INHERITED}),
    )
    text = TEMPLATES.get_template("exported.md").render(
        card_data=data.to_yaml(),
        name=name,
        model_class=type(native).__name__,
        source=source,
        is_teacher=is_teacher,
        loading=loading,
        sizes=sizes,
        sections={} if card is None else _inherited_sections(card),
    )
    return tidy(text)


def _pipeline(model_class: str) -> str:
    return "image-classification" if model_class.endswith("ForImageClassification") else "image-feature-extraction"


def _inherited_sections(card: ModelCard) -> dict[str, str]:
    sections = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", card.text, flags=re.MULTILINE | re.DOTALL)
    return {INHERITED_SECTIONS[heading]: text.strip() for heading, text in sections if heading in INHERITED_SECTIONS}
