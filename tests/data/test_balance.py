import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from imblearn.under_sampling import TomekLinks

from data.balance import (
    BALANCES,
    Counts,
    adasyn,
    borderline_smote,
    class_weights,
    random_over,
    random_under,
    smote,
    smote_tomek,
    tomek_links,
)
from data.beats import Beats, measure_length
from data.synthetic import synthetic_arrhythmia

DRAWN = synthetic_arrhythmia(2000, seed=2)
BEATS = replace(DRAWN, group=torch.arange(len(DRAWN)), dropped={"no RR interval": 3}, remarks=("scaled",))
"""The group says which beat it was: a resampled beat can be traced."""
SYNTHETIC = {"smote": smote, "borderline_smote": borderline_smote, "adasyn": adasyn, "smote_tomek": smote_tomek}
RESAMPLED = SYNTHETIC | {"random_over": random_over, "random_under": random_under}


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


@pytest.mark.parametrize("name", BALANCES)
def test_real_beats_stay_as_they_were(name: str) -> None:
    made = BALANCES[name](BEATS, 0).beats
    assert made.group is not None
    real, source = made.select(made.group >= 0), BEATS.select(made.group[made.group >= 0])
    for part in ("signal", "target", "valid_length", "intervals"):
        assert torch.equal(getattr(real, part), getattr(source, part)), part
    assert (made.dropped, made.remarks, made.classes) == (BEATS.dropped, BEATS.remarks, BEATS.classes)
    assert (len(real) < len(made)) == (name in SYNTHETIC)


@pytest.mark.parametrize("name", BALANCES)
def test_counts_before_and_after(name: str) -> None:
    balanced = BALANCES[name](BEATS, 0)
    before, after = balanced.counts
    assert (before, after) == (BEATS.counts(), balanced.beats.counts())
    if name not in RESAMPLED:
        assert after == before
    elif name == "random_under":
        assert after == {label: min(count, 140) for label, count in before.items()}
    elif name in ("adasyn", "smote_tomek"):  # rounded for each beat; a few cleaned
        assert all(count > before[label] for label, count in after.items() if label != "N")
        assert min(after.values()) > 0.08 * max(after.values())
    else:
        assert after == {label: max(count, 166) for label, count in before.items()}


@pytest.mark.parametrize("name", BALANCES)
def test_how_to_weigh_and_draw(name: str) -> None:
    balanced = BALANCES[name](BEATS, 0)
    assert balanced.weighted == (name == "class_weight")
    assert balanced.balanced_batches == (name == "balanced_batches")


@pytest.mark.parametrize("name", BALANCES)
def test_the_seed_decides(name: str) -> None:
    first, again, other = (BALANCES[name](BEATS, seed).beats for seed in (0, 0, 1))
    assert torch.equal(first.signal, again.signal) and first.fingerprint == again.fingerprint
    drawn = name in RESAMPLED
    assert torch.equal(first.signal, other.signal) is not drawn
    assert (first.fingerprint != other.fingerprint) is drawn


def test_every_balance_has_a_fingerprint_of_its_own() -> None:
    assert len({resample(BEATS, 0).fingerprint for resample in RESAMPLED.values()}) == len(RESAMPLED)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic_beats_obey_the_rule_of_real_ones(name: str) -> None:
    whole = SYNTHETIC[name](BEATS, 0)
    assert whole.group is not None
    new = whole.select(whole.group == -1)
    assert len(new) > 100
    signal = new.signal[:, 0]
    assert (signal[torch.arange(187) >= new.valid_length[:, None]] == 0).all()
    assert torch.equal(new.valid_length, measure_length(new.signal))
    assert (signal.max(dim=1).values == 1).all() and signal.min() == 0
    for label in new.labels.unique():
        parents = BEATS.select(BEATS.labels == label)
        made = new.select(new.labels == label)
        assert parents.valid_length.min() - 1 <= made.valid_length.min()
        assert made.valid_length.max() <= parents.valid_length.max()
        assert made.intervals is not None and parents.intervals is not None
        assert (made.intervals >= parents.intervals.min(dim=0).values - 1e-6).all()
        assert (made.intervals <= parents.intervals.max(dim=0).values + 1e-6).all()


def test_smote_lifts_the_rare_classes_only() -> None:
    before, after = BEATS.counts(), smote(BEATS, seed=0, max_ratio=0.085).counts()
    goal = round(0.085 * before["N"])
    assert before["V"] < goal < before["Q"]
    assert after == {**before, "S": goal, "V": goal, "F": goal}


@pytest.mark.parametrize("name", SYNTHETIC)
def test_beats_without_patients_and_intervals(name: str) -> None:
    made = SYNTHETIC[name](replace(BEATS, group=None, intervals=None), 0)
    assert (made.group, made.intervals) == (None, None)
    assert made.counts()["F"] > BEATS.counts()["F"]


@st.composite
def few_beats(draw: st.DrawFn) -> Beats:
    """Beats of any class counts, the group numbering them."""
    counts = draw(st.lists(st.integers(0, 30), min_size=5, max_size=5).filter(any))
    target = torch.arange(5).repeat_interleave(torch.tensor(counts))
    target = target[torch.randperm(len(target), generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))]
    return Beats(
        signal=torch.rand(len(target), 2, 4),
        target=target,
        valid_length=torch.full((len(target),), 4),
        group=torch.arange(len(target)),
        classes=BEATS.classes,
        rate_hz=125.0,
        source="few",
        fingerprint="few",
    )


RATIOS = st.sampled_from([0.01, 0.1, 0.25, 0.3, 0.7, 1.0])


@settings(deadline=None, max_examples=60)
@given(few_beats(), RATIOS, st.integers(0, 1000))
def test_random_over_repeats_beats_of_the_rare_classes_after_all_others(beats: Beats, ratio: float, seed: int) -> None:
    made, goal = random_over(beats, seed, ratio), round(ratio * max(beats.counts().values()))
    assert made.counts() == {name: max(count, goal) if count else 0 for name, count in beats.counts().items()}
    assert made.group is not None
    assert made.group[: len(beats)].tolist() == list(range(len(beats)))
    assert torch.equal(made.signal, beats.signal[made.group]) and torch.equal(made.labels, beats.labels[made.group])


@settings(deadline=None, max_examples=60)
@given(few_beats(), RATIOS, st.integers(0, 1000))
def test_random_under_keeps_no_class_below_the_ratio(beats: Beats, ratio: float, seed: int) -> None:
    made, goal = random_under(beats, seed, ratio), int(min(filter(None, beats.counts().values())) / ratio)
    present = [count for count in made.counts().values() if count]
    assert min(present) >= ratio * max(present)
    assert made.counts() == {name: min(count, goal) for name, count in beats.counts().items()}
    assert made.group is not None
    assert made.group.tolist() == sorted(set(made.group.tolist()))
    assert torch.equal(made.signal, beats.signal[made.group])


SEVERAL_CLASSES = st.lists(st.integers(0, 3), min_size=2, max_size=60).filter(lambda label: len(set(label)) > 1)


@settings(deadline=None, max_examples=60)
@given(SEVERAL_CLASSES, st.integers(0, 99))
def test_links_are_those_of_imbalanced_learn(label: list[int], seed: int) -> None:
    features = np.random.default_rng(seed).random((len(label), 3), np.float32)
    target, sampler = np.array(label), TomekLinks(sampling_strategy="all")
    sampler.fit_resample(features, target)
    assert np.flatnonzero(~tomek_links(features, target)).tolist() == sampler.sample_indices_.tolist()


def test_one_class_has_no_links() -> None:
    assert not tomek_links(np.eye(3, dtype=np.float32), np.zeros(3, np.int64)).any()


def test_smote_tomek_drops_links_from_what_smote_made_and_nothing_else() -> None:
    lifted, cleaned = smote(BEATS, 0), smote_tomek(BEATS, 0)
    kept = {row.numpy().tobytes() for row in cleaned.signal}
    gone = torch.tensor([row.numpy().tobytes() not in kept for row in lifted.signal])
    assert 0 < gone.sum() == len(lifted) - len(cleaned)
    assert torch.equal(cleaned.signal, lifted.signal[~gone])
    assert len(lifted.labels[gone].unique()) > 1


def few_of_f(count: int) -> Beats:
    return BEATS.select(torch.cat([(BEATS.labels == 3).nonzero()[:count], (BEATS.labels != 3).nonzero()]).squeeze(1))


def apart() -> Beats:
    """F, the only rare class, far from all others: no neighbour of another class."""
    beats = BEATS.select((BEATS.labels == 0) | (BEATS.labels == 3))
    return replace(beats, signal=torch.where(beats.labels[:, None, None] == 3, 1 - beats.signal, beats.signal))


def hardly() -> Beats:
    """166 beats of F are wanted and there are 165: shared among those with a neighbour in N, all round to none."""
    of_n, of_f = (BEATS.labels == 0).nonzero()[:, 0], (BEATS.labels == 1).nonzero()[:, 0]
    beats = BEATS.select(torch.cat([of_n, of_f.repeat(4)[:165]]))
    generator = torch.Generator().manual_seed(0)
    return replace(beats, signal=torch.rand(beats.signal.shape, generator=generator))


@pytest.mark.parametrize("name", SYNTHETIC)
def test_too_few_neighbours_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"needs 6 beats.*class F has 5") as caught:
        SYNTHETIC[name](few_of_f(5), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("resample", "beats", "reason"),
    [
        (borderline_smote, apart, "borderline_smote makes no beats of class F: none of its 14 beats is in danger; use"),
        (adasyn, apart, "adasyn makes no beats of class F: Not any neigbours belong to the majority class; use"),
        (adasyn, hardly, "adasyn makes no beats of class S: No samples will be generated with the provided ratio"),
    ],
    ids=["borderline-apart", "adasyn-apart", "adasyn-rounded-away"],
)
def test_a_class_of_which_nothing_can_be_made_is_refused_by_name(
    resample: Callable[[Beats, int], Beats], beats: Callable[[], Beats], reason: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        resample(beats(), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", RESAMPLED)
def test_an_absent_class_stays_absent(name: str) -> None:
    assert RESAMPLED[name](BEATS.select(BEATS.labels != 3), 0).counts()["F"] == 0


@pytest.mark.parametrize("name", RESAMPLED.keys() - {"smote_tomek"})
def test_nothing_rare_nothing_done(name: str) -> None:
    assert RESAMPLED[name](BEATS, 0, max_ratio=0.005) is BEATS


@pytest.mark.parametrize("max_ratio", [0.0, 1.1])
@pytest.mark.parametrize("name", RESAMPLED)
def test_an_impossible_ratio_is_refused(name: str, max_ratio: float) -> None:
    with pytest.raises(ValueError, match=f"max_ratio {max_ratio} is not within"):
        RESAMPLED[name](BEATS, 0, max_ratio=max_ratio)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_several_leads_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="takes beats of one lead, not 2"):
        SYNTHETIC[name](replace(BEATS, signal=BEATS.signal.repeat(1, 2, 1)), 0)


@pytest.mark.parametrize("name", BALANCES)
def test_beats_without_labels_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no labels"):
        BALANCES[name](replace(BEATS, target=None), 0)


def test_counts_in_a_line() -> None:
    counts = Counts({"N": 65218, "S": 2003}, {"N": 65218, "S": 6522})
    assert str(counts) == "N 65,218 → 65,218, S 2,003 → 6,522"
