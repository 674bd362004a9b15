"""Parse and check `--config_overrides NAME=VALUE,...`, for every command."""

import re
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .console import did_you_mean
from .strict_yaml import load_yaml


def parse_overrides(text: str | None) -> dict[str, Any]:
    """
    Parse overrides such as `hidden_size=384,norm_last_layer=false,depths=[2,2],id2label={0: cat, 1: dog}`.

    Args:
        text (`str`, *optional*): Entries `name=value` with YAML values. If a name is repeated, the last one counts.

    Raises:
        ValueError: For an entry that is not `name=value`, or a value that is not YAML.
    """
    overrides: dict[str, Any] = {}
    # Commas inside brackets and braces separate the elements of one value.
    for entry in filter(None, re.split(r",(?![^\[{]*[\]}])", text or "")):
        name, separator, value = entry.strip().partition("=")
        if not (name and separator):
            raise ValueError(f"config_overrides must be name=value,name=value, got {entry!r}")
        try:
            overrides[name] = load_yaml(value)
        except ValueError as error:
            raise ValueError(f"config_overrides: {name} must have a YAML value, got {reprlib.repr(value)}") from error
    return overrides


def check_overrides(overrides: Mapping[str, Any], config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """
    Check that a configuration has the overridden fields, and convert numbers such as 1e-6 and words such as no,
    which YAML reads as text.

    Args:
        overrides (`Mapping[str, Any]`): As from [`parse_overrides`].
        config_class (`type`): Class of the configuration.

    Raises:
        ValueError: For a name that the configuration does not have (the nearest one is suggested), or an unknown
            activation.
    """
    # Fields that transformers adds to every configuration would have no effect, apart from the class names.
    of_all = PreTrainedConfig.__dataclass_fields__.keys() - {"id2label", "label2id"}
    fields = config_class.__dataclass_fields__
    known = {name: fields[name] for name in fields if name not in of_all and not name.startswith("_")}
    checked = {}
    for name, value in overrides.items():
        if name not in known:
            raise ValueError(f"config_overrides: {config_class.__name__} has no {name!r}{did_you_mean(name, known)}")
        if isinstance(value, str) and isinstance(known[name].default, float):
            with suppress(ValueError):
                value = float(value)
        if isinstance(value, str) and isinstance(known[name].default, bool):
            value = {"yes": True, "on": True, "no": False, "off": False}.get(value.lower(), value)
        if name == "hidden_act" and str(value) not in ACT2FN:
            raise ValueError(f"config_overrides: hidden_act must be one of {', '.join(ACT2FN)}, got {value!r}")
        checked[name] = value
    return checked
