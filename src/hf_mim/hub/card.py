"""The model card of a run, filled from its options and metrics."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import PreTrainedConfig, TrainingArguments


# The method's template fills the blocks of base.md.
TEMPLATES = Environment(loader=PackageLoader("hf_mim", "model_cards"), undefined=StrictUndefined)
# The options that say how a model was trained, in the order of the card.
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
    name: str, facts: dict, args: TrainingArguments, config: PreTrainedConfig, template: str | None = None
) -> str:
    """
    The text of `README.md` for the folder or repository `name`.

    Args:
        name (`str`): Name of the model.
        facts (`dict`): What [`~hf_mim.training.outputs.collect_metrics`] gives.
        args (`TrainingArguments`): The run's options.
        config (`PreTrainedConfig`): Configuration of the encoder.
        template (`str`, *optional*): Name in `model_cards/`; that of the model type when not given.
    """
    template = template or config.model_type
    top1 = {key: value for key, value in facts.items() if key.startswith("eval_knn_") and key.endswith("_top1")}
    neighbours = {key: int(key.split("_")[2]) for key in top1}
    data = ModelCardData(
        # Only what is an encoder of transformers' own does what its pipeline promises.
        library_name="transformers" if facts.get("native", True) else "hf_mim",
        pipeline_tag="image-feature-extraction" if facts.get("native", True) else None,
        tags=["hf_mim", template, "masked-image-modeling", "self-supervised-learning"],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                task_name="k-NN classification of frozen features",
                dataset_type=Path(facts["data"]).name,
                dataset_name=Path(facts["data"]).name,
                metric_type="accuracy",
                metric_name=f"{neighbours[key]}-NN top-1",
                metric_value=round(value, 2),
            )
            for key, value in top1.items()
        ],
    )
    results = [
        {
            "k": neighbours[key],
            "trained": value,
            "initial": facts.get(key.replace("eval", "initial")),
            "pixels": facts.get(key.replace("eval", "raw_pixels")),
        }
        for key, value in top1.items()
    ]
    options = {option: getattr(args, option, None) for option in TRAINING_OPTIONS}
    options = {option: value for option, value in options.items() if value is not None}
    if not args.max_grad_norm:
        del options["grad_clip"]
    parts = {key.removeprefix("final_"): value for key, value in facts.items() if key.startswith("final_loss_")}
    return TEMPLATES.get_template(f"{template}.md").render(
        card_data=data.to_yaml(),
        name=name,
        facts=facts,
        results=results,
        options=options,
        loss_parts=parts,
        total_batch=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        config=config,
    )
