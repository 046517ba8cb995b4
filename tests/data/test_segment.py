import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.beats import NUM_SAMPLES
from data.segment import MIN_SAMPLES, Rhythm, cut, find_r_peaks, local_rr, measure, resample

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


def segment(signal: NDArray, start: NDArray[np.int64]) -> tuple[Rhythm, NDArray[np.float32]]:
    rhythm = measure(start, len(signal))
    return rhythm, cut(signal, rhythm.start, rhythm.length)


def test_cutting_scales_and_pads() -> None:
    rhythm, beats = segment(RISING, np.arange(0, 1000, 100))
    assert rhythm.kept.all() and beats.shape == (10, NUM_SAMPLES)
    np.testing.assert_array_equal(beats.max(axis=1), 1)
    np.testing.assert_array_equal(beats.min(axis=1), 0)
    assert (beats[:, 120:] == 0).all()
    assert (beats[:9, 119] > 0).all()
    assert (beats[9, 100:] == 0).all()


def test_the_last_beats_are_dropped_but_keep_their_intervals() -> None:
    rhythm, beats = segment(RISING, np.array([0, 100, 225, 961]))
    assert rhythm.kept.tolist() == [True, True, True, False]
    np.testing.assert_allclose(rhythm.rr_before_s, [0.8, 0.8, 1.0])
    np.testing.assert_allclose(rhythm.rr_after_s, [0.8, 1.0, 736 / 125])
    assert rhythm.start.tolist() == [0, 100, 225]
    assert beats.shape[0] == rhythm.length.shape[0] == rhythm.intervals.shape[0] == 3
    assert measure(np.array([0, 1000 - MIN_SAMPLES]), 1000).kept.all()


def test_beats_are_no_longer_than_the_layout() -> None:
    assert (segment(RISING, np.array([0, 400, 800]))[1][:2, -1] == 1).all()


def test_a_flat_record_gives_flat_beats() -> None:
    assert (segment(np.ones(1000), np.arange(0, 1000, 100))[1] == 0).all()


def test_no_start_gives_no_beat_and_one_start_no_interval() -> None:
    assert segment(RISING, np.zeros(0, np.int64))[1].shape == (0, NUM_SAMPLES)
    with pytest.raises(ValueError, match="two beats"):
        measure(np.array([3]), 1000)


@settings(deadline=None)
@given(st.lists(st.integers(0, 999), min_size=2, max_size=40, unique=True).map(sorted))
def test_any_starts_obey_the_rules_of_a_beat(starts: list[int]) -> None:
    rhythm, beats = segment(RISING, np.array(starts))
    assert rhythm.kept.tolist() == [1000 - start >= MIN_SAMPLES for start in starts]
    assert np.isfinite(rhythm.intervals).all()
    assert beats.min(initial=0) >= 0 and beats.max(initial=1) == 1


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


@pytest.mark.parametrize("unit", [1e-3, 1e-6, 1e3])
def test_the_unit_does_not_matter(unit: float) -> None:
    signal, _ = train_of_peaks(360)
    np.testing.assert_array_equal(find_r_peaks(unit * signal + 7, 360), find_r_peaks(signal, 360))


def test_the_first_and_the_last_beat_are_found() -> None:
    signal, peaks = train_of_peaks(250)
    for first, last in ((peaks[3] - 50, peaks[12] + 50), (peaks[5] - 100, peaks[14] + 100)):
        found = first + find_r_peaks(signal[first:last], 250)
        inside = peaks[(peaks >= first) & (peaks < last)]
        assert len(found) == len(inside) and np.abs(found - inside).max() <= 2


@pytest.mark.parametrize("level", [0.0, -5.12, 1e6])
@pytest.mark.parametrize("num_samples", [0, 1, 31, 3000])
def test_a_flat_record_has_no_peaks(num_samples: int, level: float) -> None:
    assert find_r_peaks(np.full(num_samples, level), 100).tolist() == []


def test_flat_stretches_have_no_peaks_and_hide_none() -> None:
    signal, peaks = train_of_peaks(250)
    flat = [(0, 10 * 250), (18 * 250, 22 * 250)]
    for first, last in flat:
        signal[first:last] = 0
    found = find_r_peaks(signal, 250)
    assert not any(((found > first + 5) & (found < last - 5)).any() for first, last in flat)
    outside = peaks[(peaks >= flat[0][1]) & ~((peaks >= flat[1][0]) & (peaks < flat[1][1]))]
    assert np.abs(outside[:, None] - found).min(axis=1).max() <= 2


def test_a_record_that_begins_to_sound_in_its_last_second_has_no_peaks() -> None:
    signal = np.zeros(5000)
    signal[-30:] = np.random.default_rng(0).random(30)
    assert find_r_peaks(signal, 360).tolist() == []


def test_an_inverted_beat_among_upright_ones_starts_at_its_own_peak() -> None:
    signal, peaks = train_of_peaks(250)
    around = slice(peaks[10] - 40, peaks[10] + 40)
    signal[around] *= -1.5
    found = find_r_peaks(signal, 250)
    assert len(found) == len(peaks) and np.abs(found - peaks).max() <= 2


@pytest.mark.parametrize("num_samples", [1, 31, 99, 100, 101, 150, 199, 200, 300])
def test_a_short_record_of_noise_is_not_an_error(num_samples: int) -> None:
    for seed in range(20):
        found = find_r_peaks(np.random.default_rng(seed).standard_normal(num_samples), 100)
        assert ((found >= 0) & (found < num_samples)).all()
        assert num_samples >= 100 or len(found) == 0
