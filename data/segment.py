"""From a record to beats: resample, find R peaks, cut, scale, pad (Kachuee et al. 2018, IEEE ICHI, 443–444)."""

import contextlib
import io
import warnings
from fractions import Fraction
from typing import NamedTuple

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
DETECT_HZ = 250
"""At 100 Hz the detector takes T waves for beats: 22 beats in a record of 11 (PTB-XL 00001)."""
SEARCH_S = 0.05
TOO_SHORT = f"fewer than {MIN_SAMPLES} samples left in the record"


class Cut(NamedTuple):
    """The beats of one record."""

    signal: NDArray[np.float32]
    """(num_beats, 187), scaled to 0…1, zero after each beat's end."""
    kept: NDArray[np.bool_]
    """(num_starts,): which of the R peaks gave a beat; the other arrays hold those alone."""
    rr_before_s: NDArray[np.float32]
    rr_after_s: NDArray[np.float32]
    intervals: NDArray[np.float32]
    """(num_beats, 6), see `data.intervals`."""


def resample(signal: NDArray[np.floating], rate_hz: float, new_rate_hz: float) -> NDArray[np.float64]:
    """Samples along the last axis at a new rate; the anti-aliasing filter is `scipy.signal.resample_poly`'s."""
    step = Fraction(new_rate_hz).limit_denominator(1000) / Fraction(rate_hz).limit_denominator(1000)
    return resample_poly(signal, step.numerator, step.denominator, axis=-1)


def find_r_peaks(signal: NDArray[np.floating], rate_hz: float) -> NDArray[np.int64]:
    """Samples, at `rate_hz`, of the R peaks of a record (num_samples,), ascending: the `wfdb` package's XQRS detector.

    Each is moved to the largest deflection within 50 ms, which is where a beat of the published files starts. A record
    of less than a second has none: the detector smooths over one.
    """
    if len(signal) < rate_hz:
        return np.zeros(0, np.int64)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the package's own: pandas' deprecations, divisions in flat stretches
        from wfdb.processing import correct_peaks, xqrs_detect

        fast = resample(signal, rate_hz, DETECT_HZ)
        found = np.asarray(xqrs_detect(fast, fs=DETECT_HZ, verbose=False), np.int64)
        if len(found) == 0:
            return found
        radius = round(SEARCH_S * DETECT_HZ)
        moved = correct_peaks(fast, found, radius, DETECT_HZ, peak_dir="compare")
    inside = moved[(moved >= 0) & (moved < len(fast))]
    return np.unique(np.round(inside * (rate_hz / DETECT_HZ)).astype(np.int64).clip(0, len(signal) - 1))


def cut(signal: NDArray[np.floating], start: NDArray[np.int64]) -> Cut:
    """Cut a record (num_samples,) at 125 Hz into the beats that start at `start`, in ascending order.

    A beat lasts 1.2 × the median RR interval of its 10-second window, at most 187 samples.

    Raises:
        ValueError: a single beat, which has no RR interval.
    """
    before, after = rr_before_after(start)
    length = np.minimum(np.round(BEAT_PER_RR * local_rr(start)), len(signal) - start).astype(np.int64)
    kept = len(signal) - start >= MIN_SAMPLES
    reach = np.minimum(start[kept, None] + np.arange(NUM_SAMPLES), len(signal) - 1)
    return Cut(
        signal=scale_and_pad(signal[reach], length[kept]),
        kept=kept,
        rr_before_s=(before[kept] / RATE_HZ).astype(np.float32),
        rr_after_s=(after[kept] / RATE_HZ).astype(np.float32),
        intervals=log_ratios(before, after)[kept],
    )


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
