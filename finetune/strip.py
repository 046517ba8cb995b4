"""A strip plot: stretches of a record under each other, each beat in its class's colour, with its class above it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from data.pictures import COLOURS, write_figures
from data.record import Record

ROW_S = 10
NUM_ROWS = 6
BEFORE_S, AFTER_S = 0.25, 0.4
"""Of a beat in colour around its peak; less where the next is near."""
WIDTH_INCHES, ROW_INCHES = 11, 1.15
LINE, GRID = "0.45", "0.9"
SMALL = 8
LOW, HIGH = 0.001, 0.999
"""Quantiles of the signal that a row's height holds."""


class Labelled(NamedTuple):
    """The beats of a record."""

    sample: NDArray[np.int64]
    """(num_beats,), ascending."""
    label: NDArray[np.integer]
    classes: tuple[str, ...]


def write_strip(path: Path, record: Record, beats: Labelled, start_s: float | None) -> list[Path]:
    """Draw six rows of ten seconds as PNG and SVG: from `start_s` on, or those of the rarest classes.

    Args:
        path: its suffix, if it is .png or .svg, is left out.

    Returns:
        The paths written.
    """
    stem = path.with_suffix("") if path.suffix in (".png", ".svg") else path
    starts = rarest_rows(record, beats) if start_s is None else rows_from(record, start_s)
    return write_figures({stem.name: partial(draw_strip, record, beats, starts, start_s is None)}, stem.parent)


def rows_from(record: Record, start_s: float) -> list[int]:
    """First samples of consecutive rows.

    Raises:
        ValueError: a start outside the record.
    """
    if not 0 <= start_s < record.seconds:
        raise ValueError(f"--strip-start {start_s:g}: {record.stem.name} lasts from 0 to {record.seconds:g} s")
    starts = [round((start_s + row * ROW_S) * record.rate_hz) for row in range(NUM_ROWS)]
    return [start for start in starts if start < record.num_samples]


def rarest_rows(record: Record, beats: Labelled) -> list[int]:
    """First samples of the rows to show, in order of time.

    In turn from the rarest class to the commonest, each takes the row with most of its beats that is not taken yet; the
    commonest takes one only where the others have no more.
    """
    size = round(ROW_S * record.rate_hz)
    num_rows, num_classes = -(-record.num_samples // size), len(beats.classes)
    counts = np.bincount(beats.sample // size * num_classes + beats.label, minlength=num_rows * num_classes)
    by_row = counts.reshape(num_rows, num_classes)
    total = by_row.sum(axis=0)
    rarest = [place for place in np.argsort(total, kind="stable").tolist() if total[place]]
    chosen: list[int] = []
    for turn in (rarest[:-1], rarest[-1:]):
        while len(chosen) < NUM_ROWS and by_row[:, turn].any():
            for place in turn:
                best = int(by_row[:, place].argmax())
                if by_row[best, place] and len(chosen) < NUM_ROWS:
                    chosen.append(best)
                    by_row[best] = 0
    return [row * size for row in sorted(chosen)]


def draw_strip(record: Record, beats: Labelled, starts: Sequence[int], by_rarity: bool) -> Figure:
    figure = Figure(figsize=(WIDTH_INCHES, 1.0 + ROW_INCHES * len(starts)), layout="constrained")
    rows: list[Axes] = figure.subplots(len(starts), squeeze=False, sharey=True).ravel().tolist()
    size = round(ROW_S * record.rate_hz)
    signals = [record.read(start, min(start + size, record.num_samples)) for start in starts]
    signals = [signal - np.median(signal) for signal in signals]
    low, high = np.quantile(np.concatenate(signals), [LOW, HIGH])
    room = max(high - low, 1e-9)
    for axes, start, signal in zip(rows, starts, signals, strict=True):
        _draw_row(axes, record.rate_hz, start, signal, beats)
        axes.set(xlim=(0, ROW_S), ylim=(low - 0.15 * room, high + 0.4 * room))
    rows[-1].set_xlabel("time (s)")
    rows[-1].tick_params(labelbottom=True)
    shown = np.unique(np.concatenate([_inside(beats, start, size) for start in starts]))
    for place in np.unique(beats.label[shown]).tolist():
        count = int((beats.label == place).sum())
        rows[0].plot([], [], color=_colour(place), lw=2, label=f"{beats.classes[place]}, {count:,} beats")
    figure.legend(loc="outside lower center", ncols=5)
    what = ", rows where rare classes are most" if by_rarity else ""
    figure.suptitle(f"{record.stem.name}, {record.lead}: predicted classes{what}")
    return figure


def _draw_row(axes: Axes, rate_hz: float, start: int, signal: NDArray[np.float64], beats: Labelled) -> None:
    time_s = np.arange(len(signal)) / rate_hz
    axes.plot(time_s, signal, color=LINE, lw=0.7)
    here = _inside(beats, start, len(signal))
    borders = np.r_[0, (beats.sample[here][1:] + beats.sample[here][:-1]) // 2 - start, len(signal)]
    for number, beat in enumerate(here):
        peak, place = int(beats.sample[beat] - start), int(beats.label[beat])
        first = max(int(borders[number]), peak - round(BEFORE_S * rate_hz), 0)
        last = min(int(borders[number + 1]), peak + round(AFTER_S * rate_hz))
        axes.plot(time_s[first:last], signal[first:last], color=_colour(place), lw=1.3)
        axes.text(
            peak / rate_hz,
            0.98,
            beats.classes[place],
            color=_colour(place),
            fontsize=SMALL,
            fontweight="bold",
            ha="center",
            va="top",
            transform=axes.get_xaxis_transform(),
        )
    axes.set_xticks(range(ROW_S + 1))
    axes.grid(axis="x", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelbottom=False, length=0)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_ylabel(_clock(start / rate_hz), rotation=0, ha="right", va="center", fontsize=SMALL)


def _inside(beats: Labelled, start: int, size: int) -> NDArray[np.int64]:
    return np.arange(*np.searchsorted(beats.sample, [start, start + size]))


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _clock(seconds: float) -> str:
    """1:02:03; with tenths where there are some."""
    tenths = round(seconds * 10)
    whole, tenth = divmod(tenths, 10)
    minutes, rest = divmod(whole, 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" + (f".{tenth}" if tenth else "")
