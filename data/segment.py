"""From a record to beats: resample, find R peaks, cut, scale, pad (Kachuee et al. 2018, IEEE ICHI, 443–444)."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median
from scipy.signal import resample_poly

from data.beats import NUM_SAMPLES, RATE_HZ, scale_and_pad
from data.intervals import log_ratios, rr_before_after

WINDOW_S = 10
BEAT_PER_RR = 1.2
MIN_SAMPLES = 40
"""At 125 Hz; a beat with fewer left in its record is dropped."""
DETECT_HZ = 125
"""Over the 48 records of mitdb, as good as 250 Hz, in half the time."""
PLACE_HZ = 250
"""Peaks are placed to 4 ms, whatever the record's rate."""
TYPICAL_MV, TYPICAL_S = 1.5, 2
"""A lead's median height over windows of so many seconds, as the detector expects it."""
GAIN = 1000
"""Per mV: what is not seen at a microvolt is no beat."""
MIRRORED_S = 2
"""At both ends: GQRS looks for no beat in the first .28 s, and answers with one when it has seen the next."""
ONSET = 4
"""Samples at 125 Hz: GQRS answers with the onset, so long before its filter's peak."""
SEARCH_S = 0.05
AROUND_S = 0.2
"""On either side of a peak; the median of that is where its deflection is measured from."""
TOO_SHORT = f"fewer than {MIN_SAMPLES} samples left in the record"


class Rhythm(NamedTuple):
    """What the R peaks of one record say of its beats."""

    start: NDArray[np.int64]
    """(num_beats,): of those that gave a beat, the sample at 125 Hz."""
    length: NDArray[np.int64]
    kept: NDArray[np.bool_]
    """(num_starts,): which of the R peaks gave a beat; the other arrays hold those alone."""
    rr_before_s: NDArray[np.float32]
    rr_after_s: NDArray[np.float32]
    intervals: NDArray[np.float32]
    """(num_beats, 6), see `data.intervals`."""


def resample(signal: NDArray[np.floating], rate_hz: float, new_rate_hz: float) -> NDArray[np.float64]:
    """Samples along the last axis at a new rate; the anti-aliasing filter is `scipy.signal.resample_poly`'s."""
    step = ratio_of(rate_hz, new_rate_hz)
    return resample_poly(signal, step.numerator, step.denominator, axis=-1)


def ratio_of(rate_hz: float, new_rate_hz: float) -> Fraction:
    """New samples for each old one."""
    return Fraction(new_rate_hz).limit_denominator(1000) / Fraction(rate_hz).limit_denominator(1000)


def find_r_peaks(signal: NDArray[np.floating], rate_hz: float) -> NDArray[np.int64]:
    """Samples, at `rate_hz`, of the R peaks of a record (num_samples,) in any unit, ascending.

    The detector is the `wfdb` package's GQRS. Each peak is moved to the largest deflection within 50 ms, up or down,
    which is where a beat of the published files starts. A record of less than a second has none.
    """
    signal = signal - np.median(signal) if len(signal) else signal  # resampling takes what lies beyond for zero
    if len(signal) < rate_hz or not signal.any():
        return np.zeros(0, np.int64)
    found = _detect(resample(signal, rate_hz, DETECT_HZ)) * (PLACE_HZ / DETECT_HZ)
    fast = resample(signal, rate_hz, PLACE_HZ)
    moved = _to_deflection(fast, np.round(found).astype(np.int64).clip(0, len(fast) - 1))
    return np.unique(np.round(moved * (rate_hz / PLACE_HZ)).astype(np.int64).clip(0, len(signal) - 1))


def _detect(signal: NDArray[np.float64]) -> NDArray[np.int64]:
    """QRS complexes of a signal (num_samples,) at 125 Hz: within a few samples of their middle.

    GQRS knows how high a QRS complex is, in millivolts: those of the signal are made so high.
    """
    with quietly():
        from wfdb.processing import gqrs_detect

    size = min(len(signal), TYPICAL_S * DETECT_HZ)
    height = np.ptp(signal[: len(signal) // size * size].reshape(-1, size), axis=1)
    typical = np.median(height[height > 0]) if height.any() else np.ptp(signal)
    digital = np.round(signal * (TYPICAL_MV * GAIN / typical)).astype(np.int64)
    reach = MIRRORED_S * DETECT_HZ
    mirrored = np.pad(digital, reach, mode="reflect")
    found = gqrs_detect(d_sig=mirrored, fs=DETECT_HZ, adc_gain=GAIN, adc_zero=0).astype(np.int64) + ONSET - reach
    return found[(found >= 0) & (found < len(signal))]


@contextmanager
def quietly() -> Iterator[Any]:
    """The wfdb package, which uses pandas in ways that pandas is giving up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import wfdb

        yield wfdb


def _to_deflection(signal: NDArray[np.float64], peak: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each peak (num_peaks,) moved to the sample farthest from the median around it, at 250 Hz."""

    def around(seconds: float) -> NDArray[np.int64]:
        reach = round(seconds * PLACE_HZ)
        return (peak[:, None] + np.arange(-reach, reach + 1)).clip(0, len(signal) - 1)

    near = around(SEARCH_S)
    level = np.median(signal[around(AROUND_S)], axis=1, keepdims=True)
    return near[np.arange(len(peak)), np.abs(signal[near] - level).argmax(axis=1)]


def measure(start: NDArray[np.int64], num_samples: int) -> Rhythm:
    """The beats of a record of `num_samples` at 125 Hz that start at `start`, in ascending order.

    A beat lasts 1.2 × the median RR interval of its 10-second window, at most 187 samples.

    Raises:
        ValueError: a single beat, which has no RR interval.
    """
    before, after = rr_before_after(start)
    kept = num_samples - start >= MIN_SAMPLES
    return Rhythm(
        start=start[kept],
        length=np.minimum(np.round(BEAT_PER_RR * local_rr(start)), num_samples - start).astype(np.int64)[kept],
        kept=kept,
        rr_before_s=(before[kept] / RATE_HZ).astype(np.float32),
        rr_after_s=(after[kept] / RATE_HZ).astype(np.float32),
        intervals=log_ratios(before, after)[kept],
    )


def cut(signal: NDArray[np.floating], start: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.float32]:
    """Beats (num_beats, 187) of a signal (num_samples,) at 125 Hz, scaled to 0…1, zero after each beat's end."""
    reach = np.minimum(start[:, None] + np.arange(NUM_SAMPLES), len(signal) - 1)
    return scale_and_pad(signal[reach], length)


def local_rr(start: NDArray[np.int64]) -> NDArray[np.float64]:
    """Median RR interval, in samples, of each beat's 10-second window; the record's where a window has no pair."""
    if len(start) == 0:
        return np.zeros(0)
    window = start // int(WINDOW_S * RATE_HZ)
    gaps = np.diff(start)
    within = window[1:] == window[:-1]
    numbers = np.arange(window[-1] + 1)
    medians = np.full(len(numbers), np.median(gaps))
    present = np.isin(numbers, window[1:][within])
    medians[present] = median(gaps[within], window[1:][within], numbers[present])
    return medians[window]
