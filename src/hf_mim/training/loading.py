"""The model to train: a new one, or one to continue from."""

import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, ViTConfig
from transformers.utils import logging

from ..hub.export import SHARED_FIELDS
from ..modeling.configuration_ibot import IBotConfig
from ..modeling.modeling_ibot_pretraining import IBotForPreTraining
from .pretrain_arguments import ModelArguments
from .recipe_parser import did_you_mean


logger = logging.get_logger(__name__)


def parse_config_overrides(text: str | None, config_class: type = IBotConfig) -> dict:
    """
    `"hidden_size=384,norm_last_layer=false"` as a dict with YAML values.

    Raises:
        ValueError: For an entry without `=`, or a name that the configuration does not have (the nearest is named).
    """
    overrides = {}
    for entry in filter(None, (text or "").split(",")):
        name, separator, value = entry.strip().partition("=")
        if not separator:
            raise ValueError(f"config_overrides must be name=value,name=value, got {entry!r}")
        known = config_class.__dataclass_fields__
        if name not in known:
            raise ValueError(f"config_overrides: {config_class.__name__} has no {name!r}{did_you_mean(name, known)}")
        parsed = yaml.safe_load(value)
        if isinstance(parsed, str) and isinstance(known[name].default, float):
            parsed = float(parsed)  # YAML takes 1e-6 for text
        overrides[name] = parsed
    return overrides


def _new_config(**fields) -> IBotConfig:
    try:
        return IBotConfig(**fields)
    except StrictDataclassError as error:
        raise ValueError(f"configuration of the model: {error.__cause__ or error}") from error


def pretraining_config(args: ModelArguments) -> IBotConfig:
    """
    The configuration of the model to train; of a model to continue from, only its configuration is read.

    Raises:
        ValueError: If sizes do not fit together, or the weights to continue from are of another kind or size.
    """
    overrides = parse_config_overrides(args.config_overrides)
    if args.image_size is not None:
        overrides["image_size"] = args.image_size[0] if len(args.image_size) == 1 else args.image_size
    if args.patch_size is not None:
        overrides["patch_size"] = args.patch_size
    if overrides.get("use_mean_pooling"):
        raise ValueError("use_mean_pooling is for evaluation: iBOT is trained with the CLS token")
    if args.model_name_or_path is None:
        return _new_config(**overrides)

    config = AutoConfig.from_pretrained(args.model_name_or_path, **args.hub_options)
    if not isinstance(config, (IBotConfig, ViTConfig)):
        raise ValueError(
            f"{args.model_name_or_path} is a model of type {config.model_type!r}; iBOT continues from 'ibot' or 'vit'"
        )
    fixed = sorted(name for name in overrides if name in SHARED_FIELDS and overrides[name] != getattr(config, name))
    if fixed:
        raise ValueError(f"{args.model_name_or_path} has weights for another {fixed[0]} than {overrides[fixed[0]]}")
    if isinstance(config, IBotConfig):
        config.update(overrides)
        config.validate_architecture()
        return config
    return _new_config(**{name: getattr(config, name) for name in SHARED_FIELDS} | overrides)


def load_ibot_for_pretraining(args: ModelArguments) -> IBotForPreTraining:
    """
    A new model from `config_overrides`, `image_size` and `patch_size`, or the one at `model_name_or_path`.

    An encoder without a head (`ibot` or a native `vit`, such as the root of a finished run) gets a new head, whose
    sizes `config_overrides` may set.

    Raises:
        ValueError: As `pretraining_config`, and for weights that do not fit or are not there.
    """
    config, hub = pretraining_config(args), args.hub_options
    if args.model_name_or_path is None:
        return IBotForPreTraining._from_config(config, attn_implementation=args.attn_implementation)
    if isinstance(AutoConfig.from_pretrained(args.model_name_or_path, **hub), IBotConfig):
        try:
            model, info = IBotForPreTraining.from_pretrained(
                args.model_name_or_path,
                config=config,
                attn_implementation=args.attn_implementation,
                output_loading_info=True,
                **hub,
            )
        except RuntimeError as error:
            raise ValueError(
                f"config_overrides do not fit the weights of {args.model_name_or_path}: {error}"
            ) from error
        lost = [name for name in info["missing_keys"] if name.startswith("ibot.") and "mask_token" not in name]
        if lost:
            raise ValueError(f"{args.model_name_or_path} lacks {len(lost)} tensors of the encoder, such as {lost[0]}")
        return model.float()

    model = IBotForPreTraining._from_config(config, attn_implementation=args.attn_implementation)
    encoder = AutoModel.from_pretrained(args.model_name_or_path, add_pooling_layer=False, **hub).float()
    result = model.ibot.load_state_dict(encoder.state_dict(), strict=False)
    if result.missing_keys != ["embeddings.mask_token"] or result.unexpected_keys:
        raise ValueError(
            f"{args.model_name_or_path} is not a plain ViT: missing {result.missing_keys}, "
            f"unexpected {result.unexpected_keys}"
        )
    logger.warning(f"{args.model_name_or_path} is an encoder: head and mask token are new")
    return model
