import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from data.synthetic import synthetic_arrhythmia, synthetic_ptb
from pretrain.probe import SAMPLE_OF_CLASS, Probe, effective_rank, linear_recall, neighbour_recall, spread


def blobs(sizes: tuple[int, ...], apart: float, dim: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of classes of these sizes, their centres `apart` standard deviations from the origin."""
    torch.manual_seed(seed)
    target = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return torch.randn(len(target), dim) + apart * torch.eye(dim)[target], target


@pytest.mark.parametrize("sizes", [(50, 50), (200, 30, 12)])
def test_separable_features_are_read_and_others_are_guessed(sizes: tuple[int, ...]) -> None:
    assert linear_recall(*blobs(sizes, 12.0), seed=0) == neighbour_recall(*blobs(sizes, 12.0)) == 1
    guessed = [blobs(sizes, 0.0, seed=seed) for seed in range(5)]
    for read in (lambda x, y: linear_recall(x, y, 0), neighbour_recall):
        assert np.mean([read(*features) for features in guessed]) == pytest.approx(1 / len(sizes), abs=0.12)


def test_the_linear_probe_is_balanced_logistic_regression_by_folds_of_standardised_features() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    features, target = blobs((90, 20, 11), 1.5)
    features = features * torch.tensor([100.0, 1, 1, 0.01, 1, 1]) + 7
    x, y, right = features.numpy(), target.numpy(), np.zeros(3)
    for train, test in StratifiedKFold(5, shuffle=True, random_state=3).split(x, y):
        mean, std = x[train].mean(0), x[train].std(0)
        weight = {label: len(train) / (3 * (y[train] == label).sum()) for label in range(3)}
        fitted = LogisticRegression(class_weight=weight, tol=1e-8, max_iter=1000).fit((x[train] - mean) / std, y[train])
        predicted = fitted.predict((x[test] - mean) / std)
        right += [((predicted == label) & (y[test] == label)).sum() for label in range(3)]
    expected = (right / np.bincount(y)).mean()
    assert 0.4 < expected < 0.95
    assert linear_recall(features, target, 3) == pytest.approx(expected)


def test_a_class_of_fewer_beats_than_folds_is_read_without_a_warning() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        recall = linear_recall(*blobs((40, 30, 1), 12.0), seed=0)
    assert said == []
    assert recall == pytest.approx(2 / 3)


def neighbours_by_hand(features: Tensor, target: Tensor, count: int) -> float:
    x = features.double().numpy()
    x = (x - x.mean(0)) / x.std(0, ddof=1)
    size, y = np.bincount(target), target.numpy()
    right = np.zeros(len(size))
    for mine in range(len(x)):
        likeness = {
            other: x[mine] @ x[other] / np.linalg.norm(x[mine]) / np.linalg.norm(x[other])
            for other in range(len(x))
            if other != mine
        }
        votes = np.zeros(len(size))
        for other in sorted(likeness, key=lambda other: -likeness[other])[:count]:
            votes[y[other]] += 1 / size[y[other]]
        right[y[mine]] += votes.argmax() == y[mine]
    return float((right[size > 0] / size[size > 0]).mean())


@pytest.mark.parametrize("sizes", [(80, 23, 0, 7), (5, 4), (60, 61)])
def test_the_neighbours_vote_balanced_by_class(sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    features, target = blobs(sizes, 1.5)
    expected = neighbours_by_hand(features, target, min(20, len(target) - 1))
    assert neighbour_recall(features, target) == pytest.approx(expected)
    monkeypatch.setattr("pretrain.probe.NEIGHBOURS_AT_ONCE", 7)
    assert neighbour_recall(features, target) == pytest.approx(expected)
    assert neighbour_recall(features * torch.arange(1, 7) + 3, target) == pytest.approx(expected)


def test_effective_rank_is_the_exponential_of_the_entropy_of_the_singular_values() -> None:
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 3, 1, 1, 0.1, 0.1])
    x = features.double().numpy()
    share = np.linalg.svd(x - x.mean(0), compute_uv=False)
    share /= share.sum()
    assert effective_rank(features) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)


@pytest.mark.parametrize("dim", [1, 3, 8])
def test_orthonormal_features_fill_every_direction(dim: int) -> None:
    features = torch.cat([torch.eye(dim), -torch.eye(dim)]) + 5
    assert effective_rank(features) == pytest.approx(dim, rel=1e-5)


def test_a_line_or_a_point_fills_one_direction() -> None:
    line = torch.linspace(-1, 1, 30)[:, None] * torch.tensor([1.0, 2.0, -3.0]) + 1
    assert effective_rank(line) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.full((30, 4), 0.5)) == 1


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_spread_is_none_of_equal_beats_and_one_of_every_direction(scale: float) -> None:
    isotropic = scale * torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert spread(isotropic) == pytest.approx(1, abs=0.02)
    assert spread(isotropic[:1].repeat(30, 1)) == pytest.approx(0, abs=1e-6)
    assert spread(torch.zeros(30, 4)) == 0
    assert spread(isotropic + 100 * scale) < 0.02


def test_a_reading_without_labels_judges_the_embedding_alone() -> None:
    beats = synthetic_ptb(40, 0)
    features = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    labelled = Probe(beats, 0).read(features)
    assert labelled.linear == linear_recall(features, beats.labels, 0)
    assert labelled.neighbours == neighbour_recall(features, beats.labels)
    unlabelled = Probe(replace(beats, target=None), 0).read(features)
    assert (unlabelled.linear, unlabelled.neighbours) == (None, None)
    assert unlabelled.effective_rank == labelled.effective_rank and unlabelled.spread == labelled.spread
    assert all(math.isfinite(value) for value in (unlabelled.effective_rank, unlabelled.spread))


def test_a_sample_has_beats_of_every_class() -> None:
    probe = Probe(synthetic_arrhythmia(4000, 0), 0)
    sample = probe.sample()
    assert len(sample.beats) == 2048
    for name, count in probe.beats.counts().items():
        assert sample.beats.counts()[name] >= min(count, SAMPLE_OF_CLASS)
    assert sample.sample() is sample
