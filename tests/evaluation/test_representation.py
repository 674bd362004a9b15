"""Label-free statistics on features whose value is known in closed form."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mim.evaluation.representation import feature_std, rankme


def test_feature_std_of_axis_pairs_is_one():
    # +-e_i: zero mean, and each dimension has variance 1/D
    axes = torch.cat([torch.eye(6), -torch.eye(6)])
    assert feature_std(axes) == pytest.approx(1.0, abs=1e-12)
    assert feature_std(axes * torch.arange(1, 13)[:, None]) == pytest.approx(1.0, abs=1e-12)


def test_feature_std_of_one_direction_is_zero():
    line = torch.tensor([[3.0, 4.0]]) * torch.tensor([[1.0], [2.0], [0.5]])
    assert feature_std(line) == pytest.approx(0.0, abs=1e-7)


def test_feature_std_of_axes_in_one_orthant():
    # e_i without their negatives: variance 1/D (1 - 1/D) per dimension
    assert feature_std(torch.eye(4)) == pytest.approx(math.sqrt(1 - 1 / 4), abs=1e-12)


def test_rankme_of_orthogonal_features_is_their_number():
    assert rankme(7.0 * torch.eye(8)) == pytest.approx(8.0, abs=1e-4)
    assert rankme(torch.eye(8)[:3]) == pytest.approx(3.0, abs=1e-4)


def test_rankme_of_two_unequal_directions():
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert rankme(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(math.exp(entropy), abs=1e-5)


def test_rankme_of_a_line_and_of_zeros_is_one():
    assert rankme(torch.arange(1.0, 6)[:, None] * torch.ones(1, 16)) == pytest.approx(1.0, abs=1e-4)
    assert rankme(torch.zeros(5, 3)) == 1.0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 12), st.integers(0, 1000))
def test_ranges_and_scale_invariance(n, dimensions, seed):
    features = torch.randn(n, dimensions, generator=torch.Generator().manual_seed(seed))
    assert -1e-9 <= feature_std(features) <= 1 + 1e-9
    assert 1 - 1e-4 <= rankme(features) <= min(n, dimensions) + 1e-3
    assert rankme(10 * features) == pytest.approx(rankme(features), abs=1e-5)
    assert feature_std(10 * features) == pytest.approx(feature_std(features), abs=1e-6)


@pytest.mark.parametrize("function", [feature_std, rankme])
def test_bad_features_are_refused(function):
    with pytest.raises(ValueError, match="non-empty"):
        function(torch.zeros(0, 4))
    with pytest.raises(ValueError, match="NaN"):
        function(torch.tensor([[float("nan"), 1.0]]))
