"""
`hf-mim env`: report what training can use on this machine, for bug reports and before a long run.

This module imports nothing of hf_mim, so `python .../hf_mim/env.py` works even where `import hf_mim` fails.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


PACKAGES = (
    "hf_mim",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "pillow",
)
SDPA_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def main(argv: Sequence[str] = ()) -> None:
    """
    Print the report, one `name: value` line per fact.

    Args:
        argv (`Sequence[str]`): Empty, or `--help`.

    Raises:
        ValueError: For other arguments.
    """
    if list(argv) in (["-h"], ["--help"]):
        print("usage: hf-mim env\n\nPrint versions, devices and the back ends that work on this machine.")
        return
    if argv:
        raise ValueError(f"env takes no arguments, got '{' '.join(argv)}'")
    facts = {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES}
    # With its build, such as "+cu130", which the version of the package need not have.
    facts["torch"] = torch.__version__
    facts["torchvision"] = describe_torchvision()
    facts["platform"] = platform.platform()
    facts["CPU"] = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    for index, device in enumerate(describe_accelerators()):
        facts[f"accelerator {index}"] = device
    facts.setdefault("accelerator 0", "none, training runs on the CPU")
    facts["attention eager"] = "works"
    facts["attention sdpa"] = f"works, kernels: {', '.join(usable_sdpa_kernels())}"
    facts["attention flash_attention_2"] = describe_flash_attention()
    facts["torch.compile"] = describe_compile()
    for name, value in facts.items():
        print(f"{name}: {value}")


def describe_accelerators() -> list[str]:
    """Return one line per CUDA device (name, memory in GiB, bf16 support) or one for Apple's MPS."""
    if torch.cuda.is_available():
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return [f"cuda:{i} {d.name}, {d.total_memory / 2**30:.1f} GiB, {bf16}" for i, d in enumerate(devices)]
    if torch.backends.mps.is_available():
        memory = torch.mps.recommended_max_memory() / 2**30
        return [f"mps {platform.processor()}, {memory:.1f} GiB, {'bf16' if _runs_bf16('mps') else 'no bf16'}"]
    return []


def usable_sdpa_kernels() -> list[str]:
    """Return the `scaled_dot_product_attention` kernels that run here, in bf16 on CUDA and float32 elsewhere."""
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    query = torch.zeros(1, 1, 16, 64, device=device, dtype=dtype)
    usable = []
    for name, backend in SDPA_KERNELS.items():
        try:
            with warnings.catch_warnings(), sdpa_kernel(backend):
                # PyTorch explains in a warning why a kernel cannot run.
                warnings.simplefilter("ignore")
                F.scaled_dot_product_attention(query, query, query)
        except RuntimeError:
            continue
        usable.append(name)
    return usable


def describe_flash_attention() -> str:
    """Report if `attn_implementation="flash_attention_2"` can be used."""
    if not torch.cuda.is_available():
        return "not available (needs a CUDA device)"
    if importlib.util.find_spec("flash_attn") is None:
        return "not available (the package flash_attn is not installed)"
    error = _import_error("flash_attn")
    return f"installed but broken ({error})" if error else f"works ({_version('flash_attn')})"


def describe_compile() -> str:
    """Report if `torch.compile` finds a C++ compiler, Python's headers and, on CUDA, triton."""
    compiler = os.environ.get("CXX") or {"Darwin": "clang++", "Windows": "cl"}.get(platform.system(), "g++")
    if shutil.which(compiler) is None:
        return f"not usable: no C++ compiler ({compiler} not found; install it, or name another one in CXX)"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        return f"not usable: {header} is missing (Debian and Ubuntu: the package python3-dev)"
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        return "not usable on CUDA: the package triton is not installed"
    return f"usable ({shutil.which(compiler)})"


def describe_torchvision() -> str:
    """Report if torchvision is missing (which is fine), works or is broken (which makes transformers fail)."""
    version = _version("torchvision")
    if version == "not installed":
        return "not installed (it is optional)"
    error = _import_error("torchvision")
    if error is None:
        return f"{version}, works"
    return (
        f"{version}, installed but BROKEN ({error}); transformers fails with it: "
        f"pip uninstall torchvision, or install the build that matches torch {torch.__version__}"
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _import_error(module: str) -> str | None:
    # In a separate process: an extension built for another PyTorch may crash the interpreter.
    command = [sys.executable, "-c", f"import {module}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"import failed: {error}"
    if result.returncode == 0:
        return None
    return (result.stderr.strip().splitlines() or [f"import ended with exit code {result.returncode}"])[-1]


def _runs_bf16(device: str) -> bool:
    try:
        torch.ones(2, 2, device=device, dtype=torch.bfloat16).sum()
    except (RuntimeError, TypeError):
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
