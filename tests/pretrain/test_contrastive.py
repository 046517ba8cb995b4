import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from models.encoder import EncoderSpec
from pretrain.contrastive import Contrastive, nt_xent
from pretrain.task import Batch, Objective


def equation_1(z: np.ndarray, temperature: float) -> float:
    """Chen et al. 2020, equation 1, mean over all views; view i of the first half and i + N are a pair."""

    def similarity(i: int, j: int) -> float:
        return float(z[i] @ z[j] / (np.linalg.norm(z[i]) * np.linalg.norm(z[j])))

    num_views, losses = len(z), []
    for i in range(num_views):
        j = (i + num_views // 2) % num_views
        others = sum(np.exp(similarity(i, k) / temperature) for k in range(num_views) if k != i)
        losses.append(-np.log(np.exp(similarity(i, j) / temperature) / others))
    return float(np.mean(losses))


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 6), st.integers(1, 5), st.sampled_from([0.1, 0.2, 0.5, 1.0]), st.integers(0, 1000))
def test_equals_equation_1(num_beats: int, dim: int, temperature: float, seed: int) -> None:
    z = np.random.default_rng(seed).normal(size=(2 * num_beats, dim))
    assert nt_xent(torch.from_numpy(z), temperature).item() == pytest.approx(equation_1(z, temperature), rel=1e-9)


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
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(z, 0.2)
    assert loss.item() == pytest.approx(nt_xent(z, 0.2).item(), rel=1e-5)


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
