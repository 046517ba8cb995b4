import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import models
from pretrain.byol import Byol, distance
from pretrain.task import Batch, Momentum, Objective

ARCHITECTURES = ("transformer1d@dim=8,depth=1,heads=2", "resnet1d@width=4,kernel=3")


def equation_2(predicted: np.ndarray, wanted: np.ndarray) -> float:
    """Grill et al. 2020, equation 2: ‖q̄ − z̄‖² of normalised vectors, mean over views."""
    losses = []
    for q, z in zip(predicted, wanted, strict=True):
        losses.append(np.linalg.norm(q / np.linalg.norm(q) - z / np.linalg.norm(z)) ** 2)
    return float(np.mean(losses))


def make_task(architecture: str = ARCHITECTURES[0], momentum: float = 0.9) -> Byol:
    torch.manual_seed(0)
    return Byol(models.build(models.parse(architecture)), Objective(momentum=momentum))


def make_batch(num_beats: int = 4) -> Batch:
    return Batch(torch.rand(num_beats, 1, 187), torch.full((num_beats,), 150))


def sides(task: Byol) -> list[tuple[nn.Module, nn.Module]]:
    """Online and target: encoder, projector."""
    return [(task.encoder, task.target_encoder), (task.project, task.target_project)]


def disturb(task: Byol) -> None:
    """Move the online network away from the target, as training does."""
    with torch.no_grad():
        for online, _ in sides(task):
            for parameter in online.parameters():
                parameter.add_(torch.randn_like(parameter))


def parameters(module: nn.Module) -> list[np.ndarray]:
    return [parameter.detach().numpy().copy() for parameter in module.parameters()]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 8), st.integers(1, 6), st.integers(0, 1000))
def test_distance_equals_equation_2(num_views: int, dim: int, seed: int) -> None:
    predicted, wanted = np.random.default_rng(seed).normal(size=(2, num_views, dim))
    found = distance(torch.from_numpy(predicted), torch.from_numpy(wanted)).item()
    assert found == pytest.approx(equation_2(predicted, wanted), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("turn", "expected"), [(1.0, 0.0), (-2.0, 4.0)])
def test_distance_is_between_0_and_4_whatever_the_lengths(turn: float, expected: float) -> None:
    torch.manual_seed(0)
    wanted = torch.randn(5, 3)
    assert distance(turn * 9 * wanted, wanted).item() == pytest.approx(expected, abs=1e-5)


def test_distance_is_in_float32_under_bf16() -> None:
    torch.manual_seed(0)
    predicted, wanted = torch.randn(2, 64, 32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = distance(predicted, wanted)
        coarse = distance(predicted.bfloat16(), wanted.bfloat16())
    assert loss.item() == pytest.approx(equation_2(predicted.numpy(), wanted.numpy()), rel=1e-5)
    assert loss.dtype == coarse.dtype == torch.float32
    rounded = (tensor.bfloat16().float().numpy() for tensor in (predicted, wanted))
    assert coarse.item() == pytest.approx(equation_2(*rounded), rel=1e-5)


def test_each_views_prediction_is_held_against_the_targets_of_the_other() -> None:
    task = make_task().eval()
    disturb(task)
    views = task.views(make_batch())
    with torch.no_grad():
        found = task.objective(task(*views), views).item()
        predicted = [task.predict(task.project(task.encoder(view))).numpy() for view in views]
        wanted = [task.target_project(task.target_encoder(view)).numpy() for view in views]
    crosswise = [equation_2(predicted[0], wanted[1]), equation_2(predicted[1], wanted[0])]
    straight = [equation_2(predicted[0], wanted[0]), equation_2(predicted[1], wanted[1])]
    assert found == pytest.approx(np.mean(crosswise), rel=1e-4)
    assert found != pytest.approx(np.mean(straight), rel=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_gradient_reaches_the_target_side(architecture: str) -> None:
    task = make_task(architecture)
    views = [view.requires_grad_() for view in task.views(make_batch())]
    outputs = task(*views)
    assert [output.requires_grad for output in outputs] == [True, True, False, False]
    task.objective(outputs, views).backward()
    for online, target in sides(task):
        assert all(p.grad is None and not p.requires_grad for p in target.parameters())
        assert all(p.grad is not None for p in online.parameters())
    assert all(p.grad is not None for p in task.predict.parameters())


def test_distance_gives_no_gradient_to_what_is_wanted() -> None:
    torch.manual_seed(0)
    predicted, wanted = (tensor.requires_grad_() for tensor in torch.randn(2, 4, 3))
    distance(predicted, wanted).backward()
    assert wanted.grad is None
    assert predicted.grad is not None and predicted.grad.any()


@pytest.mark.parametrize(
    ("start", "progress", "stays"),
    [
        (0.996, 0.0, 0.996),
        (0.996, 1 / 3, 0.997),
        (0.996, 0.5, 0.998),
        (0.996, 2 / 3, 0.999),
        (0.996, 1.0, 1.0),
        (0.9, 0.25, 0.9146446609),
        (0.9, 0.5, 0.95),
        (0.0, 0.0, 0.0),
        (0.0, 0.75, 0.8535533906),
        (1.0, 0.3, 1.0),
    ],
)
def test_momentum_rises_as_in_the_paper(start: float, progress: float, stays: float) -> None:
    """Section 3.2: τ = 1 − (1 − τ_base) × (cos(πk / K) + 1) / 2."""
    online, target = (nn.Linear(2, 2).double() for _ in range(2))
    with torch.no_grad():
        for parameter, value in ((online.weight, 0.0), (target.weight, 1.0), (online.bias, -1.0), (target.bias, 1.0)):
            parameter.fill_(value)
    Momentum(online, target, start).follow(progress)
    assert target.weight.detach().numpy() == pytest.approx(np.full((2, 2), stays), abs=1e-9)
    assert target.bias.detach().numpy() == pytest.approx(np.full(2, stays - (1 - stays)), abs=1e-9)
    assert not online.weight.any() and (online.bias == -1).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_at_the_start_both_sides_are_equal_and_not_the_same(architecture: str) -> None:
    for online, target in sides(make_task(architecture)):
        weights, targets = online.state_dict(), target.state_dict()
        assert all(torch.equal(weights[name], targets[name]) for name in weights)
        assert weights.keys() == targets.keys()
        assert not {p.data_ptr() for p in online.parameters()} & {p.data_ptr() for p in target.parameters()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("progress", "stays"), [(0.0, 0.9), (0.5, 0.95), (1.0, 1.0)])
def test_the_target_follows_the_online_network(architecture: str, progress: float, stays: float) -> None:
    task = make_task(architecture)
    disturb(task)
    before = [(parameters(online), parameters(target)) for online, target in sides(task)]
    task.before_step(progress)
    for (online, target), (was_online, was_target) in zip(sides(task), before, strict=True):
        for found, now, weight, old in zip(parameters(target), parameters(online), was_online, was_target, strict=True):
            assert found == pytest.approx(stays * old + (1 - stays) * weight, abs=1e-5)
            assert np.array_equal(now, weight)


@pytest.mark.parametrize("copied", [False, True])
def test_the_target_follows_through_a_copy_and_a_change_of_type(copied: bool) -> None:
    """A copied task's averages are of the copy's own networks."""
    task = copy.deepcopy(make_task(momentum=0.0)) if copied else make_task(momentum=0.0).double()
    disturb(task)
    task.before_step(0.0)
    for online, target in sides(task):
        for found, expected in zip(parameters(target), parameters(online), strict=True):
            assert found == pytest.approx(expected, abs=1e-6)


def running(module: nn.Module) -> list[Tensor]:
    """BatchNorm's running means and variances."""
    return [value for name, value in module.named_buffers() if "running" in name]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batchnorm_of_the_target_normalises_over_the_batch_itself(architecture: str) -> None:
    """Running statistics play no part in the loss; each side counts its own, and the average leaves them alone."""
    task = make_task(architecture)
    views = task.views(make_batch())
    loss = task.objective(task(*views), views).item()
    for online, target in sides(task):
        assert all(not torch.equal(value, torch.zeros_like(value)) for value in running(target))
        assert all(torch.allclose(*pair) for pair in zip(running(online), running(target), strict=True))
    for online, target in sides(task):
        for value in (*running(online), *running(target)):
            value.uniform_(3, 9)
    kept = [value.clone() for _, target in sides(task) for value in running(target)]
    assert kept != []
    task.before_step(0.0)
    assert all(map(torch.equal, kept, (value for _, target in sides(task) for value in running(target))))
    assert task.objective(task(*views), views).item() == pytest.approx(loss, rel=1e-5)
