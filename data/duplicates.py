"""Beats that occur more than once: bit for bit, or in nearly the same shape, as a patient's neighbouring beats do."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from data.beats import Beats

BLOCK = 4096
"""Beats of either side that are compared at once. Smaller ones are as fast on idle cores, but on busy ones the threads
wait for each other at every block: 1024 took two to six times as long."""
MIN_LENGTH = 2


def repeated(beats: Beats, others: Beats | None = None) -> Tensor:
    """Whether a beat's signal is bit for bit that of an earlier beat, or, where there are `others`, of one of those.

    Returns:
        bool (num_beats,).
    """
    seen = set() if others is None else set(_rows(others))
    found = []
    for row in _rows(beats):
        found.append(row in seen)
        if others is None:
            seen.add(row)
    return torch.tensor(found, dtype=torch.bool)


def near_duplicates(beats: Beats, others: Beats, threshold: float = 0.995) -> Tensor:
    """Whether a beat has one among `others` that correlates with it (Pearson) by more than `threshold`.

    Two beats are compared, in all leads at once, from the R peak to the end of the shorter one. A pair of which one is
    flat up to there, or shorter than two samples, does not correlate.

    Every pair is compared, as blocks of float32 matrix products, so that a correlation within 1e-5 of the threshold may
    fall on either side. 21,896 beats against 78,826 take 5 s on two idle cores. Beside the two signals this needs at
    most twice their memory, and 80 MB.

    Returns:
        bool (num_beats,).

    Raises:
        ValueError: `threshold` is not within 0…1, or the two differ in leads or sampling rate.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold {threshold} of a correlation is not within 0…1")
    if (beats.signal.shape[1], beats.rate_hz) != (others.signal.shape[1], others.rate_hz):
        raise ValueError(f"{beats.source} and {others.source} differ in leads or sampling rate: not comparable")
    signal, length = _from_peak(beats), beats.valid_length
    other_signal, other_length = _from_peak(others), others.valid_length
    found = torch.zeros(len(beats), dtype=torch.bool)
    for shorter in torch.cat([length, other_length]).unique().tolist():
        if shorter < MIN_LENGTH:
            continue
        for mine, theirs in (
            (length == shorter, other_length >= shorter),
            (length > shorter, other_length == shorter),
        ):
            index = (mine & ~found).nonzero().squeeze(1)
            if len(index) and theirs.any():
                found[index] = _correlates(signal[index, :, :shorter], other_signal[theirs, :, :shorter], threshold)
    return found


def _correlates(signal: Tensor, others: Tensor, threshold: float) -> Tensor:
    """Whether a beat of `signal` correlates with any of `others`; both float32 (num_beats, num_leads, length)."""
    found = torch.zeros(len(signal), dtype=torch.bool)
    for first in range(0, len(signal), BLOCK):
        block = _standardise(signal[first : first + BLOCK])
        for other in others.split(BLOCK):
            found[first : first + BLOCK] |= (block @ _standardise(other).T).amax(dim=1) > threshold
    return found


def _standardise(signal: Tensor) -> Tensor:
    """Rows of mean 0 and norm 1, whose products are correlations; a flat row becomes zero."""
    rows = signal.flatten(1)
    return normalize(rows - rows.mean(dim=1, keepdim=True), dim=1)


def _from_peak(beats: Beats) -> Tensor:
    """The signal less its first sample: what is flat is then zero without any rounding."""
    return beats.signal - beats.signal[:, :1, :1]


def _rows(beats: Beats) -> list[bytes]:
    return [row.tobytes() for row in beats.signal.numpy()]
