"""Paths and tokens in any common form are found, and ordinary text is left alone."""

import pytest

from hf_mim.hub.secrets import find_local_path, find_secret
from tests.testing.paths import REPOSITORY


PATHS = [
    "/home/me/data",
    "/Users/me/data",
    "/root/.cache/model",
    "/mnt/c/Users/me",
    "/Volumes/Disk/data",
    "'/scratch/group/data'",
    "--train_dir=/data/images",
    "(/data/images)",
    "[images](/data/images)",
    r"C:\Users\me",
    r"C:\\Users\\me",
    "C:/Users/me",
    r"\\server\share\data",
    r"\\\\server\\share",
    "//server/share/data",
    "file:///home/me/data",
    "file:/data/images",
    "~/data/images",
    "~me/data",
    "$HOME/data",
    "${SCRATCH}/data",
    r"%USERPROFILE%\data",
    "../../private/data",
    r"\/home\/me\/data",
    "%2Fhome%2Fme%2Fdata",
    r"\u002fhome\u002fme",
    r"line\n/home/me/data",
    "prefix/home/me/data",
]
ORDINARY = [
    "and/or",
    "https://host/page/x",
    "https://arxiv.org/abs/1805.01978",
    "http://127.0.0.1:8000/a/b",
    "org/name",
    "`runs/cells`",
    "[docs](docs/hub.md)",
    "1/2/3",
    "ViT-B/16",
    "mean/std of 0.5/0.5",
    "50 % of the codes",
    "</p><br/>",
    "the ratio a / b",
    "C: the channels",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("around", ["{}", "first line\nimages of {} and others", '"command": "{}",'])
def test_paths(path, around):
    found = find_local_path(around.format(path))
    assert found is not None and found[1] == 1 + around.partition("{}")[0].count("\n")


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text(text):
    assert find_local_path(text) is None and find_secret(text) is None


@pytest.mark.parametrize(
    "secret",
    [
        "hf_" + 34 * "a",
        "ghp_" + 36 * "a",
        "github_pat_" + 40 * "a",
        "glpat-" + 20 * "a",
        "AKIAIOSFODNN7EXAMPLE",
        "aws_secret_access_key = " + 40 * "a",
        "sk-" + 20 * "a" + "T3BlbkFJ" + 20 * "b",
        "sk-proj-" + 60 * "a",
        "sk-ant-api03-" + 80 * "a",
        "AIza" + 35 * "a",
        "xoxb-123456789012-abcdefghijkl",
        "npm_" + 36 * "a",
        "wandb login " + 40 * "a",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "https://me:password@host/x",
        "api_key: 0123456789abcdef",
        "password=correcthorse",
    ],
)
def test_secrets(secret):
    found = find_secret(f"first line\n  {secret}\n")
    assert found is not None and found[1] == 2
    # The message is shown and logged.
    assert secret not in found[0]


def test_cards_of_the_repository_hold_neither():
    for file in [REPOSITORY / "README.md", *(REPOSITORY / "model_cards").rglob("*.md")]:
        text = file.read_text(encoding="utf-8")
        assert find_secret(text) is None and find_local_path(text) is None, file
