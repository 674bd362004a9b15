"""The options of `hf-mim pretrain` are frozen: whoever changes one says so by changing the list."""

import json

from tests.testing.paths import GOLDEN
from tests.testing.pretrain_options import pretrain_options


def changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """One line per option that was added, removed or changed."""
    lines = [f"added {name}: {now[name]}" for name in now.keys() - before.keys()]
    lines += [f"removed {name}: {before[name]}" for name in before.keys() - now.keys()]
    common = before.keys() & now.keys()
    lines += [f"changed {name}: {before[name]} -> {now[name]}" for name in common if before[name] != now[name]]
    return sorted(lines)


def test_changes_are_described():
    before = {"kept": "int = 1", "gone": "int = 2", "moved": "int = 3"}
    now = {"kept": "int = 1", "moved": "float = 3.0", "new": "str = null"}
    assert changes(before, now) == [
        "added new: str = null",
        "changed moved: int = 3 -> float = 3.0",
        "removed gone: int = 2",
    ]


def test_options_are_those_of_the_list():
    recorded, found = json.loads((GOLDEN / "pretrain_options.json").read_text()), pretrain_options()
    differences = {
        method: changes(recorded.get(method, {}), found.get(method, {})) for method in recorded.keys() | found.keys()
    }
    differences = {method: lines for method, lines in differences.items() if lines}
    assert not differences, (
        f"options differ from those of tests/golden/pretrain_options.json: {json.dumps(differences, indent=1)}\n"
        "If that is intended: python -m tests.testing.pretrain_options > tests/golden/pretrain_options.json"
    )
