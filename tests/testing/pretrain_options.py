"""
Our own options of `hf-mim pretrain`: those that `transformers.TrainingArguments` lacks or gives another default.

`python -m tests.testing.pretrain_options > tests/golden/pretrain_options.json` writes the list anew.
"""

import dataclasses
import enum
import json
import re
from typing import Any, get_type_hints

from transformers import TrainingArguments

from hf_mim.methods import METHOD_NAMES
from hf_mim.training.pretrain.options import DataArguments, ModelArguments
from hf_mim.training.run_pretrain import run_class


def default_of(field: dataclasses.Field) -> Any:
    """The default of a field as JSON has it."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    if field.default is dataclasses.MISSING:
        return "required"
    return field.default.value if isinstance(field.default, enum.Enum) else field.default


def options_of(*dataclass_types: type) -> dict[str, str]:
    """Type and default of every option that is ours, by name."""
    inherited = {field.name: default_of(field) for field in dataclasses.fields(TrainingArguments)}
    options = {}
    for cls in dataclass_types:
        hints = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            ours = field.name not in inherited or inherited[field.name] != default_of(field)
            if field.init and ours:
                hint = hints[field.name]
                name = hint.__name__ if isinstance(hint, type) else re.sub(r"\b[a-z_]+\.", "", str(hint))
                options[field.name] = f"{name} = {json.dumps(default_of(field))}"
    return options


def pretrain_options() -> dict[str, dict[str, str]]:
    """Options that all methods share, under "every method", and the others under the name of each method."""
    by_method = {
        name: options_of(ModelArguments, DataArguments, run_class(name).arguments_class) for name in METHOD_NAMES
    }
    first, *others = by_method.values()
    shared = {name: text for name, text in first.items() if all(o.get(name) == text for o in others)}
    own = {
        method: {name: text for name, text in options.items() if shared.get(name) != text}
        for method, options in by_method.items()
    }
    return {"every method": dict(sorted(shared.items()))} | {m: dict(sorted(o.items())) for m, o in own.items()}


if __name__ == "__main__":
    print(json.dumps(pretrain_options(), indent=1))
