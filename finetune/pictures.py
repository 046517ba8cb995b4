"""Pictures of a search: its trials over all dimensions, one dimension at a time, and what each was worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from data.pictures import COLOURS, GREYS, MARKERS, write_figures
from experiments.space import Dimension, Given, Scalar, Space, said
from finetune.importance import Importance, Trial, importances

Trials = Mapping[str, Sequence[Trial]]
"""By arm; of each config the active dimensions alone."""

NONE, NONE_ROOM = -0.12, 0.05
"""Where the line of a trial runs that lacks the dimension: left of the axis, which is 0 … 1."""
SPREAD = 0.5
"""Share of the room of a choice over which its trials are spread, so that they do not cover each other."""
WIDTH_INCHES, AXIS_INCHES, ROW_INCHES = 11, 7.2, 0.52
CHAR_INCHES = 0.062
PANELS_ABREAST = 4
PANEL_INCHES = (3.0, 2.3)
MOST_LEVELS = 8
"""A range of more whole numbers is drawn as one of real ones."""
LOWEST_COLOURED = 0.05
"""Quantile of the objective below which trials share the darkest colour: a few that failed would take the scale."""
SMALL = 7.5


def draw_study(
    folder: Path, trials: Sequence[Trial], space: Space, objective: str, arms: Mapping[str, Given]
) -> list[Path]:
    """Draw a search, each picture as PNG and SVG: parallel coordinates of each arm, slices, importances.

    Args:
        trials: of all arms; what the space could not have drawn, and what has no finite value, is left out.
        objective: what the values are, as a reader would name it.
        arms: the facts of each arm, in the order of the legends.

    Returns:
        The paths written; none where there is no trial to draw.
    """
    shown = {name: _of_arm(trials, name, space, facts) for name, facts in arms.items()}
    shown = {name: of_arm for name, of_arm in shown.items() if of_arm}
    if not shown:
        return []
    rows = {
        name: importances([(trial.config, trial.value) for trial in of_arm], space, arms[name])
        for name, of_arm in shown.items()
    }
    scale = _colour_scale([trial.value for of_arm in shown.values() for trial in of_arm])
    figures = {
        f"parallel_{name}": partial(draw_parallel, of_arm, space, objective, scale) for name, of_arm in shown.items()
    }
    figures["slices"] = partial(draw_slices, shown, space, objective)
    figures["importance"] = partial(draw_importances, rows, space, objective)
    return write_figures(figures, folder)


def draw_parallel(trials: Sequence[Trial], space: Space, objective: str, scale: Normalize) -> Figure:
    """Parallel coordinates of one arm, turned: an axis for each dimension, from top to bottom, and a line a trial."""
    dimensions = [one for one in space.dimensions if any(one.name in trial.config for trial in trials)]
    figure = Figure(figsize=(WIDTH_INCHES, max(3.0, 1.6 + ROW_INCHES * len(dimensions))), layout="constrained")
    axes = figure.subplots()
    colours = ScalarMappable(scale, "viridis")
    ranked = sorted(trials, key=lambda trial: trial.value)
    where = np.stack([_places(ranked, one) for one in dimensions])
    rows = np.arange(len(dimensions))
    for number, trial in enumerate(ranked):
        _draw_line(axes, where[:, number], colours.cmap(scale(trial.value)))
    best = f"best: {ranked[-1].value:.3f}"
    axes.plot(where[:, -1], rows, color=COLOURS[3], lw=2.5, marker="o", ms=5, label=best)
    for row, one in enumerate(dimensions):
        _draw_axis(axes, row, one)
    axes.set(xlim=(NONE / 3, 1 - NONE / 2), ylim=(len(rows) - 0.3, -0.6), xticks=[])
    if (where < 0).any():
        axes.axvspan(NONE - NONE_ROOM / 2, NONE + NONE_ROOM / 2, color="0.93", lw=0, zorder=0)
        axes.text(NONE, -0.65, "not in\nthe trial", ha="center", va="bottom", fontsize=SMALL)
        axes.set_xlim(left=NONE - NONE_ROOM)
    axes.set_yticks(rows, [one.name for one in dimensions])
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(colours, ax=axes, label=objective, extend="min", fraction=0.03, aspect=30, shrink=0.6)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    figure.suptitle(f"{space.name} space, {ranked[-1].arm}: {_count(len(trials), 'trial')}")
    return figure


def draw_slices(trials: Trials, space: Space, objective: str) -> Figure:
    """The objective over each dimension, by arm; of choices with their medians, the best trial of an arm ringed."""
    everything = [trial for of_arm in trials.values() for trial in of_arm]
    dimensions = [one for one in space.dimensions if any(one.name in trial.config for trial in everything)]
    abreast = min(PANELS_ABREAST, len(dimensions))
    num_rows = -(-len(dimensions) // abreast)
    size = (max(2, abreast) * PANEL_INCHES[0], 1 + num_rows * PANEL_INCHES[1])
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(num_rows, abreast, sharey=True, squeeze=False).ravel().tolist()
    for axes in panels[len(dimensions) :]:
        axes.set_axis_off()
    for axes, one in zip(panels, dimensions, strict=False):
        _draw_slice(axes, one, trials)
        num_active = sum(one.name in trial.config for trial in everything)
        axes.set_title(one.name + f" ({num_active} of {len(everything)} trials)" * (num_active < len(everything)))
        _label_slice(axes, one)
    figure.supylabel(objective, fontsize=10)
    what = (f"{space.name} space, one dimension at a time", "bars: medians, ringed: the best trial of each arm")
    figure.suptitle(("; " if abreast > 2 else "\n").join(what))
    found = [axes.get_legend_handles_labels() for axes in panels]
    handles = {label: handle for pair in found for handle, label in zip(*pair, strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    return figure


def draw_importances(rows: Mapping[str, Sequence[Importance]], space: Space, objective: str) -> Figure:
    """Of each arm, the shares of both evaluators as bars; conditional dimensions apart, each among its own trials."""
    most = max(map(len, rows.values()))
    size = (max(7.0, 5.5 * len(rows)), 1.8 + 0.3 * most)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(rows), squeeze=False).ravel().tolist()
    for axes, (name, of_arm) in zip(panels, rows.items(), strict=True):
        _draw_bars(axes, of_arm)
        axes.set(title=name, xlim=(0, 100), ylim=(most + 0.5, -0.6), xlabel="importance (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    figure.suptitle(f"{space.name} space: what decides {objective}")
    return figure


def _of_arm(trials: Sequence[Trial], arm: str, space: Space, facts: Given) -> list[Trial]:
    """Those that can be drawn, with what of the config was searched."""
    finished = [
        Trial(arm, space.params(trial.config, facts), trial.value)
        for trial in trials
        if trial.arm == arm and math.isfinite(trial.value) and space.accepts(trial.config, facts)
    ]
    return [trial for trial in finished if trial.config]


def _colour_scale(values: Sequence[float]) -> Normalize:
    low, high = float(np.quantile(values, LOWEST_COLOURED)), max(values)
    return Normalize(low, high) if low < high else Normalize(low - 0.5, high + 0.5)


def _levels(dimension: Dimension) -> tuple[Scalar, ...]:
    """The values that it takes, if they are few."""
    if dimension.choices or not dimension.whole or dimension.scale == "log":
        return dimension.choices
    values = tuple(range(int(dimension.low), int(dimension.high) + 1))
    return values if len(values) <= MOST_LEVELS else ()


def _place(dimension: Dimension, value: Scalar | None) -> float:
    """From the left end of its axis, 0, to the right one, 1; `NONE` for no value."""
    if value is None:
        return NONE
    if levels := _levels(dimension):
        return (levels.index(value) + 0.5) / len(levels)
    assert not isinstance(value, str)
    if dimension.scale == "log":
        return math.log(value / dimension.low) / math.log(dimension.high / dimension.low)
    return (value - dimension.low) / (dimension.high - dimension.low)


def _places(trials: Sequence[Trial], dimension: Dimension) -> np.ndarray:
    """(num_trials,) along the axis: those of one choice spread, those without the dimension at `NONE`."""
    levels = _levels(dimension)
    places = np.array([_place(dimension, trial.config.get(dimension.name)) for trial in trials])
    for place in np.unique(places):
        if levels or place == NONE:
            alike = np.flatnonzero(places == place)
            room = SPREAD / len(levels) if place != NONE else NONE_ROOM
            places[alike] += np.linspace(-room / 2, room / 2, len(alike)) if len(alike) > 1 else 0.0
    return places


def _ticks(dimension: Dimension) -> list[tuple[float, str]]:
    """(place on the axis, label): of each level; or both ends, and between them powers of ten or the middle."""
    if levels := _levels(dimension):
        return [(_place(dimension, value), said(value)) for value in levels]
    inner = [(dimension.low + dimension.high) / 2]
    if dimension.scale == "log":
        powers = range(math.ceil(math.log10(dimension.low)), math.floor(math.log10(dimension.high)) + 1)
        inner = [10.0**power for power in powers]
    places = {_place(dimension, value): f"{value:.3g}" for value in inner}
    places = {place: label for place, label in places.items() if 0.15 < place < 0.85}
    return [(0.0, said(dimension.low)), *places.items(), (1.0, said(dimension.high))]


def _draw_line(axes: Axes, where: np.ndarray, colour: tuple[float, float, float, float]) -> None:
    """One trial, (num_dimensions,): faint on the way to a dimension that it lacks, and back."""
    for row, (start, end) in enumerate(pairwise(where)):
        lacks = min(start, end) < 0
        axes.plot([start, end], [row, row + 1], color=colour, lw=0.6 if lacks else 1.1, alpha=0.3 if lacks else 0.8)
    axes.plot(where, range(len(where)), ".", color=colour, ms=4)


def _draw_axis(axes: Axes, row: int, dimension: Dimension) -> None:
    """An axis of the parallel coordinates; labels below, on white where lines cross them, crowded ones on two lines."""
    axes.plot([0, 1], [row, row], color="0.5", lw=0.8, zorder=1)
    ticks = _ticks(dimension)
    back = {"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 0.4}
    room = int(AXIS_INCHES / len(ticks) / CHAR_INCHES)
    num_lines = 1 if max(len(label) for _, label in ticks) < room else 2
    for number, (place, label) in enumerate(ticks):
        text = _shortened(label, num_lines * room - 1)
        down = 0.15 + 0.22 * (number % num_lines)
        axes.text(place, row + down, text, ha="center", va="top", fontsize=SMALL, bbox=back, zorder=5)
    if not _levels(dimension):
        axes.plot([place for place, _ in ticks], [row] * len(ticks), "|", color="0.5", ms=6, zorder=1)


def _shortened(label: str, most: int) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def _draw_slice(axes: Axes, dimension: Dimension, trials: Trials) -> None:
    """One panel; within a choice, the arms that have the dimension lie side by side."""
    having = [name for name, of_arm in trials.items() if any(dimension.name in trial.config for trial in of_arm)]
    num_levels = len(_levels(dimension))
    for number, (name, of_arm) in enumerate(trials.items()):
        if name in having:
            side = (having.index(name) + 0.5) / len(having) - 0.5
            shift, room = (0.8 * side / num_levels, SPREAD / len(having) / num_levels) if num_levels else (0.0, 0.0)
            _draw_dots(axes, dimension, of_arm, number, shift, room)


def _draw_dots(
    axes: Axes, dimension: Dimension, trials: Sequence[Trial], number: int, shift: float, room: float
) -> None:
    """The trials of arm `number`; those of a choice `shift` beside it, scattered over `room`, with their median."""
    active = [trial for trial in trials if dimension.name in trial.config]
    centres = np.array([_place(dimension, trial.config.get(dimension.name)) for trial in active]) + shift
    values = np.array([trial.value for trial in active])
    look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
    places = centres + np.random.default_rng(number).uniform(-room / 2, room / 2, len(active))
    if room:
        for centre in np.unique(centres):
            median = float(np.median(values[centres == centre]))
            axes.plot([centre - 0.7 * room, centre + 0.7 * room], [median, median], color=look["color"], lw=2)
    axes.scatter(places, values, s=16, alpha=0.6, lw=0, label=active[0].arm, **look)
    best = max(trials, key=lambda trial: trial.value)
    for place, trial in zip(places, active, strict=True):
        if trial is best:
            axes.scatter(place, best.value, s=40, edgecolors="black", lw=1.2, zorder=4, **look)


def _label_slice(axes: Axes, dimension: Dimension) -> None:
    ticks = _ticks(dimension)
    axes.set_xticks([place for place, _ in ticks], [_shortened(label, 18) for _, label in ticks])
    axes.tick_params(axis="x", labelsize=SMALL)
    axes.set_xlim(-0.05, 1.05)
    if max(len(label) for _, label in ticks) * len(ticks) * CHAR_INCHES > PANEL_INCHES[0] * 0.8:
        for label in axes.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")


def _draw_bars(axes: Axes, rows: Sequence[Importance]) -> None:
    """Those of all trials above, a line of words, conditional ones below it."""
    where = np.array([row + importance.is_conditional for row, importance in enumerate(rows)])
    for shift, grey, name, shares in (
        (-0.2, GREYS[0], "fANOVA", [row.fanova for row in rows]),
        (0.2, GREYS[1], "PED-ANOVA", [row.ped_anova for row in rows]),
    ):
        axes.barh(where + shift, [100 * (share or 0.0) for share in shares], 0.36, color=grey, label=name)
    for place, row in zip(where, rows, strict=True):
        if row.reason:
            axes.text(1, place, row.reason, va="center", fontsize=SMALL, color="0.4")
    axes.set_yticks(where, [f"{row.name} ({row.num_trials})" if row.is_conditional else row.name for row in rows])
    axes.tick_params(axis="y", length=0)
    if any(row.is_conditional for row in rows):
        place = sum(not row.is_conditional for row in rows)
        axes.text(1, place, "conditional (number of trials that have it)", va="center", fontsize=SMALL, style="italic")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + "s" * (number != 1)
