"""Read YAML that people write: recipes and the values of options."""

from typing import Any

import yaml


def load_yaml(text: str | bytes) -> Any:
    """
    Parse YAML of plain values, lists and mappings.

    Only `true` and `false` are booleans, as in YAML 1.2; `no`, `off`, `yes` and `on` are words, as on a command line.

    Raises:
        ValueError: If the text is not YAML, gives a name twice, has aliases or other tags, or is nested too deeply.
    """
    try:
        return yaml.load(text, _StrictLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError("not valid YAML: its values are nested too deeply") from error


class _StrictLoader(yaml.SafeLoader):
    """`SafeLoader` with the booleans of YAML 1.2, without aliases, and without names given twice."""

    yaml_implicit_resolvers = {
        first: [entry for entry in entries if entry[0] != "tag:yaml.org,2002:bool" or first in "tTfF"]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        # A few lines of aliases of aliases stand for billions of values.
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, f"aliases (*{event.anchor}) are not allowed", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = set()
        for key, _ in node.value:
            if key.value in names:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is given twice", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                names.add(key.value)
        return super().construct_mapping(node, deep)
