import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import models
from pretrain.task import Batch, Objective
from pretrain.vicreg import Vicreg, vicreg

EPSILON = 1e-4


def variance(z: np.ndarray) -> float:
    """Bardes et al. 2022, equations 1 and 2, γ = 1; the variance is over n − 1, as the covariance of equation 3."""
    num_beats, dim = z.shape
    total = 0.0
    for j in range(dim):
        mean = sum(z[i, j] for i in range(num_beats)) / num_beats
        var = sum((z[i, j] - mean) ** 2 for i in range(num_beats)) / (num_beats - 1)
        total += max(0.0, 1 - np.sqrt(var + EPSILON))
    return total / dim


def covariance(z: np.ndarray) -> float:
    """Equations 3 and 4."""
    num_beats, dim = z.shape
    mean = sum(z[i] for i in range(num_beats)) / num_beats
    matrix = sum(np.outer(z[i] - mean, z[i] - mean) for i in range(num_beats)) / (num_beats - 1)
    return sum(matrix[i, j] ** 2 for i in range(dim) for j in range(dim) if i != j) / dim


def invariance(first: np.ndarray, second: np.ndarray) -> float:
    """Equation 5, ‖z − z′‖² averaged over beats, over the number of features besides."""
    num_beats, dim = first.shape
    return sum(np.linalg.norm(first[i] - second[i]) ** 2 for i in range(num_beats)) / num_beats / dim


def equation_6(first: np.ndarray, second: np.ndarray, mu: float) -> float:
    spread, likeness = variance(first) + variance(second), covariance(first) + covariance(second)
    return 25 * invariance(first, second) + mu * spread + 1 * likeness


def make_views(num_beats: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Projections of which some features are spread by less than 1, and some by more."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, num_beats, dim)) * rng.uniform(0.1, 3, dim) + rng.normal(size=dim)
    return torch.from_numpy(first), torch.from_numpy(second)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 6), st.integers(1, 5), st.sampled_from([0.0, 1.0, 25.0]), st.integers(0, 1000))
def test_equals_equation_6(num_beats: int, dim: int, mu: float, seed: int) -> None:
    first, second = make_views(num_beats, dim, seed)
    expected = equation_6(first.numpy(), second.numpy(), mu)
    assert vicreg(first, second, mu).item() == pytest.approx(expected, rel=1e-9)
    assert vicreg(second, first, mu).item() == pytest.approx(expected, rel=1e-9)


def test_invariance_alone_is_a_mean_over_beats_and_features() -> None:
    """One feature has no other to be like; two apart by 2 in a feature of three cost 4 / 3 each."""
    first, second = make_views(4, 1, 0)
    assert vicreg(first, second, 0.0).item() == pytest.approx(25 * (first - second).square().mean().item())
    still = torch.zeros(5, 3)
    assert vicreg(still, still + torch.tensor([2.0, 0, 0]), 0.0).item() == pytest.approx(25 * 4 / 3)


@pytest.mark.parametrize("mu", [1.0, 25.0])
@pytest.mark.parametrize("spread", [0.0, 0.3, 0.99, 1.01, 7.0])
def test_variance_alone_is_what_a_standard_deviation_lacks_of_1(spread: float, mu: float) -> None:
    """Of a single feature, the same in both views."""
    z = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]
    z = 5 + spread * z / z.std()
    lacks = max(0.0, 1 - (spread**2 + EPSILON) ** 0.5)
    assert vicreg(z, z, mu).item() == pytest.approx(2 * mu * lacks, abs=1e-9)


def test_covariance_alone_is_of_different_features() -> None:
    first, _ = make_views(6, 4, 0)
    assert vicreg(first, first, 0.0).item() == pytest.approx(2 * covariance(first.numpy()))
    uncorrelated = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert vicreg(uncorrelated, uncorrelated, 0.0).item() == pytest.approx(0, abs=1e-12)
    twice_the_same = uncorrelated[:, :1].expand(-1, 2)
    assert vicreg(twice_the_same, twice_the_same, 0.0).item() == pytest.approx(2 * 2 * (4 / 3) ** 2 / 2)


def test_without_variance_weight_a_collapse_costs_nothing_and_with_it_all_there_is() -> None:
    z = torch.full((6, 3), 0.7, requires_grad=True)
    assert vicreg(z, z, 0.0).item() == pytest.approx(0, abs=1e-9)
    loss = vicreg(z, z, 25.0)
    loss.backward()
    assert loss.item() == pytest.approx(2 * 25 * 0.99, rel=1e-4)
    assert z.grad is not None and z.grad.isfinite().all()


def test_gradients_are_those_of_the_loss() -> None:
    first, second = (view.requires_grad_() for view in make_views(5, 3, 0))
    assert torch.autograd.gradcheck(lambda a, b: vicreg(a, b, 25.0), (first, second))


def test_terms_keep_float32_where_the_encoder_runs_in_bf16() -> None:
    first, second = (view.float() for view in make_views(64, 16, 0))
    with torch.autocast("cpu", torch.bfloat16):
        loss = vicreg(first, second, 25.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(vicreg(first, second, 25.0).item(), rel=1e-6)


def make_task(objective: Objective) -> Vicreg:
    torch.manual_seed(0)
    return Vicreg(models.build(models.parse("transformer1d@dim=8,depth=1,heads=2")), objective)


@pytest.mark.parametrize(("objective", "mu"), [(Objective(), 25.0), (Objective(variance_weight=3.0), 3.0)])
def test_the_loss_is_of_the_projections_of_both_views(objective: Objective, mu: float) -> None:
    task = make_task(objective).eval()
    views = task.views(Batch(torch.rand(5, 1, 187), torch.full((5,), 150)))
    with torch.no_grad():
        found = task.objective(task(*views), views).item()
        first, second = (task.project(task.encoder(view)).double().numpy() for view in views)
    assert found == pytest.approx(equation_6(first, second, mu), rel=1e-4)


def test_the_loss_stays_in_float32_under_bf16() -> None:
    task = make_task(Objective())
    with torch.autocast("cpu", torch.bfloat16):
        loss = task.loss(Batch(torch.rand(5, 1, 187), torch.full((5,), 150)))
    assert loss.dtype == torch.float32 and loss.isfinite()


def test_a_negative_variance_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--variance-weight -1.0: 0 or more is needed"):
        make_task(Objective(variance_weight=-1.0))
