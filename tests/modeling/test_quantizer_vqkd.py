"""The VQ-KD codebook against traces of the original code, and what must hold for any vectors."""

import copy
import logging

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mim.modeling.configuration_vqkd import VQKDConfig
from hf_mim.modeling.quantizer_vqkd import (
    VQKDQuantizer,
    counts_and_sums,
    mean_directions,
    most_similar,
    spherical_kmeans,
)


EXACT = {"rtol": 1e-5, "atol": 1e-6}


def make_quantizer(codebook: torch.Tensor | None = None, **options) -> VQKDQuantizer:
    """A quantizer with 16 codes of 8 channels, in training mode."""
    quantizer = VQKDQuantizer(VQKDConfig(**{"codebook_size": 16, "codebook_dim": 8} | options))
    if codebook is not None:
        quantizer.codebook.copy_(codebook)
        quantizer.initialized.fill_(True)
    return quantizer.train()


def unit_vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    vectors = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=-1)


def last(channels_first: torch.Tensor) -> torch.Tensor:
    """`[B, C, h, w]` to `[B, N, C]`."""
    return channels_first.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("name, decay", [("quantizer_train_trace", 0.99), ("quantizer_train_trace_decay09", 0.9)])
@pytest.mark.parametrize("accumulated", [False, True])
def test_training_trace(beitv2_golden, name, decay, accumulated):
    """Three steps; `accumulated` gives each step's images one by one, with one update for both."""
    golden = beitv2_golden(name)
    quantizer = make_quantizer(golden["in/codebook"], codebook_decay=decay)
    for step in range(3):
        expected = {k.removeprefix(f"step_{step}/"): v for k, v in golden.items() if k.startswith(f"step_{step}/")}
        features = last(expected["in_z"]).requires_grad_()
        before = quantizer.codebook.clone()
        if accumulated:
            parts = [quantizer(image) for image in features.split(1)]
            quantized, codes, losses = map(list, zip(*parts, strict=True))
            quantized, codes, loss = torch.cat(quantized), torch.cat(codes), torch.stack(losses).mean()
        else:
            quantized, codes, loss = quantizer(features)
        assert torch.equal(quantizer.codebook, before)
        assert torch.equal(codes.flatten(), expected["out_indices"])
        torch.testing.assert_close(quantized, last(expected["out_zq"]), **EXACT)
        torch.testing.assert_close(loss, expected["out_loss"], **EXACT)
        for output, gradient, name_ in (
            (quantized, last(expected["in_grad_out"]), "grad_straight_through"),
            (loss, None, "grad_commitment"),
        ):
            (actual,) = torch.autograd.grad(output, features, gradient, retain_graph=True)
            torch.testing.assert_close(actual, last(expected[name_]), **EXACT)
        assert torch.equal(quantizer.update_codebook(), expected["bins"])
        torch.testing.assert_close(quantizer.codebook, expected["out_codebook"], **EXACT)
        torch.testing.assert_close(quantizer.usage, expected["out_cluster_size"], **EXACT)

    before = copy.deepcopy(quantizer.eval().state_dict())
    quantized, codes, loss = quantizer(last(golden["eval/in_z"]))
    assert torch.equal(codes.flatten(), golden["eval/out_indices"])
    assert torch.equal(quantizer.encode(last(golden["eval/in_z"])), codes)
    torch.testing.assert_close(quantized, last(golden["eval/out_zq"]), **EXACT)
    torch.testing.assert_close(loss, golden["eval/out_loss"], **EXACT)
    # The original's usage moves in evaluation too.
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())
    with pytest.raises(ValueError, match="training mode"):
        quantizer.update_codebook()


@pytest.mark.parametrize("name", ["kmeans_init", "kmeans_init_few_samples"])
def test_kmeans_and_first_step(beitv2_golden, name, monkeypatch):
    golden = beitv2_golden(name)
    samples, initial = golden["in/samples"], golden["in/initial_means"]
    means, counts = spherical_kmeans(samples, initial)
    torch.testing.assert_close(means, golden["out/means"], **EXACT)
    assert torch.equal(counts, golden["out/bins"])

    # The recorded choice of the initial means, instead of a random one.
    chosen = (initial @ samples.t()).argmax(1)
    torch.testing.assert_close(samples[chosen], initial, **EXACT)
    few = len(samples) < len(initial)
    rest = torch.tensor([i for i in range(len(samples)) if i not in chosen.tolist()], dtype=torch.int64)
    choice = chosen if few else torch.cat((chosen, rest))
    monkeypatch.setattr(torch, "randint" if few else "randperm", lambda *_: choice)
    quantizer = make_quantizer()
    assert not quantizer.initialized
    quantized, codes, loss = quantizer(last(golden["in/z"]))
    assert quantizer.initialized
    assert torch.equal(codes.flatten(), golden["out/first_forward_indices"])
    torch.testing.assert_close(quantized, last(golden["out/first_forward_zq"]), **EXACT)
    torch.testing.assert_close(loss, golden["out/first_forward_loss"], **EXACT)
    quantizer.update_codebook()
    torch.testing.assert_close(quantizer.codebook, golden["out/codebook_after_first_train_forward"], **EXACT)
    torch.testing.assert_close(quantizer.usage, golden["out/quantize.cluster_size"], **EXACT)


def test_few_samples_are_reported(caplog):
    logging.getLogger("transformers").propagate = True
    quantizer = make_quantizer()
    with caplog.at_level(logging.WARNING, logger="transformers"):
        quantizer(unit_vectors(10, 8))
    assert "10 patches for a codebook of 16" in caplog.text
    codes = quantizer.codebook.unique(dim=0)
    assert len(codes) <= 10 and torch.isfinite(codes).all()


def test_no_codebook_no_codes():
    quantizer = make_quantizer()
    for call in (quantizer.eval(), quantizer.encode):
        with pytest.raises(ValueError, match="no codebook yet"):
            call(unit_vectors(3, 8))
    quantizer.load_state_dict(make_quantizer(unit_vectors(16, 8)).state_dict())
    assert quantizer.encode(quantizer.codebook).tolist() == list(range(16))
    quantizer.load_state_dict(make_quantizer().state_dict())
    with pytest.raises(ValueError, match="no codebook yet"):
        quantizer.encode(unit_vectors(3, 8))


vectors = st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(1, 6), st.integers(0, 2**31))


@given(vectors)
@settings(deadline=None, max_examples=50)
def test_sums_equal_one_hot_arithmetic(sizes):
    num_samples, num_codes, channels, seed = sizes
    samples = unit_vectors(num_samples, channels, seed=seed)
    codes = torch.randint(0, num_codes, (num_samples,), generator=torch.Generator().manual_seed(seed))
    one_hot = torch.nn.functional.one_hot(codes, num_codes).float()
    counts, sums = counts_and_sums(samples, codes, num_codes)
    assert torch.equal(counts, one_hot.sum(0).long())
    torch.testing.assert_close(sums, one_hot.t() @ samples, rtol=1e-5, atol=1e-5)


@given(vectors)
@settings(deadline=None, max_examples=50)
def test_codes_have_the_smallest_distance(sizes):
    num_samples, num_codes, channels, seed = sizes
    codebook = unit_vectors(max(num_codes, 2), channels, seed=seed)
    samples = unit_vectors(num_samples, channels, seed=seed + 1)
    quantizer = make_quantizer(codebook, codebook_size=len(codebook), codebook_dim=channels)
    codes = quantizer.encode(3 * samples)
    distances = torch.cdist(samples.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(distances.gather(1, codes[:, None])[:, 0], distances.min(1).values, rtol=0, atol=1e-3)
    assert (distances.square().gather(1, codes[:, None])[:, 0] - distances.square().min(1).values).max() < 1e-6


@given(vectors)
@settings(deadline=None, max_examples=50)
def test_the_lowest_index_wins_a_tie(sizes):
    """Small whole numbers, whose scores are exact and often equal."""
    num_samples, num_codes, channels, seed = sizes
    generator = torch.Generator().manual_seed(seed)
    samples, codebook = (torch.randint(-1, 2, (n, channels), generator=generator) for n in (num_samples, num_codes))
    scores = (samples @ codebook.t()).tolist()
    expected = [row.index(max(row)) for row in scores]
    assert most_similar(samples.float(), codebook.float()).tolist() == expected


def test_scores_are_made_piece_by_piece(monkeypatch):
    samples, codebook = unit_vectors(100, 8), unit_vectors(16, 8, seed=1)
    expected = most_similar(samples, codebook)
    assert torch.equal(expected, (samples @ codebook.t()).argmax(1))
    monkeypatch.setattr("hf_mim.modeling.quantizer_vqkd.SCORES_ON_CPU", 16 * 7)
    assert torch.equal(most_similar(samples, codebook), expected)


def test_unused_codes_keep_their_vector():
    counts, sums, before = torch.tensor([2, 0]), torch.tensor([[0.0, 4.0], [0.0, 0.0]]), torch.eye(2)
    assert mean_directions(counts, sums, before).tolist() == [[0.0, 1.0], [0.0, 1.0]]
    codebook = torch.eye(8)[:4]
    quantizer = make_quantizer(codebook, codebook_size=4, codebook_decay=0.5)
    for _ in range(5):
        quantizer(codebook[:2] + 0.1 * codebook[2:3])
        assert quantizer.update_codebook().tolist() == [1, 1, 0, 0]
    assert torch.equal(quantizer.codebook[2:], codebook[2:])
    assert (quantizer.codebook[:2, 2] > 0.05).all()
    torch.testing.assert_close(quantizer.usage, torch.tensor([1 - 0.5**5] * 2 + [0.0] * 2))


def test_half_precision_is_left_to_the_rest_of_the_model():
    codebook, features = unit_vectors(16, 8), unit_vectors(200, 8, seed=1)
    expected = make_quantizer(codebook)(features)
    with torch.autocast("cpu", torch.bfloat16):
        actual = make_quantizer(codebook)(features)
        assert torch.equal(make_quantizer(codebook).encode(features), expected[1])
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


def test_idle_codes_are_revived():
    """Code 1 is opposite to all vectors: after three steps it becomes one of them; a resumed run does the same."""
    codebook = unit_vectors(2, 8)
    codebook[1] = -codebook[0]
    quantizer = make_quantizer(codebook, codebook_size=2, revive_after_steps=3)
    batches = [torch.nn.functional.normalize(codebook[0] + 0.1 * unit_vectors(20, 8, seed=i), dim=1) for i in range(4)]
    torch.manual_seed(0)
    for step in range(3):
        if step == 2:
            saved, state = copy.deepcopy(quantizer.state_dict()), torch.get_rng_state()
            assert torch.equal(quantizer.codebook[1], codebook[1]) and quantizer.idle_steps.tolist() == [0, 2]
        # Both halves of an accumulated batch are candidates.
        quantizer(batches[step][:10])
        quantizer(batches[step][10:])
        quantizer.update_codebook()
    assert (batches[2] == quantizer.codebook[1]).all(1).any()
    assert quantizer.idle_steps.tolist() == [0, 0]

    resumed = make_quantizer(torch.zeros(2, 8), codebook_size=2, revive_after_steps=3)
    resumed.load_state_dict(saved)
    torch.set_rng_state(state)
    resumed(batches[2][:10])
    resumed(batches[2][10:])
    resumed.update_codebook()
    assert torch.equal(resumed.codebook, quantizer.codebook)
    resumed(batches[3])
    assert resumed.update_codebook().min() > 0


def test_more_idle_codes_than_vectors():
    quantizer = make_quantizer(-unit_vectors(1, 8).expand(5, 8), codebook_size=5, revive_after_steps=1)
    samples = unit_vectors(1, 8).repeat(2, 1)
    quantizer(samples)
    quantizer.update_codebook()
    assert quantizer.idle_steps.tolist() == [0, 0, 0, 1, 1]
    assert (quantizer.codebook @ samples[0] > 0.9).tolist() == [False, True, True, False, False]


def run_steps(rank: int, world_size: int, revive: int) -> VQKDQuantizer:
    """K-means and six steps of which the process sees its share; each batch is 30 vectors near a few directions."""
    torch.manual_seed(0)
    quantizer = make_quantizer(codebook_size=8, codebook_decay=0.8, revive_after_steps=revive)
    for step in range(6):
        features = unit_vectors(3, 8, seed=7).repeat(10, 1) + 0.2 * unit_vectors(30, 8, seed=step)
        # Shares of different sizes: a third and two thirds.
        features = features if world_size == 1 else features.split([10, 20])[rank]
        quantizer(features)
        quantizer.update_codebook()
    return quantizer


def one_of_two(rank: int, folder: str):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for revive in (0, 2):
        torch.save(run_steps(rank, 2, revive).state_dict(), f"{folder}/{rank}_{revive}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    mp.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    for revive in (0, 2):
        first, second = (torch.load(tmp_path / f"{rank}_{revive}.pt") for rank in range(2))
        for name, value in run_steps(0, 1, revive).state_dict().items():
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6)
