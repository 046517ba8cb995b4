"""From a record to beats: resample, find R peaks, cut, scale, pad (Kachuee et al. 2018, IEEE ICHI, 443–444)."""

from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median
from scipy.signal import butter, resample_poly, sosfiltfilt

from data.beats import NUM_SAMPLES, RATE_HZ, scale_and_pad
from data.intervals import log_ratios, rr_before_after

WINDOW_S = 10
BEAT_PER_RR = 1.2
MIN_SAMPLES = 40
"""At 125 Hz; a beat with fewer left in its record is dropped."""
DETECT_HZ = 250
"""Peaks are placed to 4 ms, whatever the record's rate."""
SEARCH_S = 0.05
AROUND_S = 0.2
"""On either side of a peak; the median of that is where its deflection is measured from."""
SHORTEST_S = 10
"""A shorter record is mirrored at its end: the detector reads the first two seconds, be they there or not, and writes
past the end of its list of RR intervals where a record of a few seconds is full of peaks."""
WIDE_HZ = 15
T_WAVE_S = 0.36
"""As the detector has it: a second peak that soon after the first may be its T wave."""
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
    """Samples, at `rate_hz`, of the R peaks of a record (num_samples,), ascending.

    The detector is `sleepecg`'s, after Pan and Tompkins (1985, IEEE TBME 32(3):230–236). Each peak is moved to the
    largest deflection within 50 ms, up or down, which is where a beat of the published files starts. A record of less
    than a second has none, nor has one that is flat but for less than its last second.
    """
    if len(signal) < rate_hz:
        return np.zeros(0, np.int64)
    fast = resample(signal - np.median(signal), rate_hz, DETECT_HZ)  # the filter takes what lies beyond for zero
    changes = np.flatnonzero(np.diff(fast))
    if len(changes) == 0 or len(fast) - changes[0] < DETECT_HZ:
        return np.zeros(0, np.int64)
    peak = _to_deflection(fast, changes[0] + _detect(fast[changes[0] :]))
    return np.unique(np.round(peak * (rate_hz / DETECT_HZ)).astype(np.int64).clip(0, len(signal) - 1))


def _detect(signal: NDArray[np.float64]) -> NDArray[np.int64]:
    """Peaks of a signal at 250 Hz, ascending: those of the signal, and those of what of it is below 15 Hz.

    The detector looks for steep slopes, and so misses wide beats among narrow ones, ventricular ones above all: below
    15 Hz their slopes are alike. A peak that shows only there counts where it is no T wave of another.
    """
    from sleepecg.heartbeats import detect_heartbeats

    mirrored = np.pad(signal, (0, max(0, SHORTEST_S * DETECT_HZ - len(signal))), mode="reflect")
    smooth = sosfiltfilt(butter(2, WIDE_HZ, fs=DETECT_HZ, output="sos"), mirrored)
    steep, wide = (detect_heartbeats(each, DETECT_HZ) for each in (mirrored, smooth))
    neighbour = np.r_[-np.inf, steep, np.inf]
    place = np.searchsorted(steep, wide)
    distance = np.minimum(wide - neighbour[place], neighbour[place + 1] - wide)
    found = np.sort(np.r_[steep, wide[distance > T_WAVE_S * DETECT_HZ]])
    return found[found < len(signal)]


def _to_deflection(signal: NDArray[np.float64], peak: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each peak (num_peaks,) moved to the sample farthest from the median around it, at 250 Hz."""

    def around(seconds: float) -> NDArray[np.int64]:
        reach = round(seconds * DETECT_HZ)
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
