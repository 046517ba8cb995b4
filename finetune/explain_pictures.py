"""Pictures of explanations: a beat in the colours of its attributions, and the mean beat of each answer in theirs."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from data.explore import mean_and_spread
from data.pictures import GREYS, PANEL_INCHES, PANELS_ABREAST, write_figures
from finetune.attribution import NAMES, WINDOW, Explained, inside, true_class, windows

COLOURS = "RdBu_r"
"""Diverging, told apart with any colour vision; its white middle lies within a dark outline."""
STRONGEST = 0.98
"""Quantile of the effects beyond which samples share the darkest colours: a few would leave the others white."""
WIDTH_INCHES = 9.0
SMALL = 8.5


def draw(explained: Explained, several: Explained | None, method: str, folder: Path, said: str) -> list[Path]:
    """Draw each beat, and of `several` the mean of each answer, as PNG and SVG.

    Returns:
        The paths written.
    """
    figures: dict[str, Callable[[], Figure]] = {
        _name(explained, row): partial(draw_beat, explained, row, method, said) for row in range(len(explained.index))
    }
    if several is not None:
        figures["means"] = partial(draw_means, several, method, said)
    return write_figures(figures, folder)


def _name(explained: Explained, row: int) -> str:
    """Of the files of a beat; a class may have any name."""
    true, answer = true_class(explained, row), explained.classes[int(explained.probability[row].argmax())]
    words = [*([] if true is None else [true]), "as", answer]
    return "_".join([f"beat_{explained.index[row]}", *(re.sub(r"\W", "-", word) for word in words)])


def draw_beat(explained: Explained, row: int, method: str, said: str) -> Figure:
    """Each lead in the colours of its attribution; below, windows by all methods; beside them, the RR ratios."""
    signal, length = explained.beats.signal[row].numpy(), int(explained.beats.valid_length[row])
    attribution = explained.attributions[method][0][row].numpy()
    time_ms = np.arange(signal.shape[1]) / explained.beats.rate_hz * 1000
    num_leads = len(signal)
    figure = Figure(figsize=(WIDTH_INCHES, 2.2 + 2.4 * num_leads), layout="constrained")
    heights = [*[2.2] * num_leads, 1.4]
    with_ratios = bool(explained.ratios)
    grid = figure.add_gridspec(
        num_leads + 1, 1 + with_ratios, height_ratios=heights, width_ratios=[3.4, 1][: 1 + with_ratios]
    )
    upper = [figure.add_subplot(grid[lead, 0]) for lead in range(num_leads)]
    lower = figure.add_subplot(grid[num_leads, 0], sharex=upper[0])
    scale = _scale(attribution)
    for axes, of_lead, values in zip(upper, signal, attribution, strict=True):
        _draw_line(axes, time_ms, of_lead, values, scale)
        axes.set(ylim=(-0.06, 1.06), ylabel="amplitude (0…1)")
    for axes in (*upper, lower):
        _shade_padding(axes, time_ms, length)
    upper[0].text(time_ms[-1], 1.0, "zero padding" * (length < len(time_ms)), ha="right", va="top", fontsize=SMALL)
    _draw_windows(lower, explained, row)
    lower.set_xlabel("time from the R peak (ms)")
    if with_ratios:
        _draw_ratios(figure.add_subplot(grid[:, 1]), explained, row)
    label = f"effect on the logit of {explained.classes[int(explained.target[row])]}"
    figure.colorbar(ScalarMappable(scale, COLOURS), ax=upper, label=label, extend="both", fraction=0.05, pad=0.02)
    figure.legend(*lower.get_legend_handles_labels(), loc="outside lower center", ncols=len(explained.attributions))
    figure.suptitle(f"{title(explained, row)}\n{said}; {NAMES[method]}")
    return figure


def title(explained: Explained, row: int) -> str:
    answer = int(explained.probability[row].argmax())
    true = true_class(explained, row)
    of = "" if true is None else f"true class {true}, "
    said = f"{of}answer {explained.classes[answer]} (probability {explained.probability[row, answer]:.2f})"
    return f"beat {explained.index[row]}: {said}"


def _scale(attribution: NDArray[np.floating]) -> Normalize:
    """Zero in the middle, the same reach on both sides."""
    reach = float(np.quantile(np.abs(attribution), STRONGEST)) or float(np.abs(attribution).max()) or 1.0
    return Normalize(-reach, reach)


def _draw_line(
    axes: Axes,
    time_ms: NDArray[np.floating],
    signal: NDArray[np.floating],
    values: NDArray[np.floating],
    scale: Normalize,
) -> None:
    """A line (num_samples,) whose every piece has the colour of the mean of its ends, within a dark outline."""
    points = np.stack([time_ms, signal], axis=1)
    pieces = np.stack([points[:-1], points[1:]], axis=1)
    axes.plot(time_ms, signal, color="0.25", lw=5, solid_capstyle="round", solid_joinstyle="round")
    coloured = LineCollection(list(pieces), cmap=COLOURS, norm=scale, lw=3.4, capstyle="round", zorder=3)
    coloured.set_array((values[:-1] + values[1:]) / 2)
    axes.add_collection(coloured)


def _shade_padding(axes: Axes, time_ms: NDArray[np.floating], length: int) -> None:
    if length < len(time_ms):
        axes.axvspan(time_ms[length], time_ms[-1], color="0.93", lw=0, zorder=0)
    axes.margins(x=0.01)


def _draw_windows(axes: Axes, explained: Explained, row: int) -> None:
    """Sums over windows of `WINDOW` samples, padding included, as bars side by side."""
    step_ms = WINDOW / explained.beats.rate_hz * 1000
    methods = list(explained.attributions)
    for number, name in enumerate(methods):
        values = windows(explained, name, padding=True)[row].numpy()
        centre = (np.arange(len(values)) + (number + 0.5) / len(methods)) * step_ms
        axes.bar(centre, values, 0.9 * step_ms / len(methods), color=GREYS[number], label=NAMES[name])
    axes.axhline(0, color="0.25", lw=0.8)
    axes.set_ylabel("logit, by window")


def _draw_ratios(axes: Axes, explained: Explained, row: int) -> None:
    """Attribution of each RR ratio by all methods, with the ratio's value beside its name."""
    methods, where = list(explained.attributions), np.arange(len(explained.ratios))
    for number, name in enumerate(methods):
        values = explained.attributions[name][1][row].numpy()
        shift = (number + 0.5) / len(methods) - 0.5
        axes.barh(where + 0.8 * shift, values, 0.72 / len(methods), color=GREYS[number])
    axes.axvline(0, color="0.25", lw=0.8)
    given = explained.ratio_values[row].tolist()
    names = [
        f"{name.removeprefix('log_').replace('_', ' ')}\n{value:+.2f}"
        for name, value in zip(explained.ratios, given, strict=True)
    ]
    axes.set_yticks(where, names, fontsize=SMALL)
    axes.set(ylim=(len(where) - 0.5, -0.5), xlabel="logit", title="log RR ratios")
    axes.yaxis.tick_right()
    axes.tick_params(axis="y", length=0)


def draw_means(explained: Explained, method: str, said: str) -> Figure:
    """Of the beats that got each answer, the mean beat in the colours of their mean attribution."""
    answer = explained.probability.argmax(1)
    given = [label for label in range(len(explained.classes)) if (answer == label).any()]
    abreast = min(PANELS_ABREAST, len(given))
    num_rows = -(-len(given) // abreast)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(max(2, abreast) * width + 1, 1 + num_rows * height), layout="constrained")
    panels = figure.subplots(num_rows, abreast, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for axes in panels[len(given) :]:
        axes.set_axis_off()
    means = [_means(explained, method, np.flatnonzero(answer == label)) for label in given]
    scale = _scale(np.concatenate([values[np.isfinite(values)] for _, values in means]))
    time_ms = np.arange(explained.beats.signal.shape[2]) / explained.beats.rate_hz * 1000
    for axes, label, (mean, values) in zip(panels, given, means, strict=False):
        _draw_line(axes, time_ms, mean, values, scale)
        axes.set_title(f"{explained.classes[label]}, {(answer == label).sum():,} beats", fontweight="bold")
        axes.set(ylim=(-0.06, 1.06))
    for axes in panels[: len(given)][-abreast:]:
        axes.xaxis.set_tick_params(labelbottom=True)
        axes.set_xlabel("time from the R peak (ms)")
    figure.supylabel("amplitude (beat scaled to 0…1)", fontsize=10)
    label = f"mean effect on the logit {_of(explained)}"
    figure.colorbar(ScalarMappable(scale, COLOURS), ax=panels, label=label, extend="both", fraction=0.04)
    lead = ", first lead" * (explained.beats.signal.shape[1] > 1)
    figure.suptitle(f"{said}: mean beat of each answer{lead}, {NAMES[method]}\nas far as a tenth of its beats last")
    return figure


def _of(explained: Explained) -> str:
    """The one class that is explained, or each beat's answer."""
    if (explained.target.numpy() == explained.probability.argmax(1)).all():
        return "of the answer"
    return f"of {explained.classes[int(explained.target[0])]}"


def _means(
    explained: Explained, method: str, rows: NDArray[np.integer]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Of the first lead, mean beat and mean attribution (num_samples,) over the beats that last; NaN where few do."""
    beats = explained.beats.select(torch.from_numpy(rows))
    values = explained.attributions[method][0][rows, 0].numpy()
    lasts = inside(beats).numpy()
    total = np.where(lasts, values, 0).sum(0) / np.maximum(lasts.sum(0), 1)
    mean = mean_and_spread(beats)[0]
    return mean, np.where(np.isfinite(mean), total, np.nan)
