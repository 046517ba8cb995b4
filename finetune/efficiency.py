"""The label-efficiency plot: macro recall, and its difference to scratch, over the share of labels; with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from data.pictures import COLOURS, MARKERS, write_figures
from finetune.rows import Row

Series = Mapping[str, Sequence[Row]]
"""By name in the legend, one group over shares of labels."""

COLUMN_INCHES, PANELS_INCHES, LEGEND_INCHES = 3.4, 5.0, 0.2
APART = 0.05
"""Of a decade, between neighbouring series: their intervals do not cover each other."""
CONTROL = "0.4"
LINES = {"linear": "dashed", "random-frozen": "dotted", "scratch": "solid"}
"""Of the controls that are drawn; always one class is chance, whatever the labels."""


def draw_efficiency(rows: Sequence[Row], title: str, folder: Path) -> list[Path]:
    """Draw a comparison as PNG and SVG, a column for each pretraining; the paths written."""
    return write_figures({"label_efficiency": partial(draw, rows, title)}, folder)


def draw(rows: Sequence[Row], title: str) -> Figure:
    columns = _columns(rows)
    num_lines = max(len(controls) + len(transfer) for controls, transfer in columns.values())
    size = (max(2, len(columns)) * COLUMN_INCHES, PANELS_INCHES + LEGEND_INCHES * num_lines)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(2, len(columns), sharex=True, sharey="row", squeeze=False)
    for (level, gain), (name, (controls, transfer)) in zip(panels.T, columns.items(), strict=True):
        level.set_title(name)
        _draw_levels(level, controls, transfer)
        _draw_gains(gain, transfer)
        _label_shares(gain, rows)
        names = level.get_legend_handles_labels()
        gain.legend(*names, loc="upper center", bbox_to_anchor=(0.5, -0.28), fontsize="small")
    panels[0, 0].set_ylabel("test macro recall")
    panels[1, 0].set_ylabel("difference to scratch")
    figure.suptitle(f"{title} · bars: 95 % intervals, over seeds", fontsize="medium")
    return figure


def _columns(rows: Sequence[Row]) -> dict[str, tuple[Series, Series]]:
    """Of each pretraining and architecture its controls and its groups of checkpoints."""
    pretrained = [row for row in rows if row.arm == "transfer"] or list(rows)
    found = {}
    for name, architecture in dict.fromkeys((row.name, row.architecture) for row in pretrained):
        controls = [row for row in rows if row.arm in LINES and row.architecture in ("none", architecture)]
        transfer = [
            row for row in rows if row.arm == "transfer" and (row.name, row.architecture) == (name, architecture)
        ]
        found[f"{name} · {architecture}"] = _series(controls), _series(transfer)
    return found


def _series(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(" · ".join(filter(None, (row.name, row.words))), []).append(row)
    return found


def _draw_levels(axes: Axes, controls: Series, transfer: Series) -> None:
    for name, rows in controls.items():
        shares, levels = [row.label_fraction for row in rows], [row.macro_recall for row in rows]
        axes.plot(shares, levels, color=CONTROL, linestyle=LINES[rows[0].arm], marker=".", label=name)
    for number, (name, rows) in enumerate(transfer.items()):
        bounds = [(row.macro_recall, row.low, row.high) for row in rows]
        _draw_bars(axes, name, number, len(transfer), [row.label_fraction for row in rows], bounds)


def _draw_gains(axes: Axes, transfer: Series) -> None:
    axes.axhline(0, color=CONTROL, linewidth=0.8)
    for number, (name, rows) in enumerate(transfer.items()):
        paired = [(row.label_fraction, row.difference) for row in rows if row.difference]
        bounds = [(gap.mean, gap.low, gap.high) for _, gap in paired]
        _draw_bars(axes, name, number, len(transfer), [share for share, _ in paired], bounds)


def _draw_bars(
    axes: Axes,
    name: str,
    number: int,
    total: int,
    shares: Sequence[float],
    bounds: Sequence[tuple[float, float | None, float | None]],
) -> None:
    """Means with intervals, where there are any, moved aside from those of the other series."""
    if not bounds:
        return
    moved = np.array(shares) * 10 ** (APART * (number - (total - 1) / 2))
    mean = np.array([middle for middle, _, _ in bounds])
    below = np.array([0.0 if low is None else middle - low for middle, low, _ in bounds])
    above = np.array([0.0 if high is None else high - middle for middle, _, high in bounds])
    axes.errorbar(
        moved,
        mean,
        yerr=[below, above],
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=4,
        linewidth=1,
        capsize=2,
        label=name,
    )


def _label_shares(axes: Axes, rows: Sequence[Row]) -> None:
    shares = sorted({row.label_fraction for row in rows})
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(shares, [f"{100 * share:.3g}" for share in shares], rotation=45)
    axes.set_xlabel("labels, % of the training beats")
