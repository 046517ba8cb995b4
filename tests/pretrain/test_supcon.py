import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from pretrain.contrastive import nt_xent
from pretrain.supcon import SupervisedContrastive, supcon
from pretrain.task import Batch, Objective


def equation_2(z: np.ndarray, label: np.ndarray, temperature: float) -> float:
    """Khosla et al. 2020, equation 2 (L_out), mean over all views that have another of their class."""
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    losses = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if label[p] == label[i]]
        if not positives:
            continue
        below = sum(np.exp(z[i] @ z[a] / temperature) for a in others)
        losses.append(-sum(np.log(np.exp(z[i] @ z[p] / temperature) / below) for p in positives) / len(positives))
    return float(np.mean(losses))


def make_task(objective: Objective) -> SupervisedContrastive:
    torch.manual_seed(0)
    return SupervisedContrastive(models.build(models.parse("transformer1d@dim=8,depth=1,heads=2")), objective)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=6),
    st.integers(1, 5),
    st.sampled_from([0.1, 0.5, 1.0]),
    st.integers(0, 1000),
)
def test_equals_equation_2(label: list[int], dim: int, temperature: float, seed: int) -> None:
    z = np.random.default_rng(seed).normal(size=(2 * len(label), dim))
    found = supcon(torch.from_numpy(z), torch.tensor(label * 2), temperature).item()
    assert found == pytest.approx(equation_2(z, np.array(label * 2), temperature), rel=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 2), min_size=4, max_size=8), st.integers(0, 1000))
def test_a_view_alone_in_its_class_is_nobodys_anchor(label: list[int], seed: int) -> None:
    alone = [*label, 7]
    z = np.random.default_rng(seed).normal(size=(len(alone), 3))
    found = supcon(torch.from_numpy(z), torch.tensor(alone), 0.5).item()
    assert found == pytest.approx(equation_2(z, np.array(alone), 0.5), rel=1e-9)


def test_the_second_views_label_is_its_own() -> None:
    """A patient's other beat may be of another class."""
    task = make_task(Objective(views="patient"))
    first, other = (
        Batch(torch.rand(3, 1, 187), torch.full((3,), 150), torch.tensor(to)) for to in ([0, 1, 1], [1, 0, 1])
    )
    *_, target, others = task.views(first._replace(partner=other))
    assert (target.tolist(), others.tolist()) == ([0, 1, 1], [1, 0, 1])
    assert task.loss(first._replace(partner=other)).isfinite()


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 6), st.sampled_from([0.1, 0.5]), st.integers(0, 1000))
def test_where_all_labels_differ_it_is_nt_xent(num_beats: int, temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2 * num_beats, 3, generator=generator, dtype=torch.float64)
    label = torch.randperm(num_beats, generator=generator)
    assert supcon(z, label.repeat(2), temperature).item() == pytest.approx(nt_xent(z, temperature).item(), rel=1e-9)


def test_a_class_that_agrees_costs_less_than_classes_mixed_up() -> None:
    z = torch.eye(2).repeat(4, 1)
    agreeing, mixed = supcon(z, torch.tensor([0, 1] * 4), 0.2), supcon(z, torch.tensor([0, 0, 1, 1] * 2), 0.2)
    assert agreeing.item() == pytest.approx(math.log(3 + 4 * math.exp(-5)), rel=1e-5)
    assert mixed > agreeing + 1


def test_gradients_are_finite_and_those_of_the_loss() -> None:
    torch.manual_seed(0)
    z, label = torch.randn(8, 3, dtype=torch.float64, requires_grad=True), torch.tensor([0, 0, 0, 1] * 2)
    assert torch.autograd.gradcheck(lambda projection: supcon(projection, label, 0.5), z)


@pytest.mark.parametrize("num_beats", [2, 7])
def test_chance_is_the_loss_of_projections_that_say_nothing(num_beats: int) -> None:
    chance, label = make_task(Objective()).chance(num_beats), (torch.arange(num_beats) % 2).repeat(2)
    for projection in (torch.ones(2 * num_beats, 3), torch.eye(2 * num_beats)):
        assert supcon(projection, label, 0.2).item() == pytest.approx(chance, rel=1e-5)


def test_similarities_keep_float32_where_the_encoder_runs_in_bf16() -> None:
    torch.manual_seed(0)
    z, label = torch.randn(64, 32), torch.arange(64) % 3
    with torch.autocast("cpu", torch.bfloat16):
        loss = supcon(z, label, 0.2)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(supcon(z, label, 0.2).item(), rel=1e-5)


def test_the_sources_own_labels_say_what_attracts() -> None:
    task = make_task(Objective(temperature=0.5)).eval()
    target = torch.tensor([1, 0, 1, 1])
    views = task.views(Batch(torch.rand(4, 1, 187), torch.full((4,), 150), target))
    with torch.no_grad():
        found = task.objective(task(*views), views).item()
        z = task.project(torch.cat([task.encoder(view) for view in views[:2]])).double().numpy()
    assert found == pytest.approx(equation_2(z, target.repeat(2).numpy(), 0.5), rel=1e-4)


def test_a_source_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="learns from labels"):
        make_task(Objective()).loss(Batch(torch.rand(2, 1, 187), torch.tensor([100, 187])))
