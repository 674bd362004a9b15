"""Arguments of transformers that must keep their values here, each with the reason."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Kept(NamedTuple):
    """
    An option of transformers that must keep its value.

    Args:
        value (`Any`): The value.
        reason (`str`): Why, as the end of a sentence.
    """

    value: Any
    reason: str


_NO_TOKENS = "pre-training on images has no text tokens"
_OWN_EVALUATION = "the evaluation is k-NN on features, or losses of a tokenizer, and gathers no predictions"

KEPT: dict[str, Kept] = {
    "auto_find_batch_size": Kept(False, "learning rate, warm-up and card follow from the batch size"),
    "average_tokens_across_devices": Kept(True, _NO_TOKENS),
    "batch_eval_metrics": Kept(False, _OWN_EVALUATION),
    "bf16_full_eval": Kept(False, "an evaluation has the precision of the training: use bf16"),
    "dataloader_in_order": Kept(True, "the order of the batches must be the same when a run is resumed"),
    "dataloader_persistent_workers": Kept(False, "it changes the random numbers of a resumed run"),
    "ddp_find_unused_parameters": Kept(False, "every parameter is used in every step"),
    "debug": Kept("", "losses, gradients and weights are checked for NaN in every step anyway"),
    "deepspeed": Kept(None, "the target network cannot be sharded by DeepSpeed: use fsdp or several processes"),
    "do_predict": Kept(False, "there are no predictions: use hf-mim evaluate"),
    "enable_jit_checkpoint": Kept(False, "SIGTERM saves a checkpoint anyway"),
    "eval_accumulation_steps": Kept(None, _OWN_EVALUATION),
    "eval_do_concat_batches": Kept(True, _OWN_EVALUATION),
    "eval_use_gather_object": Kept(False, _OWN_EVALUATION),
    "fp16_full_eval": Kept(False, "an evaluation has the precision of the training: use fp16"),
    "hub_revision": Kept(None, "a result is uploaded to the main branch"),
    "ignore_data_skip": Kept(False, "resuming must continue the run exactly"),
    "include_for_metrics": Kept([], _OWN_EVALUATION),
    "include_num_input_tokens_seen": Kept("no", _NO_TOKENS),
    "label_names": Kept(["pixel_values"], "pre-training has no labels"),
    "label_smoothing_factor": Kept(0.0, "pre-training has no labels"),
    "length_column_name": Kept("length", "images have no length"),
    "liger_kernel_config": Kept(None, "its kernels are for language models"),
    "load_best_model_at_end": Kept(
        False,
        "it would combine the best student with the last teacher. Use save_strategy best with metric_for_best_model, "
        "and pass that checkpoint to model_name_or_path",
    ),
    "logging_nan_inf_filter": Kept(False, "a loss that is not finite must show"),
    "neftune_noise_alpha": Kept(None, "it is noise for embeddings of text tokens"),
    "optim_target_modules": Kept(None, "it is for GaLore and APOLLO, which replace the groups with weight decay"),
    "parallelism_config": Kept(
        None, "tensor and context parallelism are not supported: use fsdp or several processes"
    ),
    "prediction_loss_only": Kept(True, "there is nothing to predict"),
    "remove_unused_columns": Kept(False, "the collator needs all columns"),
    "restore_callback_states_from_checkpoint": Kept(False, "resuming restores all that a run needs"),
    "save_only_model": Kept(False, "resuming must continue the run exactly"),
    "train_sampling_strategy": Kept("random", "images have no length, and each epoch shuffles them"),
    "use_cache": Kept(False, _NO_TOKENS),
    "use_liger_kernel": Kept(False, "its kernels are for language models"),
}


def check_kept(values: Mapping[str, Any]) -> None:
    """
    Refuse options that must keep their values, all at once.

    Args:
        values (`Mapping[str, Any]`): Values of options. Those that are not in the table are not looked at.

    Raises:
        ValueError: If one of them has another value.
    """
    wrong = [
        f"{name} must stay {_shown(kept.value)}: {kept.reason}"
        for name, kept in KEPT.items()
        if name in values and values[name] != kept.value and not _is_empty(values[name], kept.value)
    ]
    if wrong:
        raise ValueError("; ".join(wrong))


def _is_empty(value: Any, kept: Any) -> bool:
    """Return whether both stand for nothing: transformers turns None into an empty list, no into False, and back."""
    return (kept in (None, "", []) and value in (None, "", [], {})) or (kept == "no" and value is False)


def _shown(value: Any) -> str:
    if value in (None, "", []):
        return "unset"
    return " ".join(value) if isinstance(value, list) else str(value)
