"""The package as users get it: from a wheel in an empty environment, with all that is no Python."""

import os
import subprocess
import sys
import zipfile

import pytest

from hf_mim.training.pretrain.recipe_files import list_recipes
from tests.testing.paths import REPOSITORY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--quiet",
        "--wheel-dir",
        str(folder),
        str(REPOSITORY),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    [file] = folder.glob("hf_mim-*.whl")
    return file


@pytest.mark.slow
def test_the_wheel_holds_everything(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    package = REPOSITORY / "src" / "hf_mim"
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {f"hf_mim/{path.relative_to(package).as_posix()}" for path in files} <= inside
    assert "hf_mim_cli.py" in inside
    assert {f"hf_mim/training/recipes/{name}.yaml" for name in list_recipes()} <= inside


@pytest.mark.slow
def test_the_quick_start_works_from_a_wheel(wheel, tmp_path):
    """With its extra `demo`, in the versions of constraints.txt, far from the sources."""
    # On that path, pip would find the package already.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "-c", REPOSITORY / "constraints.txt", f"{wheel}[demo]"]
    result = subprocess.run(install, capture_output=True, text=True, env=variables)
    if result.returncode:
        pytest.skip(f"the packages cannot be installed here: {result.stderr.strip().splitlines()[-1]}")
    command = [environment / "bin" / "hf-mim", "pretrain", "quickstart", "--max_steps", "20", "--fit_schedules"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=variables)
    assert result.returncode == 0, result.stderr
    assert "random initialization" in result.stdout and 'from_pretrained("runs/quickstart")' in result.stdout
    names = {path.name for path in (tmp_path / "runs" / "quickstart").iterdir()}
    assert {"README.md", "curves.png", "attention.png", "masks.png", "model.safetensors", "pretraining"} <= names
    listed = subprocess.run(
        [environment / "bin" / "hf-mim", "convert", "--list"], capture_output=True, text=True, cwd=tmp_path
    )
    assert "ibot-vits16" in listed.stdout, listed.stderr
