import numpy as np
import pytest
import torch

from models.losses import weighted_cross_entropy


@pytest.mark.parametrize("weighted", [False, True])
def test_mean_over_beats_of_the_weighted_log_loss(weighted: bool) -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(7, 3)), rng.integers(0, 3, 7)
    weight = np.array([0.5, 1.0, 4.0]) if weighted else np.ones(3)
    total = 0.0
    for row, label in zip(logits, target, strict=True):
        total -= weight[label] * np.log(np.exp(row[label]) / np.exp(row).sum())
    class_weight = torch.tensor(weight, dtype=torch.float32) if weighted else None
    loss = weighted_cross_entropy(torch.tensor(logits), torch.tensor(target), class_weight)
    assert loss.item() == pytest.approx(total / 7, rel=1e-5)


def test_low_precision_logits_are_scored_in_float32() -> None:
    logits = torch.tensor([[8.0, 0.0]], dtype=torch.bfloat16)
    loss = weighted_cross_entropy(logits, torch.tensor([0]), None)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(np.log1p(np.exp(-8)), rel=1e-3)
