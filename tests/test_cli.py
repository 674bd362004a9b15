import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import hf_mim
import hf_mim_cli as cli
from hf_mim import env


class Unreadable(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int):
        raise ValueError("photos/cat.jpg: not an image")


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch):
    """`verb(module, function)` replaces `module.main`, so that no verb really runs."""

    def replace(module: str, function) -> None:
        fake = types.ModuleType(module)
        fake.main = function
        parent, name = module.rsplit(".", 1)
        monkeypatch.setitem(sys.modules, module, fake)
        monkeypatch.setattr(sys.modules[parent], name, fake, raising=False)

    monkeypatch.delenv("HF_MIM_DEBUG", raising=False)
    import hf_mim.analysis
    import hf_mim.evaluation
    import hf_mim.hub.convert
    import hf_mim.training  # noqa: F401

    return replace


@pytest.mark.parametrize(
    ("argv", "module"),
    [
        (["pretrain", "quickstart", "--seed", "3"], "hf_mim.training.run_pretrain"),
        (["evaluate", "knn", "runs/x", "--k", "20"], "hf_mim.evaluation.evaluate_knn"),
        (["analyze", "codes", "runs/x", "photos", "a.png"], "hf_mim.analysis.analyze_codes"),
        (["analyze", "distance", "runs/x", "photos"], "hf_mim.analysis.analyze_properties"),
        (["analyze", "svd", "runs/x", "photos"], "hf_mim.analysis.analyze_properties"),
        (["convert", "checkpoint.pth", "out", "--native"], "hf_mim.hub.convert.command"),
        (["export", "runs/x", "out", "--onnx"], "hf_mim.hub.export_command"),
        (["publish", "runs/x", "org/name", "--full"], "hf_mim.hub.publish_command"),
    ],
)
def test_a_verb_gets_the_arguments_after_it(verb, argv, module):
    received = []
    verb(module, received.append)
    assert cli.main(argv) == 0
    assert received == [argv[-3:]]


def test_help_and_version(capsys):
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out == cli.USAGE
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"hf_mim {hf_mim.__version__}\n"


@pytest.mark.parametrize(
    ("verb", "usage"),
    [
        ("evaluate", "usage: hf-mim evaluate {knn} MODEL"),
        ("analyze", "usage: hf-mim analyze {codes, distance, svd} MODEL IMAGES"),
    ],
)
def test_help_of_a_verb_with_a_second_word(capsys, verb, usage):
    assert cli.main([verb, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(usage)
    for word in cli.VERBS[verb]:
        assert f"\n  {word:<10} {cli.PURPOSES[word]}\n" in printed


def test_usage_names_every_verb():
    words = [f"{verb} {word}" for verb, words in cli.VERBS.items() if isinstance(words, dict) for word in words]
    for name in (*cli.VERBS, *words):
        assert f"\n  {name} " in cli.USAGE


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], f"which verb? {', '.join(cli.VERBS)} (see hf-mim --help)"),
        (["pretrian"], "unknown verb 'pretrian', did you mean 'pretrain'?"),
        (["evaluate"], "evaluate what? knn (see hf-mim evaluate knn --help)"),
        (["evaluate", "nkn"], "unknown evaluation 'nkn', did you mean 'knn'?"),
        (["analyze"], "analyze what? codes, distance, svd (see hf-mim analyze codes --help)"),
        (["analyze", "code"], "unknown analysis 'code', did you mean 'codes'?"),
        (["env", "cuda"], "env takes no arguments, got 'cuda'"),
    ],
)
def test_wrong_words_are_named_in_one_line(capsys, argv, message):
    assert cli.main(argv) == 2
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", f"hf-mim: error: {message}\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("photos: no image\n  in this folder"), "photos: no image in this folder"),
        (FileNotFoundError(2, "No such file or directory", "photos"), "[Errno 2] No such file or directory: 'photos'"),
        (ValueError(), "ValueError"),
        (FloatingPointError("not finite at step 3: loss nan"), "not finite at step 3: loss nan"),
    ],
)
def test_mistakes_of_the_user_take_one_line(verb, capsys, monkeypatch, error, message):
    def fail(argv):
        raise error

    verb("hf_mim.training.run_pretrain", fail)
    assert cli.main(["pretrain"]) == 2
    assert capsys.readouterr().err == f"hf-mim: error: {message}\n"
    monkeypatch.setenv("HF_MIM_DEBUG", "1")
    with pytest.raises(type(error)):
        cli.main(["pretrain"])


def test_an_error_of_a_data_loading_process_takes_one_line(verb, capsys):
    verb("hf_mim.training.run_pretrain", lambda argv: next(iter(DataLoader(Unreadable(), num_workers=1))))
    assert cli.main(["pretrain"]) == 2
    assert capsys.readouterr().err == "hf-mim: error: photos/cat.jpg: not an image\n"


def test_defects_keep_their_traceback(verb):
    def fail(argv):
        raise RuntimeError("shapes differ")

    verb("hf_mim.training.run_pretrain", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        cli.main(["pretrain"])


def test_interrupt(verb, capsys):
    def interrupt(argv):
        raise KeyboardInterrupt

    verb("hf_mim.training.run_pretrain", interrupt)
    assert cli.main(["pretrain"]) == 130
    assert capsys.readouterr().err == "hf-mim: interrupted\n"


def test_the_process_ends_with_the_exit_code():
    result = subprocess.run([sys.executable, "-m", "hf_mim", "evn"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "hf-mim: error: unknown verb 'evn', did you mean 'env'?\n"


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["pretrian"], []])
def test_what_needs_no_model_imports_none(argv):
    program = f"""
import sys, hf_mim_cli
code = hf_mim_cli.main({argv!r})
heavy = [name for name in ("torch", "transformers", "numpy", "hf_mim") if name in sys.modules]
print(code, heavy)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == f"{0 if '--' in ''.join(argv) else 2} []"


def test_the_console_script_is_this_module():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"hf-mim": "hf_mim_cli:main"}
    assert project["tool"]["setuptools"]["py-modules"] == [cli.__name__]


def test_env_reports_versions_and_back_ends(capsys):
    assert cli.main(["env"]) == 0
    facts = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert facts["hf_mim"] == hf_mim.__version__
    assert facts["torch"] == torch.__version__
    assert facts["attention eager"] == "works"
    assert "math" in facts["attention sdpa"]
    if not torch.cuda.is_available():
        assert facts["attention flash_attention_2"] == "not available (needs a CUDA device)"


def test_env_reports_the_sdpa_kernels_that_run(monkeypatch):
    def refuse(*tensors):
        raise RuntimeError("no kernel")

    assert "math" in env.usable_sdpa_kernels()
    monkeypatch.setattr(env.F, "scaled_dot_product_attention", refuse)
    assert env.usable_sdpa_kernels() == []


def test_env_knows_what_torch_compile_lacks(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert env.describe_compile().startswith("not usable: no C++ compiler (no-such-compiler not found")
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(env.sysconfig, "get_path", lambda name: str(tmp_path))
    assert env.describe_compile().startswith(f"not usable: {tmp_path / 'Python.h'} is missing")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "0.99, works"),
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "0.99, installed but BROKEN (RuntimeError: operator torchvision::nms does not exist)",
        ),
        ("import os; os._exit(3)", "0.99, installed but BROKEN (import ended with exit code 3)"),
    ],
)
def test_env_survives_any_torchvision(tmp_path: Path, code, message):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(code)
    (tmp_path / "torchvision-0.99.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.99\n"
    (tmp_path / "torchvision-0.99.dist-info" / "METADATA").write_text(metadata)
    # As a script: with a broken torchvision, transformers and therefore `import hf_mim` fail.
    result = subprocess.run(
        [sys.executable, env.__file__],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if line.startswith("torchvision: "))
    assert line.startswith(f"torchvision: {message}")
    if "BROKEN" in message:
        assert "pip uninstall torchvision" in line and torch.__version__ in line
