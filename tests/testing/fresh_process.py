"""Running a script where this package is not installed, as far as the script can tell."""

import os
import subprocess
import sys


# An entry of None is how Python notes that a module cannot be imported.
WITHOUT_THIS_PACKAGE = "import sys; sys.modules['hf_mim'] = sys.modules['hf_mim_cli'] = None\n"


def run_fresh(script: str, environment: dict[str, str] | None = None, timeout: float = 120) -> str:
    """
    Standard output of `script` in a new Python process in which `import hf_mim` fails.

    Args:
        script: Python code; it counts as failed when it raises.
        environment: Variables that the process gets beside those of this one.
        timeout: Seconds until the process is ended.

    Raises:
        AssertionError: If the script fails, with what it wrote to standard error.
        subprocess.TimeoutExpired: If it takes longer.
    """
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_THIS_PACKAGE + script],
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout
