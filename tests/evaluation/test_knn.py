"""Weighted k-NN: the original's numbers, hand-made votes, ties and odd sizes."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mim.evaluation.knn import knn_accuracy, knn_classify


def brute_force(train, labels, test, k, temperature, num_classes):
    """Ranked classes by plain Python loops over exactly representable similarities."""
    rows = []
    for query in test.tolist():
        similarities = [sum(a * b for a, b in zip(query, row, strict=True)) for row in train.tolist()]
        nearest = sorted(range(len(similarities)), key=lambda i: (-similarities[i], i))[:k]
        votes = {}
        for i in nearest:
            votes[int(labels[i])] = votes.get(int(labels[i]), 0.0) + math.exp(similarities[i] / temperature)
        ranked = sorted(votes, key=lambda c: (-votes[c], c))[:5]
        rows.append((ranked + [-1] * 5)[: min(5, num_classes)])
    return torch.tensor(rows)


def test_golden_accuracies(ibot_golden):
    tensors, description = ibot_golden("knn")
    for expected in description["results"]:
        k = expected["k"]
        metrics = knn_accuracy(
            tensors["train_features"],
            tensors["train_labels"],
            tensors["test_features"],
            tensors["test_labels"],
            k,
            temperature=expected["T"],
            num_classes=expected["num_classes"],
        )
        assert metrics[f"knn_{k}_top1"] == pytest.approx(expected["top1"], abs=1e-9)
        if k >= 20:
            assert metrics[f"knn_{k}_top5"] == pytest.approx(expected["top5"], abs=1e-9)


def test_several_k_in_one_pass_equal_single_passes(ibot_golden):
    tensors, _ = ibot_golden("knn")
    arguments = [tensors[name] for name in ("train_features", "train_labels", "test_features")]
    together = knn_classify(*arguments, k=[200, 10, 20])
    assert list(together) == [10, 20, 200]
    for k, ranking in together.items():
        torch.testing.assert_close(ranking, knn_classify(*arguments, k=k)[k], rtol=0, atol=0)


# rows of length 4 with entries +-1 have norm 2, so that every cosine is a multiple of 1/4 and most of them tie
signs = st.lists(st.sampled_from([-1.0, 1.0]), min_size=4, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    train=st.lists(st.tuples(signs, st.integers(0, 6)), min_size=1, max_size=25),
    test=st.lists(signs, min_size=1, max_size=8),
    k=st.integers(1, 30),
    query_chunk=st.integers(1, 9),
    bank_chunk=st.integers(1, 26),
)
def test_ties_and_chunks_agree_with_brute_force(train, test, k, query_chunk, bank_chunk):
    features = torch.tensor([row for row, _ in train])
    labels = torch.tensor([label for _, label in train])
    queries = torch.tensor(test)
    ranking = knn_classify(
        features, labels, queries, k, 0.5, num_classes=7, query_chunk_size=query_chunk, bank_chunk_size=bank_chunk
    )[k]
    assert torch.equal(ranking, brute_force(features / 2, labels, queries / 2, k, 0.5, 7))


def test_chunk_sizes_do_not_change_the_ranking_of_real_valued_features():
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(301, 33, generator=generator)
    train[150:] = train[:151].clone()  # every neighbor has a twin, under another label
    labels = torch.randint(0, 12, (301,), generator=generator)
    test = torch.randn(40, 33, generator=generator)
    whole = knn_classify(train, labels, test, [1, 5, 50])
    for query_chunk, bank_chunk in [(1, 7), (13, 64), (40, 300)]:
        parts = knn_classify(train, labels, test, [1, 5, 50], query_chunk_size=query_chunk, bank_chunk_size=bank_chunk)
        for k in whole:
            assert torch.equal(parts[k], whole[k])


def test_duplicates_resolve_to_the_lowest_index():
    train = torch.tensor([[0.6, 0.8]]).repeat(5, 1)
    labels = torch.tensor([3, 0, 1, 2, 0])
    assert knn_classify(train, labels, train[:1], 1)[1].tolist() == [[3, -1, -1, -1]]
    # one vote each from bank rows 0..2: equal votes, lowest class id first
    assert knn_classify(train, labels, train[:1], 3)[3].tolist() == [[0, 1, 3, -1]]


def test_one_near_neighbor_outvotes_two_far_ones_only_at_a_low_temperature():
    train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])
    labels = torch.tensor([0, 1, 1])
    query = torch.tensor([[5.0, 0.0]])  # normalized by the function
    assert knn_classify(train, labels, query, 3, temperature=0.07)[3].tolist() == [[0, 1]]
    # 2 exp(0.6 / T) > exp(1 / T)  <=>  T > 0.4 / log 2 = 0.577
    assert knn_classify(train, labels, query, 3, temperature=0.57)[3].tolist() == [[0, 1]]
    assert knn_classify(train, labels, query, 3, temperature=0.58)[3].tolist() == [[1, 0]]


def test_tiny_temperature_does_not_overflow():
    train = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6], [-1.0, 0.0]])
    ranking = knn_classify(train, torch.tensor([2, 0, 0, 1]), train[:1], 4, temperature=1e-4)[4]
    assert ranking.tolist() == [[2, 0, 1]]


def test_more_neighbors_than_images_means_the_whole_bank():
    train = torch.eye(3)
    labels = torch.tensor([0, 1, 2])
    both = knn_classify(train, labels, train, [3, 200])
    assert torch.equal(both[3], both[200])
    assert knn_accuracy(train, labels, train, labels, [3, 7, 200]) == {"knn_3_top1": 100.0, "knn_3_top5": 100.0}


@pytest.mark.parametrize("highest", [30_000_000, 10**12, 2**63 - 1])
def test_numbers_of_classes_may_be_high(highest):
    """Memory depends on the classes that occur, not on their numbers."""
    train, labels = torch.eye(3), torch.tensor([5, highest, highest - 1])
    assert knn_classify(train, labels, train, 3, temperature=0.1)[3].tolist() == [
        [5, highest - 1, highest, -1, -1],
        [highest, 5, highest - 1, -1, -1],
        [highest - 1, 5, highest, -1, -1],
    ]
    assert knn_accuracy(train, labels, train, labels, 1)["knn_1_top1"] == 100


def test_a_class_without_votes_is_never_a_top5_hit():
    train = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]])
    metrics = knn_accuracy(
        train, torch.tensor([0, 0, 1]), torch.tensor([[1.0, 0.0]]), torch.tensor([1]), [2, 3], num_classes=3
    )
    assert metrics == {"knn_2_top1": 0.0, "knn_2_top5": 0.0, "knn_3_top1": 0.0, "knn_3_top5": 100.0}


def test_one_class_and_one_query():
    train = F.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    zeros = torch.zeros(4, dtype=torch.long)
    assert knn_classify(train, zeros, train[:1], 2)[2].tolist() == [[0]]
    assert knn_accuracy(train, zeros, train[:1], zeros[:1], 2) == {"knn_2_top1": 100.0, "knn_2_top5": 100.0}


def test_a_test_class_that_the_bank_lacks_counts_as_wrong():
    labels = torch.tensor([0, 1])
    assert knn_accuracy(torch.eye(2), labels, torch.eye(2), torch.tensor([0, 7]), 1)["knn_1_top1"] == 50.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "at least 1"),
        ({"k": []}, "at least 1"),
        ({"temperature": 0.0}, "temperature must be a finite number above 0"),
        ({"temperature": float("nan")}, "temperature must be a finite number above 0"),
        ({"temperature": float("inf")}, "temperature must be a finite number above 0"),
        ({"num_classes": 1}, "hold class 1, but num_classes is 1"),
        ({"train_features": torch.tensor([[1.0, float("nan")], [0.0, 1.0]])}, "train_features contain NaN"),
        ({"train_features": torch.zeros(0, 2)}, "train_features must be a non-empty"),
        ({"test_features": torch.zeros(2, 3)}, "same model"),
        ({"train_labels": torch.tensor([0, 1, 1])}, r"train_labels must be integers \[2\]"),
        ({"train_labels": torch.tensor([0, -1])}, "train_labels hold -1"),
        ({"test_labels": torch.tensor([-1, 0])}, "test_labels hold -1"),
    ],
)
def test_bad_input_is_named(change, message):
    labels = torch.tensor([0, 1])
    good = {
        "train_features": torch.eye(2),
        "train_labels": labels,
        "test_features": torch.eye(2),
        "test_labels": labels,
        "k": 1,
    }
    with pytest.raises(ValueError, match=message):
        knn_accuracy(**good | change)
