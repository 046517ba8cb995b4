from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from data import duplicates
from data.beats import Beats
from data.duplicates import near_duplicates, repeated
from data.synthetic import synthetic_arrhythmia

NUM_SAMPLES = 12
ROUNDING = 1e-5
SYNTHETIC = synthetic_arrhythmia(400, 0)


def beats_of(signal: NDArray[np.floating], length: NDArray[np.integer]) -> Beats:
    """Beats that are zero after `length`; signal: (num_beats, num_leads, num_samples)."""
    valid = np.arange(signal.shape[2]) < length[:, None, None]
    return Beats(
        signal=torch.from_numpy(np.where(valid, signal, 0).astype(np.float32)),
        target=None,
        valid_length=torch.from_numpy(length.astype(np.int64)),
        classes=(),
        rate_hz=125.0,
        source="drawn",
        fingerprint="f",
    )


def draw(num_beats: int, num_leads: int, seed: int) -> Beats:
    """Noisy copies of three shapes, of any length; a few are flat for a while, or throughout."""
    random = np.random.default_rng(seed)
    shapes = np.random.default_rng(0).random((3, num_leads, NUM_SAMPLES))
    noise = random.choice([0.0, 0.02, 0.1], (num_beats, 1, 1)) * random.standard_normal(
        (num_beats, num_leads, NUM_SAMPLES)
    )
    signal = (shapes[random.integers(3, size=num_beats)] + noise).clip(0, 1)
    flat = random.choice([0, 0, 0, 3, NUM_SAMPLES], (num_beats, 1, 1))
    signal = np.where(np.arange(NUM_SAMPLES) < flat, random.random((num_beats, 1, 1)), signal)
    return beats_of(signal, random.integers(NUM_SAMPLES + 1, size=num_beats))


def correlations(beats: Beats, others: Beats) -> NDArray[np.float64]:
    """Pair by pair; −1 where there is none."""
    found = np.full((len(beats), len(others)), -1.0)
    for row, column in np.ndindex(found.shape):
        length = int(min(beats.valid_length[row], others.valid_length[column]))
        mine = beats.signal[row, :, :length].numpy().astype(np.float64).ravel()
        theirs = others.signal[column, :, :length].numpy().astype(np.float64).ravel()
        if length > 1 and np.ptp(mine) > 0 and np.ptp(theirs) > 0:
            found[row, column] = np.corrcoef(mine, theirs)[0, 1]
    return found


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 2), st.floats(0, 0.999), st.sampled_from([1, 2, 3, duplicates.BLOCK]))
def test_near_duplicates_are_those_of_a_loop_over_pairs(
    seed: int, num_leads: int, threshold: float, block: int
) -> None:
    beats, others = draw(9, num_leads, seed), draw(11, num_leads, seed + 1)
    correlation = correlations(beats, others)
    assume(np.abs(correlation - threshold).min() > ROUNDING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "BLOCK", block)
        found = near_duplicates(beats, others, threshold)
    assert found.dtype == torch.bool
    assert found.tolist() == (correlation > threshold).any(axis=1).tolist()


def test_float32_rounds_by_less_than_is_said() -> None:
    beats, others = SYNTHETIC.select(torch.arange(40)), SYNTHETIC.select(torch.arange(40, 80))
    exact = correlations(beats, others).max(axis=1)
    for row in range(40):
        one = beats.select(torch.tensor([row]))
        assert near_duplicates(one, others, exact[row] - ROUNDING).item()
        assert not near_duplicates(one, others, exact[row] + ROUNDING).item()


def scaled(signal: Tensor) -> Tensor:
    return 0.3 * signal


def lifted(signal: Tensor) -> Tensor:
    return 0.5 + 0.5 * signal


@pytest.mark.parametrize("change", [torch.clone, scaled, lifted])
def test_a_copy_is_a_duplicate_whatever_its_scale(change: Callable[[Tensor], Tensor]) -> None:
    assert near_duplicates(SYNTHETIC, replace(SYNTHETIC, signal=change(SYNTHETIC.signal))).all()


def test_a_beat_is_compared_as_far_as_the_shorter_one_lasts() -> None:
    random = np.random.default_rng(0)
    signal = random.random((1, 1, NUM_SAMPLES))
    other = signal.copy()
    other[..., 8:] = random.random(NUM_SAMPLES - 8)
    whole, changed = beats_of(signal, np.array([NUM_SAMPLES])), beats_of(other, np.array([NUM_SAMPLES]))
    short = beats_of(other, np.array([8]))
    assert not near_duplicates(whole, changed).item()
    assert near_duplicates(whole, short).item() and near_duplicates(short, whole).item()


@pytest.mark.parametrize("length", [0, 1, 5])
def test_what_has_no_shape_is_no_duplicate(length: int) -> None:
    flat = beats_of(np.full((3, 1, NUM_SAMPLES), 0.1), np.full(3, length))
    assert not near_duplicates(flat, flat, 0.0).any()
    assert not near_duplicates(flat, SYNTHETIC, 0.0).any() and not near_duplicates(SYNTHETIC, flat, 0.0).any()


def test_none_among_none() -> None:
    none = SYNTHETIC.select(torch.arange(0))
    assert near_duplicates(none, SYNTHETIC).shape == repeated(none).shape == (0,)
    assert not near_duplicates(SYNTHETIC, none).any() and not repeated(SYNTHETIC, none).any()


def test_what_cannot_be_compared_is_refused() -> None:
    two_leads = replace(SYNTHETIC, signal=SYNTHETIC.signal.expand(-1, 2, -1).contiguous())
    for other in (two_leads, replace(SYNTHETIC, rate_hz=100.0)):
        with pytest.raises(ValueError, match="leads or sampling rate"):
            near_duplicates(SYNTHETIC, other)
    for threshold in (-0.1, 1.0):
        with pytest.raises(ValueError, match="not within 0…1"):
            near_duplicates(SYNTHETIC, SYNTHETIC, threshold)


def test_repeated_beats_are_those_of_an_earlier_beat() -> None:
    beats = SYNTHETIC.select(torch.tensor([3, 1, 3, 2, 1, 1]))
    assert repeated(beats).tolist() == [False, False, True, False, True, True]
    assert repeated(beats, SYNTHETIC.select(torch.tensor([1, 7]))).tolist() == [False, True, False, False, True, True]
    nearly = replace(SYNTHETIC, signal=SYNTHETIC.signal * (1 - 2**-20))
    assert not repeated(nearly, SYNTHETIC).any()
