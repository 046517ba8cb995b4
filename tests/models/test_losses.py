import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.losses import LOSSES, LossOptions, check_loss, make_loss, weighted_cross_entropy

Floats = NDArray[np.float64]

COUNTS = np.array([900, 0, 40, 7, 2])
PRESENT = np.flatnonzero(COUNTS)
WEIGHT = np.array([0.5, 0.0, 3.0, 8.0, 20.0])


def log_probability(logits: Floats, target: NDArray[np.int64]) -> Floats:
    """(batch,): of the true class."""
    highest = logits.max(1, keepdims=True)
    logsumexp = highest + np.log(np.exp(logits - highest).sum(1, keepdims=True))
    return (logits - logsumexp)[np.arange(len(target)), target]


def by_cross_entropy(logits: Floats, target: NDArray[np.int64], weight: Floats, _options: LossOptions) -> Floats:
    return -weight[target] * log_probability(logits, target)


def by_focal(logits: Floats, target: NDArray[np.int64], weight: Floats, options: LossOptions) -> Floats:
    log_p = log_probability(logits, target)
    return -weight[target] * (1 - np.exp(log_p)) ** options.gamma * log_p


def by_class_balanced(logits: Floats, target: NDArray[np.int64], _weight: Floats, options: LossOptions) -> Floats:
    effective = {label: sum(options.beta**k for k in range(COUNTS[label])) for label in PRESENT}
    mean = sum(COUNTS[label] / effective[label] for label in PRESENT) / COUNTS.sum()
    return -np.array([1 / effective[label] / mean for label in target]) * log_probability(logits, target)


def by_ldam(logits: Floats, target: NDArray[np.int64], weight: Floats, options: LossOptions) -> Floats:
    lowered = logits.copy()
    for beat, label in enumerate(target):
        lowered[beat, label] -= options.margin * (COUNTS[PRESENT].min() / COUNTS[label]) ** 0.25
    return -weight[target] * log_probability(lowered, target)


def by_logit_adjusted(logits: Floats, target: NDArray[np.int64], weight: Floats, options: LossOptions) -> Floats:
    prior = np.maximum(COUNTS, 1) / COUNTS.sum()
    return -weight[target] * log_probability(logits + options.tau * np.log(prior), target)


EXPECTED: dict[str, Callable[[Floats, NDArray[np.int64], Floats, LossOptions], Floats]] = {
    "cross_entropy": by_cross_entropy,
    "focal": by_focal,
    "class_balanced": by_class_balanced,
    "ldam": by_ldam,
    "logit_adjusted": by_logit_adjusted,
}


def tensors(weighted: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Counts and class weights."""
    return torch.from_numpy(COUNTS), torch.tensor(WEIGHT, dtype=torch.float32) if weighted else None


def drawn(seed: int, size: int = 12) -> tuple[Floats, NDArray[np.int64]]:
    """Logits, and targets of the classes that are there."""
    rng = np.random.default_rng(seed)
    return 3 * rng.normal(size=(size, len(COUNTS))), rng.choice(PRESENT, size)


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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [LossOptions(), LossOptions(gamma=0.5, beta=0.9, margin=2.0, tau=0.3)], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_the_mean_over_beats_of_its_formula(
    name: str, weighted: bool, options: LossOptions, seed: int
) -> None:
    logits, target = drawn(seed)
    expected = EXPECTED[name](logits, target, WEIGHT if weighted else np.ones_like(WEIGHT), options).mean()
    loss = make_loss(name, *tensors(weighted), options)(torch.from_numpy(logits), torch.from_numpy(target))
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_rounds_no_more_than_its_logits_are(name: str) -> None:
    logits, target = drawn(4)
    low, loss = torch.from_numpy(logits).bfloat16(), make_loss(name, *tensors(True), LossOptions())
    of_low = loss(low, torch.from_numpy(target))
    assert of_low.dtype == torch.float32
    assert torch.equal(of_low, loss(low.float(), torch.from_numpy(target)))


@pytest.mark.parametrize(
    ("name", "options", "weighted"),
    [
        ("focal", LossOptions(gamma=0), False),
        ("focal", LossOptions(gamma=0), True),
        ("class_balanced", LossOptions(beta=0), False),
        ("ldam", LossOptions(margin=0), False),
        ("ldam", LossOptions(margin=0), True),
        ("logit_adjusted", LossOptions(tau=0), False),
        ("logit_adjusted", LossOptions(tau=0), True),
    ],
)
def test_without_its_option_a_loss_is_cross_entropy(name: str, options: LossOptions, weighted: bool) -> None:
    logits, target = map(torch.from_numpy, drawn(5))
    counts, class_weight = tensors(weighted)
    loss = make_loss(name, counts, class_weight, options)(logits, target)
    torch.testing.assert_close(loss, weighted_cross_entropy(logits, target, class_weight))


def test_class_balanced_goes_from_equal_beats_to_equal_classes() -> None:
    logits, target = map(torch.from_numpy, drawn(6))
    counts, _ = tensors(False)
    inverse = torch.where(counts > 0, counts.sum() / (counts.clamp(min=1) * len(PRESENT)), 0.0)
    loss = make_loss("class_balanced", counts, None, LossOptions(beta=1 - 1e-9))(logits, target)
    torch.testing.assert_close(loss, weighted_cross_entropy(logits, target, inverse))


@pytest.mark.parametrize("name", LOSSES)
def test_classes_of_equal_size_without_margin_are_cross_entropy_but_for_focal(name: str) -> None:
    logits, target = map(torch.from_numpy, drawn(7))
    loss = make_loss(name, torch.full((len(COUNTS),), 9), None, LossOptions(margin=0))(logits, target)
    plain = weighted_cross_entropy(logits, target, None)
    assert (loss < plain) if name == "focal" else torch.allclose(loss, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4], ids="scale {}".format)
@pytest.mark.parametrize("gamma", [0.0, 0.1, 1.0, 2.0], ids="gamma {}".format)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_finite(
    name: str, weighted: bool, gamma: float, scale: float, dtype: torch.dtype
) -> None:
    """Also of logits so large that a beat is certain, rightly or wrongly."""
    drawn_logits, target = drawn(8)
    logits = torch.tensor(scale * drawn_logits, dtype=dtype, requires_grad=True)
    loss = make_loss(name, *tensors(weighted), LossOptions(gamma=gamma))(logits, torch.from_numpy(target))
    loss.backward()
    assert logits.grad is not None and logits.grad.dtype == dtype
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_logit_of_an_absent_class_is_still_pushed_down(name: str) -> None:
    logits = torch.zeros(len(PRESENT), len(COUNTS), requires_grad=True)
    make_loss(name, *tensors(True), LossOptions())(logits, torch.from_numpy(PRESENT)).backward()
    assert logits.grad is not None and (logits.grad[:, COUNTS == 0] > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_the_slope(name: str) -> None:
    logits, target = drawn(9, size=3)
    direction = np.random.default_rng(10).normal(size=logits.shape)
    weight, options, step = WEIGHT, LossOptions(gamma=0.5), 1e-6
    ends = [EXPECTED[name](logits + side * step * direction, target, weight, options).mean() for side in (-1, 1)]
    along = torch.tensor(logits, requires_grad=True)
    make_loss(name, *tensors(True), options)(along, torch.from_numpy(target)).backward()
    assert along.grad is not None
    assert (along.grad.numpy() * direction).sum() == pytest.approx((ends[1] - ends[0]) / (2 * step), rel=1e-4)


@pytest.mark.parametrize("refuse", [check_loss, lambda name, options: make_loss(name, *tensors(False), options)])
def test_an_unknown_loss_lists_the_choices(refuse: Callable[[str, LossOptions], Any]) -> None:
    choices = "cross_entropy, focal, class_balanced, ldam, logit_adjusted"
    with pytest.raises(ValueError, match=f"^unknown loss 'hinge'; choose from {choices}$"):
        refuse("hinge", LossOptions())


@pytest.mark.parametrize("refuse", [check_loss, lambda name, options: make_loss(name, *tensors(False), options)])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        *((option, value) for option in ("gamma", "margin", "tau") for value in (-0.1, math.nan, math.inf)),
        *(("beta", value) for value in (-0.1, 1.0, math.nan)),
    ],
)
def test_options_out_of_range_are_refused_whatever_the_loss(
    option: str, value: float, refuse: Callable[[str, LossOptions], Any]
) -> None:
    with pytest.raises(ValueError, match=f"^{option} {value}: .* needed$"):
        refuse("cross_entropy", LossOptions(**{option: value}))


@pytest.mark.parametrize("name", LOSSES)
def test_the_edges_of_the_ranges_are_allowed(name: str) -> None:
    check_loss(name, LossOptions(gamma=0, beta=0, margin=0, tau=0))


def test_no_training_beats_are_refused() -> None:
    with pytest.raises(ValueError, match="training beats"):
        make_loss("ldam", torch.zeros(3, dtype=torch.int64), None, LossOptions())
