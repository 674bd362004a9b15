"""Centring against the original's numbers, Sinkhorn–Knopp against what defines it."""

import pytest
import torch

from hf_mim.training.ibot_targets import CenteredTargets, sinkhorn_knopp


@pytest.mark.parametrize("name", ["loss_multicrop", "loss_nolocal_mimstart"])
def test_centers(ibot_golden, name):
    golden, description = ibot_golden(name)
    args, atol = description["args"], description["tolerance"]["centers atol"]
    targets = CenteredTargets(
        args["out_dim"], args["patch_out_dim"], args["center_momentum"], args["center_momentum2"]
    )
    for i, expected in enumerate(description["calls"]):
        cls, patch = golden[f"call{i}/teacher_cls"], golden[f"call{i}/teacher_patch"]
        before = targets.cls_center.clone()
        target_cls, target_patch = targets(cls, patch, expected["temp"], expected["temp_patch"])
        torch.testing.assert_close(target_cls, ((cls - before) / expected["temp"]).softmax(-1))
        torch.testing.assert_close(target_patch.sum(-1), torch.ones(patch.shape[:-1]))
        # In two halves, as with two accumulated batches.
        for half in (slice(0, None, 2), slice(1, None, 2)):
            targets.collect(cls[half].mean(0), patch[half].mean((0, 1)))
        targets.update()
        torch.testing.assert_close(targets.cls_center, golden[f"call{i}/center_after"][0], rtol=0, atol=atol)
        torch.testing.assert_close(targets.patch_center, golden[f"call{i}/center2_after"][0, 0], rtol=0, atol=atol)


def test_sinkhorn_rows_and_columns():
    torch.manual_seed(0)
    logits = torch.randn(64, 16, dtype=torch.float64)
    probs = sinkhorn_knopp(logits, temperature=0.5, iterations=200)
    torch.testing.assert_close(probs.sum(1), torch.ones(64, dtype=torch.float64))
    torch.testing.assert_close(probs.sum(0), torch.full((16,), 64 / 16, dtype=torch.float64))
    # The solution is a rescaling of rows and columns of exp(logits / temperature): its 2x2 odds ratios are unchanged.
    kernel = (logits / 0.5).exp()

    def odds(matrix):
        return matrix[:-1, :-1] * matrix[1:, 1:] / (matrix[:-1, 1:] * matrix[1:, :-1])

    torch.testing.assert_close(odds(probs), odds(kernel))


def test_sinkhorn_by_hand():
    """One round on [[1, 2], [3, 4]] = exp(logits): columns 4 and 6, then rows."""
    kernel = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    probs = sinkhorn_knopp(kernel.log(), temperature=1.0, iterations=1)
    columns = kernel / kernel.sum(0)
    torch.testing.assert_close(probs, columns / columns.sum(1, keepdim=True))


def test_sinkhorn_extremes():
    assert sinkhorn_knopp(torch.zeros(0, 8), 0.02).shape == (0, 8)
    # Cosines in [-1, 1] at temperature 0.002: exp of 500, far outside float32.
    sharp = sinkhorn_knopp(torch.eye(4), 0.002)
    torch.testing.assert_close(sharp, torch.eye(4))
    half = sinkhorn_knopp(torch.randn(4, 8).bfloat16(), 0.02)
    assert half.dtype == torch.float32 and torch.isfinite(half).all()
    # A collapsed batch still spreads over the prototypes: equal rows give equal, uniform targets.
    torch.testing.assert_close(sinkhorn_knopp(torch.ones(6, 3), 0.02), torch.full((6, 3), 1 / 3))
