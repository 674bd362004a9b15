"""pyproject.toml and the two files of pinned versions agree."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


ROOT = Path(__file__).parents[1]


def requirements(*, without: str) -> list[Requirement]:
    """The requirements in pyproject.toml: dependencies and extras, without one extra and without hf_mim itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [lines for extra, lines in project["optional-dependencies"].items() if extra != without]
    found = [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]
    return [requirement for requirement in found if requirement.name != "hf_mim"]


def pins(file: str) -> dict[str, str]:
    """The version that a file pins for each package, whose name is in its canonical form."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    found = [line.split("==") for line in lines]
    versions = {canonicalize_name(name): version for name, version in found}
    assert len(versions) == len(lines), f"{file} names a package twice"
    return versions


def test_make_test_lowest_uses_the_lowest_versions_of_pyproject():
    lowest = {}
    # The tests need none of the tools in the extra dev.
    for requirement in requirements(without="dev"):
        versions = re.findall(r">=([\d.]+)", str(requirement.specifier))
        assert len(versions) == 1, f"{requirement}: give one lowest version"
        lowest[canonicalize_name(requirement.name)] = versions[0]
    assert pins("constraints-lowest.txt") == lowest


def test_the_pinned_versions_are_allowed():
    pinned = pins("constraints.txt")
    # Only `make test-torchvision` installs torchvision, with another torch.
    for requirement in requirements(without="vision"):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"constraints.txt has {requirement.name} {version}"
