"""Invariants of the relative position bias and of its resizing, for windows of any shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from hf_mim import Beitv2Config
from hf_mim.modeling.relative_position_beitv2 import Beitv2RelativePositionBias, spline_matrix


sides = st.integers(1, 9)
windows = st.tuples(sides, sides)


def filled(grid: tuple[int, int], seed: int = 0) -> Beitv2RelativePositionBias:
    config = Beitv2Config(hidden_size=2, num_attention_heads=2, patch_size=1, image_size=list(grid))
    bias = Beitv2RelativePositionBias(config)
    torch.nn.init.normal_(bias.relative_position_bias_table, generator=torch.Generator().manual_seed(seed))
    return bias


def index_of(grid: tuple[int, int]) -> torch.Tensor:
    """Row of the table for every pair of tokens, by the definition (SPEC 1.1)."""
    height, width = grid
    length = (2 * height - 1) * (2 * width - 1) + 3
    rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    patches = (rows[:, None] - rows + height - 1) * (2 * width - 1) + columns[:, None] - columns + width - 1
    index = torch.full((1 + height * width, 1 + height * width), length - 3)
    index[1:, 0], index[0, 0] = length - 2, length - 1
    index[1:, 1:] = patches
    return index


@given(windows)
@settings(max_examples=30, deadline=None)
def test_values_and_gradients_are_those_of_the_index(grid):
    bias = filled(grid)
    table = bias.relative_position_bias_table
    expected = table[index_of(grid)].permute(2, 0, 1).unsqueeze(0)
    actual = bias(grid)
    assert torch.equal(actual, expected)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (wanted,) = torch.autograd.grad((expected * weights).sum(), table)
    (gradient,) = torch.autograd.grad((actual * weights).sum(), table)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5)


@given(sides, sides)
@settings(max_examples=50, deadline=None)
def test_a_spline_keeps_constants_symmetry_and_the_middle(known, wanted):
    known, wanted = 2 * known - 1, 2 * wanted - 1
    matrix = spline_matrix(known, wanted)
    assert matrix.dtype == torch.float64 and matrix.shape == (wanted, known)
    torch.testing.assert_close(matrix.sum(1), torch.ones(wanted, dtype=torch.float64))
    torch.testing.assert_close(matrix.flip(0, 1), matrix)
    middle = torch.nn.functional.one_hot(torch.tensor(known // 2), known).double()
    torch.testing.assert_close(matrix[wanted // 2], middle)
    if known == wanted:
        assert torch.equal(matrix, torch.eye(known, dtype=torch.float64))


@given(windows, windows)
@settings(max_examples=30, deadline=None)
def test_each_axis_is_resized_by_itself(known, wanted):
    """First the rows, then the columns, in either order; a window that is turned gives a table that is turned."""
    bias, middle = filled(known), (wanted[0], known[1])
    direct = bias.resized_table(wanted)
    assert torch.equal(direct[-3:], bias.relative_position_bias_table[-3:])
    turned = filled(known[::-1])
    with torch.no_grad():
        offsets = bias.relative_position_bias_table[:-3].unflatten(0, [2 * side - 1 for side in known])
        turned.relative_position_bias_table[:-3] = offsets.transpose(0, 1).flatten(0, 1)
        turned.relative_position_bias_table[-3:] = bias.relative_position_bias_table[-3:]
        expected = turned.resized_table(wanted[::-1])[:-3].unflatten(0, [2 * side - 1 for side in wanted[::-1]])
    torch.testing.assert_close(direct[:-3], expected.transpose(0, 1).flatten(0, 1))
    bias.resize(middle)
    bias.resize(wanted)
    torch.testing.assert_close(bias.relative_position_bias_table.data, direct.data, rtol=1e-5, atol=1e-5)
    assert torch.equal(bias(wanted), bias.relative_position_bias_table[index_of(wanted)].permute(2, 0, 1)[None])


def test_inference_first_and_training_later():
    bias = filled((3, 4))
    with torch.inference_mode():
        bias((5, 4))
    bias((5, 4)).sum().backward()
    assert bias.relative_position_bias_table.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(dtype):
    bias = filled((3, 4)).to(dtype)
    assert bias((5, 4)).dtype == dtype
    torch.testing.assert_close(bias((5, 4)).float(), filled((3, 4))((5, 4)), rtol=1e-2, atol=2e-2)


class NoDouble(TorchDispatchMode):
    """A device without double precision, but for matrices that are made and converted on the CPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        assert output.dtype != torch.float64 or "spline_matrix" in str(function), function
        return output


@torch.no_grad()
def test_devices_without_double_precision(monkeypatch):
    bias = filled((3, 4))
    expected = bias.resized_table((5, 4))
    monkeypatch.setattr("hf_mim.modeling.relative_position_beitv2.WITHOUT_DOUBLE", ("cpu",))
    with NoDouble(), torch.autocast("cpu", torch.bfloat16):
        actual = bias.resized_table((5, 4))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


def test_a_frozen_table_stays_frozen():
    bias = filled((3, 4)).requires_grad_(False)
    bias.resize((4, 4))
    assert not bias.relative_position_bias_table.requires_grad and bias.grid_size == (4, 4)
