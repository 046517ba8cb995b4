import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from data.augment import valid_mask
from models.encoder import EncoderSpec
from pretrain import task_class
from pretrain.contrastive import Contrastive, nt_xent
from pretrain.task import Batch, Objective, PretrainTask, ViewsOf

TWO_VIEWS = ("contrastive", "supcon", "vicreg", "byol")


def make_task(name: str, objective: Objective) -> PretrainTask:
    torch.manual_seed(0)
    return task_class(name)(models.build(models.parse("transformer1d@dim=8,depth=1,heads=2")), objective)


def make_batch(seed: int, group: list[int] | None = None) -> Batch:
    """Four beats, each with a partner of other samples and another length."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(20, 187, (2, 4), generator=generator)
    beats, others = (torch.rand(4, 1, 187, generator=generator) * valid_mask(length, 187) for length in lengths)
    known = None if group is None else torch.tensor(group)
    target = torch.tensor([0, 1, 0, 1])
    return Batch(beats, lengths[0], target, known, Batch(others, lengths[1], target, known))


def equation_1(z: np.ndarray, temperature: float, group: np.ndarray | None = None) -> float:
    """Chen et al. 2020, equation 1, mean over all views; view i of the first half and i + N are a pair.

    Views of other beats of the same known patient are left out of the sum below the line.
    """

    def similarity(i: int, j: int) -> float:
        return float(z[i] @ z[j] / (np.linalg.norm(z[i]) * np.linalg.norm(z[j])))

    def same_patient(i: int, j: int) -> bool:
        if group is None:
            return False
        return bool(group[i % len(group)] == group[j % len(group)] and group[i % len(group)] != -1)

    num_views, losses = len(z), []
    for i in range(num_views):
        j = (i + num_views // 2) % num_views
        counted = [k for k in range(num_views) if k != i and (k == j or not same_patient(i, k))]
        others = sum(np.exp(similarity(i, k) / temperature) for k in counted)
        losses.append(-np.log(np.exp(similarity(i, j) / temperature) / others))
    return float(np.mean(losses))


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 6), st.integers(1, 5), st.sampled_from([0.1, 0.2, 0.5, 1.0]), st.integers(0, 1000))
def test_equals_equation_1(num_beats: int, dim: int, temperature: float, seed: int) -> None:
    z = np.random.default_rng(seed).normal(size=(2 * num_beats, dim))
    assert nt_xent(torch.from_numpy(z), temperature).item() == pytest.approx(equation_1(z, temperature), rel=1e-9)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-1, 2), min_size=2, max_size=6), st.integers(1, 5), st.integers(0, 1000))
def test_equals_equation_1_without_a_patients_other_beats(group: list[int], dim: int, seed: int) -> None:
    z = np.random.default_rng(seed).normal(size=(2 * len(group), dim))
    found = nt_xent(torch.from_numpy(z), 0.5, torch.tensor(group)).item()
    assert found == pytest.approx(equation_1(z, 0.5, np.array(group)), rel=1e-9, abs=1e-12)


def test_only_beats_of_the_same_known_patient_do_not_repel() -> None:
    torch.manual_seed(0)
    z = torch.randn(8, 4, dtype=torch.float64)
    repelled = nt_xent(z, 0.2).item()
    assert nt_xent(z, 0.2, torch.full((4,), -1)).item() == repelled
    assert nt_xent(z, 0.2, torch.arange(4)).item() == repelled
    assert nt_xent(z, 0.2, torch.zeros(4, dtype=torch.long)).item() == 0
    assert 0 < nt_xent(z, 0.2, torch.tensor([0, 0, 1, 2])).item() < repelled


def test_gradients_are_those_of_the_loss_where_views_are_left_out() -> None:
    torch.manual_seed(0)
    z, group = torch.randn(8, 3, dtype=torch.float64, requires_grad=True), torch.tensor([0, 0, -1, -1])
    assert torch.autograd.gradcheck(lambda projection: nt_xent(projection, 0.5, group), z)


@pytest.mark.parametrize("num_beats", [2, 5, 16])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_chance_is_the_loss_of_projections_that_say_nothing(num_beats: int, temperature: float) -> None:
    chance = make_task("contrastive", Objective(temperature=temperature)).chance(num_beats)
    constant, orthogonal = torch.ones(2 * num_beats, 3), torch.eye(2 * num_beats)
    for projection in (constant, orthogonal):
        assert nt_xent(projection, temperature).item() == pytest.approx(chance, rel=1e-5)


def test_the_length_of_a_projection_does_not_matter() -> None:
    z = torch.randn(8, 4, dtype=torch.float64)
    scaled = z * torch.linspace(0.5, 9, 8)[:, None]
    assert nt_xent(scaled, 0.2).item() == pytest.approx(nt_xent(z, 0.2).item())


def test_pairs_that_agree_cost_less_than_unrelated_ones() -> None:
    torch.manual_seed(0)
    first, other = torch.randn(2, 16, 8)
    agreeing, unrelated = nt_xent(torch.cat([first, first]), 0.2), nt_xent(torch.cat([first, other]), 0.2)
    assert agreeing < unrelated / 2
    shuffled = nt_xent(torch.cat([first, first.roll(1, 0)]), 0.2)
    assert agreeing < shuffled


def test_similarities_keep_float32_where_the_encoder_runs_in_bf16() -> None:
    torch.manual_seed(0)
    z = torch.randn(64, 32)
    for group in (None, torch.arange(32) // 3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = nt_xent(z, 0.2, group)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(nt_xent(z, 0.2, group).item(), rel=1e-5)


@pytest.mark.parametrize("num_views", [0, 2])
def test_fewer_than_two_beats_are_refused(num_views: int) -> None:
    with pytest.raises(ValueError, match=f"at least 2 beats in a batch for negatives, not {num_views // 2}"):
        nt_xent(torch.randn(num_views, 4), 0.2)


def test_a_batch_of_one_beat_is_refused_in_words() -> None:
    task = Contrastive(models.build(EncoderSpec(name="transformer1d")), Objective())
    with pytest.raises(ValueError, match=r"2 beats|more than 1 value"):
        task.loss(Batch(torch.rand(1, 1, 187), torch.tensor([150]), None))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_must_be_positive(temperature: float) -> None:
    encoder = models.build(EncoderSpec(name="transformer1d"))
    with pytest.raises(ValueError, match=f"--temperature {temperature}: a positive number is needed"):
        Contrastive(encoder, Objective(temperature=temperature))


@pytest.mark.parametrize("name", TWO_VIEWS)
@pytest.mark.parametrize("of", ["augmented", "patient"])
def test_the_second_view_is_of_the_beat_or_of_its_partner(
    name: str, of: ViewsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretrain.views.VARIED_BY", ())
    batch = make_batch(1)
    assert batch.partner is not None
    first, second = make_task(name, Objective(views=of)).views(batch)[:2]
    assert torch.equal(first, batch.signal)
    assert torch.equal(second, batch.signal if of == "augmented" else batch.partner.signal)


@pytest.mark.parametrize("name", TWO_VIEWS)
@pytest.mark.parametrize("of", ["augmented", "patient"])
def test_both_views_are_varied_each_by_itself_and_padded_as_their_beats(name: str, of: ViewsOf) -> None:
    batch = make_batch(1)
    assert batch.partner is not None
    other = batch if of == "augmented" else batch.partner
    first, second = make_task(name, Objective(views=of)).views(batch)[:2]
    assert not torch.isclose(first, second).flatten(1).all(1).any()
    for view, beats in ((first, batch), (second, other)):
        assert not torch.isclose(view, beats.signal).flatten(1).all(1).any()
        assert not (view * ~valid_mask(beats.valid_length, 187)).any()


@pytest.mark.parametrize("name", TWO_VIEWS)
def test_views_of_patients_need_partners(name: str) -> None:
    with pytest.raises(ValueError, match="need a partner for each beat"):
        make_task(name, Objective(views="patient")).views(make_batch(1)._replace(partner=None))


@pytest.mark.parametrize(
    ("of", "group", "left_out"),
    [("augmented", [3, 3, 3, -1], None), ("patient", None, None), ("patient", [3, 3, 3, -1], [3, 3, 3, -1])],
)
def test_a_patients_other_beats_are_left_out_where_views_are_of_patients(
    of: ViewsOf, group: list[int] | None, left_out: list[int] | None
) -> None:
    task, batch = make_task("contrastive", Objective(views=of, temperature=0.5)).eval(), make_batch(1, group)
    assert isinstance(task, Contrastive)
    views = task.views(batch)
    with torch.no_grad():
        outputs = task(*views)
        found = task.objective(outputs, views).item()
        z = task.project(torch.cat([task.encoder(view) for view in views[:2]])).double().numpy()
    expected = equation_1(z, 0.5, None if left_out is None else np.array(left_out))
    assert found == pytest.approx(expected, rel=1e-4)
    assert (left_out is None) == (found == pytest.approx(equation_1(z, 0.5), rel=1e-4))
