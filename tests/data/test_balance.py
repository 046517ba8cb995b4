from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.balance import BALANCES, class_weights, smote
from data.beats import Beats, measure_length
from data.synthetic import synthetic_arrhythmia

BEATS = synthetic_arrhythmia(2000, seed=2)


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80).map(torch.tensor), st.sampled_from([0.0, 0.5, 1.0]))
def test_weights_have_mean_one_over_the_beats_and_follow_the_frequency(target: torch.Tensor, power: float) -> None:
    weights = class_weights(target, 5, power)
    counts = torch.bincount(target, minlength=5)
    assert weights.dtype == torch.float32
    assert weights[target].mean().item() == pytest.approx(1, rel=1e-5)
    assert ((weights == 0) == (counts == 0)).all()
    products = (weights * counts**power)[counts > 0]
    assert torch.allclose(products, products[0].expand_as(products))


def added(whole: Beats) -> Beats:
    return whole.select(torch.arange(len(BEATS), len(whole)))


def test_smote_lifts_the_rare_classes_only() -> None:
    before, after = BEATS.counts(), smote(BEATS, seed=0, max_ratio=0.085).counts()
    goal = round(0.085 * before["N"])
    assert before["V"] < goal < before["Q"]
    assert after == {**before, "S": goal, "V": goal, "F": goal}


def test_synthetic_beats_obey_the_rule_of_real_ones() -> None:
    whole = smote(BEATS, seed=0)
    new = added(whole)
    assert torch.equal(whole.signal[: len(BEATS)], BEATS.signal)
    assert len(new) > 100
    signal = new.signal[:, 0]
    assert (signal[torch.arange(187) >= new.valid_length[:, None]] == 0).all()
    assert torch.equal(new.valid_length, measure_length(new.signal))
    assert (signal.max(dim=1).values == 1).all() and signal.min() == 0
    assert new.group is not None and (new.group == -1).all()
    for label in new.labels.unique():
        parents = BEATS.valid_length[BEATS.labels == label]
        lengths = new.valid_length[new.labels == label]
        assert parents.min() - 1 <= lengths.min() and lengths.max() <= parents.max()


def test_intervals_of_synthetic_beats_lie_between_their_parents() -> None:
    whole = smote(BEATS, seed=0)
    assert whole.intervals is not None and BEATS.intervals is not None
    parents, made = BEATS.intervals[BEATS.labels == 1], whole.intervals[len(BEATS) :][added(whole).labels == 1]
    assert (made >= parents.min(dim=0).values - 1e-6).all() and (made <= parents.max(dim=0).values + 1e-6).all()


def test_smote_obeys_its_seed() -> None:
    first, again, other = (smote(BEATS, seed) for seed in (0, 0, 1))
    assert torch.equal(first.signal, again.signal) and first.fingerprint == again.fingerprint
    assert not torch.equal(first.signal, other.signal) and first.fingerprint != other.fingerprint


def test_too_few_neighbours_are_refused_by_name() -> None:
    few = torch.cat([(BEATS.labels == 3).nonzero()[:5], (BEATS.labels != 3).nonzero()]).squeeze(1)
    with pytest.raises(ValueError, match="class F has 5") as caught:
        smote(BEATS.select(few), 0)
    assert "\n" not in str(caught.value)


def test_an_absent_class_stays_absent() -> None:
    assert smote(BEATS.select(BEATS.labels != 3), 0).counts()["F"] == 0


def test_nothing_rare_nothing_done() -> None:
    assert smote(BEATS, 0, max_ratio=0.005) is BEATS


@pytest.mark.parametrize("max_ratio", [0.0, 1.1])
def test_an_impossible_ratio_is_refused(max_ratio: float) -> None:
    with pytest.raises(ValueError, match="max_ratio"):
        smote(BEATS, 0, max_ratio)


def test_several_leads_are_refused() -> None:
    with pytest.raises(ValueError, match="one lead"):
        smote(replace(BEATS, signal=BEATS.signal.repeat(1, 2, 1)), 0)


@pytest.mark.parametrize("name", BALANCES)
def test_every_balance_keeps_the_beats_it_was_given(name: str) -> None:
    balanced = BALANCES[name](BEATS, 0)
    assert torch.equal(balanced.beats.signal[: len(BEATS)], BEATS.signal)
    assert (len(balanced.beats) > len(BEATS)) == (name == "smote")
    assert (balanced.class_weights is not None) == (name == "class_weight")
