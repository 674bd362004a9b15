"""The process without this package: what it gives back, and what it does not have."""

import pytest

from tests.testing.fresh_process import run_fresh


def test_output_and_environment():
    assert run_fresh("import os; print(os.environ['WORD'])", {"WORD": "hello"}) == "hello\n"


@pytest.mark.parametrize("name", ["hf_mim", "hf_mim.modeling.layers", "hf_mim_cli"])
def test_this_package_is_not_there(name):
    with pytest.raises(AssertionError, match="ModuleNotFoundError: .*hf_mim"):
        run_fresh(f"import {name}")
