"""Statistics of how often codes are used."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_mim.modeling.quantizer_vqkd import code_statistics


def test_counts_by_hand():
    # Shares 1/2, 1/4, 1/4: the entropy is 1.5 bits.
    statistics = code_statistics(torch.tensor([4, 0, 2, 2, 0]))
    assert statistics == pytest.approx(
        {"codebook_usage": 0.6, "perplexity": 2**1.5, "dead_codes": 2, "majority_code": 0.5}
    )


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=50).filter(any), st.integers(2, 9))
def test_ranges(counts, factor):
    counts = torch.tensor(counts)
    statistics = code_statistics(counts)
    used = int((counts > 0).sum())
    assert statistics["dead_codes"] == len(counts) - used
    assert statistics["codebook_usage"] == pytest.approx(used / len(counts))
    assert 1 - 1e-9 <= statistics["perplexity"] <= used * (1 + 1e-9)
    assert 1 / used - 1e-9 <= statistics["majority_code"] <= 1
    # Only the shares matter.
    assert code_statistics(counts * factor) == pytest.approx(statistics)


def test_extremes():
    assert code_statistics(torch.full((8192,), 3))["perplexity"] == pytest.approx(8192)
    assert code_statistics(torch.tensor([0, 7]))["perplexity"] == 1
    assert code_statistics(torch.zeros(4, dtype=torch.int64)) == {
        "codebook_usage": 0,
        "perplexity": 0,
        "dead_codes": 4,
        "majority_code": 0,
    }
    # More choices than float32 can count one by one.
    counts = torch.tensor([2**40 + 1, 2**40 - 1])
    assert code_statistics(counts)["perplexity"] == pytest.approx(2, rel=1e-12)
    assert math.isclose(code_statistics(counts)["majority_code"], (2**40 + 1) / 2**41, rel_tol=1e-15)


@pytest.mark.parametrize("counts", [torch.zeros(0), torch.ones(2, 3), torch.tensor([1, -1])])
def test_what_is_not_a_row_of_counts_is_refused(counts):
    with pytest.raises(ValueError, match="counts must be one non-negative number per code, got shape"):
        code_statistics(counts)
