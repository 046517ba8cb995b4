import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.beats import NUM_SAMPLES
from data.segment import MIN_SAMPLES, cut, find_r_peaks, local_rr, resample

TIME = np.arange(1000.0)
RISING = np.sin(TIME / 7) + TIME


def train_of_peaks(rate_hz: int, seconds: float = 30, rr_s: float = 0.8) -> tuple[NDArray[np.float64], NDArray]:
    """Narrow peaks at a steady rate, in noise; and the samples of the peaks."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    peak_s = np.arange(0.5, seconds - 0.4, rr_s)
    signal = np.exp(-0.5 * ((time_s[:, None] - peak_s) / 0.012) ** 2).sum(axis=1)
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(signal))
    return signal + noise, np.round(peak_s * rate_hz).astype(np.int64)


def test_rr_is_the_median_of_the_window_or_else_of_the_record() -> None:
    start = np.array([0, 100, 200, 400, 1250, 1300, 1370, 2600])
    np.testing.assert_array_equal(local_rr(start), [100, 100, 100, 100, 60, 60, 60, 100])


def test_cutting_scales_and_pads() -> None:
    found = cut(RISING, np.arange(0, 1000, 100))
    assert found.kept.all() and found.signal.shape == (10, NUM_SAMPLES)
    np.testing.assert_array_equal(found.signal.max(axis=1), 1)
    np.testing.assert_array_equal(found.signal.min(axis=1), 0)
    assert (found.signal[:, 120:] == 0).all()
    assert (found.signal[:9, 119] > 0).all()
    assert (found.signal[9, 100:] == 0).all()


def test_the_last_beats_are_dropped_but_keep_their_intervals() -> None:
    found = cut(RISING, np.array([0, 100, 225, 961]))
    assert found.kept.tolist() == [True, True, True, False]
    np.testing.assert_allclose(found.rr_before_s, [0.8, 0.8, 1.0])
    np.testing.assert_allclose(found.rr_after_s, [0.8, 1.0, 736 / 125])
    assert found.signal.shape[0] == found.intervals.shape[0] == 3
    assert cut(RISING, np.array([0, 1000 - MIN_SAMPLES])).kept.all()


def test_beats_are_no_longer_than_the_layout() -> None:
    assert (cut(RISING, np.array([0, 400, 800])).signal[:2, -1] == 1).all()


def test_a_flat_record_gives_flat_beats() -> None:
    assert (cut(np.ones(1000), np.arange(0, 1000, 100)).signal == 0).all()


def test_no_start_gives_no_beat_and_one_start_no_interval() -> None:
    assert cut(RISING, np.zeros(0, np.int64)).signal.shape == (0, NUM_SAMPLES)
    with pytest.raises(ValueError, match="two beats"):
        cut(RISING, np.array([3]))


@settings(deadline=None)
@given(st.lists(st.integers(0, 999), min_size=2, max_size=40, unique=True).map(sorted))
def test_any_starts_obey_the_rules_of_a_beat(starts: list[int]) -> None:
    found = cut(RISING, np.array(starts))
    assert found.kept.tolist() == [1000 - start >= MIN_SAMPLES for start in starts]
    assert np.isfinite(found.intervals).all()
    assert found.signal.min(initial=0) >= 0 and found.signal.max(initial=1) == 1


@pytest.mark.parametrize("rate_hz", [100, 360, 500, 1000])
def test_resampling_keeps_the_time(rate_hz: int) -> None:
    time_s = np.arange(10 * rate_hz) / rate_hz
    made = resample(np.sin(2 * np.pi * 1.3 * time_s), rate_hz, 125)
    assert len(made) == 1250
    wanted = np.sin(2 * np.pi * 1.3 * np.arange(1250) / 125)
    np.testing.assert_allclose(made[100:-100], wanted[100:-100], atol=0.01)


@pytest.mark.parametrize("rate_hz", [100, 360, 1000])
def test_peaks_are_found_where_they_are(rate_hz: int) -> None:
    signal, peaks = train_of_peaks(rate_hz)
    for turned in (signal, -signal):
        found = find_r_peaks(turned, rate_hz)
        assert len(found) == len(peaks)
        assert np.abs(found - peaks).max() <= 0.01 * rate_hz


@pytest.mark.parametrize("num_samples", [0, 1, 31, 3000])
def test_a_flat_record_has_no_peaks(num_samples: int) -> None:
    assert find_r_peaks(np.zeros(num_samples), 100).tolist() == []


@pytest.mark.parametrize("num_samples", [1, 31, 99, 100, 101, 150, 300])
def test_a_short_record_of_noise_is_not_an_error(num_samples: int) -> None:
    noise = np.random.default_rng(num_samples).standard_normal(num_samples)
    found = find_r_peaks(noise, 100)
    assert ((found >= 0) & (found < num_samples)).all()
    assert num_samples >= 100 or len(found) == 0
