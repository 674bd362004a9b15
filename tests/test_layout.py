"""The layout of `src`: which file imports which, how large files and folders are, and where a method is named."""

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter

from hf_mim.methods import METHOD_NAMES
from tests.testing.paths import REPOSITORY


SRC = REPOSITORY / "src"
FILES = sorted(SRC.rglob("*.py"))
# Every room may import itself and the rooms above it in this list. `hf_mim` is `__init__.py`: its other imports are
# strings, or for type checkers.
ROOMS = ["utils", "methods", "modeling", "data", "auto", "hf_mim", "evaluation", "analysis", "hub", "training"]
ROOMS += ["env", "hf_mim_cli", "__main__"]
GROUND = {"utils", "methods", "modeling"}
# The same inside `training`; the parts of a trainer are callbacks/, target.py, checkpoints.py and the like.
TRAINING = ["arguments", "parts", "trainers", "pretrain", "run_pretrain"]
SMALL = {"__init__.py", "__main__.py", "layout.py", "workers.py"}
# Files that name a method of which they are not part, each with the reason.
NAMES_METHODS = {
    "hf_mim/analysis/analyze_codes.py": "only tokenizers have codes",
}


def module_of(path) -> str:
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING"


def imports_of(module: str) -> set[str]:
    """Our modules that a module imports, also inside functions, but not only for type checkers."""
    path, found = MODULES[module], set()
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    nodes = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if is_for_type_checkers(node):
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {
                f"{source}.{alias.name}" if f"{source}.{alias.name}" in MODULES else source for alias in node.names
            }
    return (found & MODULES.keys()) - {module}


IMPORTS = {module: imports_of(module) for module in MODULES}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def part_of_training(module: str) -> str:
    name = module.split(".")[2] if module.count(".") > 1 else "parts"
    if name.endswith("_trainer") or name in ("trainer", "frozen_target"):
        return "trainers"
    return "arguments" if name.endswith("arguments") else name if name in TRAINING else "parts"


def test_arrows_point_one_way():
    wrong = []
    for module, imported in IMPORTS.items():
        for other in imported:
            above, below = room(module), room(other)
            if ROOMS.index(below) > ROOMS.index(above) or (above in GROUND and below != above):
                wrong.append(f"{module} imports {other}")
            if above == below == "training":
                parts = [TRAINING.index(part_of_training(name)) for name in (module, other)]
                if parts[1] > parts[0]:
                    wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(sorted(wrong))


def test_models_import_only_their_siblings():
    """They travel to the Hub, where all files lie in one folder."""
    for module, imported in IMPORTS.items():
        if room(module) == "modeling":
            assert all(room(other) == "modeling" for other in imported), module


def test_no_circles():
    graph = {module: imported - {"hf_mim"} for module, imported in IMPORTS.items() if module != "hf_mim"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None


def test_no_folder_is_crowded():
    counts = Counter(str(path.parent.relative_to(SRC)) for path in FILES if path.name != "__init__.py")
    assert not {folder: count for folder, count in counts.items() if count > 22}


def test_files_are_neither_long_nor_tiny():
    lengths = {str(path.relative_to(SRC)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {name: length for name, length in lengths.items() if length > 450}
    short = {name: length for name, length in lengths.items() if length < 30}
    assert not {name: length for name, length in short.items() if name.rpartition("/")[2] not in SMALL}


def test_a_method_is_named_in_its_own_files_only():
    """As a string of its own, such as "ibot"; a file is of a method if its name says so."""
    elsewhere = {}
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        names = {name for name in texts & set(METHOD_NAMES) if not is_of_method(path.stem, name)}
        if names and path.name not in ("methods.py", "auto.py"):
            elsewhere[str(path.relative_to(SRC))] = sorted(names)
    assert not {name: names for name, names in elsewhere.items() if name not in NAMES_METHODS}
    assert not NAMES_METHODS.keys() - elsewhere.keys(), "these need no exception any more"


def is_of_method(stem: str, name: str) -> bool:
    """`ibot` and `ibot_swin` share files, and so do `dbot` and `dbot_symmetric`, `vqkd` and `beitv2`."""
    families = (("ibot", "ibot_swin"), ("beitv2", "vqkd"), ("dbot", "dbot_symmetric"))
    return any(name in family and any(member in stem for member in family) for family in families)
