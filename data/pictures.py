"""Pictures of a data set, for a report: class balance, mean and example beats, heart rates, a map."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from data.beats import Beats
from data.explore import by_class, heart_rates, mean_and_spread
from data.split import subset
from experiments.files import atomic

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

NUM_EXAMPLES = 4
MAX_BPM = 300
BIN_BPM = 5
MAP_BEATS = 2000
MAP_BEATS_OF_CLASS = 100
MIN_MAP_BEATS = 3
PERPLEXITY = 30

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
"""Okabe and Ito's, told apart with any colour vision, but for their yellow, which is too light for lines."""
GREYS = ("0.25", "0.6", "0.8")
"""Of the parts, where colours would be taken for classes."""
MARKERS = "o^sDvPX"
PANELS_ABREAST = 3
PANEL_INCHES = (3.2, 2.3)
DOTS_PER_INCH = 150
STYLE: dict[RcKeyType, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.titlesize": 12,
    "legend.frameon": False,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "explore",
}


@dataclass(frozen=True)
class Subject:
    """What is drawn."""

    name: str
    parts: dict[str, Beats]
    """Of the classes to show; the first is drawn in full, the others are compared with it."""
    num_classes: int
    """Of the data set: those to show, and more."""
    seed: int

    @property
    def first(self) -> Beats:
        return next(iter(self.parts.values()))

    @property
    def classes(self) -> tuple[str, ...]:
        return self.first.classes

    def title(self, what: str) -> str:
        left_out = len(self.classes) < self.num_classes
        return f"{self.name}: {what}" + (f"\nthe {len(self.classes)} largest of {self.num_classes} classes" * left_out)

    def lead(self) -> str:
        num_leads = self.first.signal.shape[1]
        return f", first of {num_leads} leads" if num_leads > 1 else ""


def write_pictures(subject: Subject, folder: Path) -> list[Path]:
    """Draw everything of `PICTURES`, each as PNG and as SVG.

    Returns:
        The paths written.

    Raises:
        ValueError: too few beats for a map.
    """
    return write_figures({name: partial(draw, subject) for name, draw in PICTURES.items()}, folder)


def write_figures(draw: Mapping[str, Callable[[], Figure]], folder: Path) -> list[Path]:
    """Draw each figure in the house style and write it as NAME.png and NAME.svg; the paths written."""
    written = []
    with matplotlib.rc_context(STYLE):
        for name, make in draw.items():
            figure = make()
            for suffix in ("png", "svg"):
                written.append(folder / f"{name}.{suffix}")
                undated = {"Date": None} if suffix == "svg" else None
                with atomic(written[-1]) as stream:
                    figure.savefig(stream, format=suffix, dpi=DOTS_PER_INCH, metadata=undated)
    return written


def draw_balance(subject: Subject) -> Figure:
    """Number of beats of each class and part, as bars on a logarithmic axis."""

    num_parts = len(subject.parts)
    figure = Figure(figsize=(7.5, 1.4 + 0.28 * num_parts * len(subject.classes)), layout="constrained")
    axes = figure.subplots()
    where = np.arange(len(subject.classes))
    thickness = 0.8 / num_parts
    for number, (part, beats) in enumerate(subject.parts.items()):
        counts = list(beats.counts().values())
        bars = axes.barh(
            where + (number - (num_parts - 1) / 2) * thickness,
            counts,
            thickness * 0.9,
            color=GREYS[number % len(GREYS)],
            label=part,
        )
        axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3, fontsize=9)
    most = max(max(beats.counts().values()) for beats in subject.parts.values())
    axes.set(xscale="log", xlim=(0.8, 4 * most), xlabel="beats (log scale)", ylabel="class")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_yticks(where, subject.classes)
    axes.set_ylim(len(where) - 0.5, -0.5)
    figure.suptitle(subject.title("class balance"))
    figure.legend(loc="outside lower center", ncols=num_parts)
    return figure


def draw_means(subject: Subject) -> Figure:
    """Mean and spread of each class; the means of the other parts over those of the first."""

    figure, panels = _panels(
        subject, f"mean beat of each class{subject.lead()}, as far as a tenth of its beats last", sharey=True
    )
    time_ms = np.arange(subject.first.signal.shape[2]) / subject.first.rate_hz * 1000
    for number, (part, beats) in enumerate(subject.parts.items()):
        for axes, (label, of_class) in zip(panels, enumerate(by_class(beats).values()), strict=True):
            mean, low, high = mean_and_spread(of_class)
            if number == 0:
                colour = COLOURS[label % len(COLOURS)]
                axes.fill_between(time_ms, low, high, color=colour, alpha=0.25, lw=0, label=f"{part}, 10–90 %")
                axes.plot(time_ms, mean, color=colour, label=f"{part}, mean")
            else:
                axes.plot(time_ms, mean, color="black", lw=1, ls="--", label=f"{part}, mean")
            axes.set(ylim=(-0.02, 1.02))
    _finish_panels(figure, panels, "time from the R peak (ms)", "amplitude (beat scaled to 0…1)")
    return figure


def draw_examples(subject: Subject) -> Figure:
    """Some beats of each class of the first part, one row for each class."""

    num_classes = len(subject.classes)
    figure = Figure(figsize=(9, max(3, 0.9 + 1.25 * num_classes)), layout="constrained")
    rows = figure.subplots(num_classes, NUM_EXAMPLES, sharex=True, sharey=True, squeeze=False)
    random = np.random.default_rng(subject.seed)
    time_ms = np.arange(subject.first.signal.shape[2]) / subject.first.rate_hz * 1000
    for label, (row, beats) in enumerate(zip(rows, by_class(subject.first).values(), strict=True)):
        row[0].set_ylabel(subject.classes[label], rotation=0, ha="right", va="center", fontweight="bold")
        chosen = random.permutation(len(beats))[:NUM_EXAMPLES]
        for axes, beat in zip(row, chosen, strict=False):
            length = int(beats.valid_length[beat])
            axes.plot(
                time_ms[:length], beats.signal[beat, 0, :length].numpy(), color=COLOURS[label % len(COLOURS)], lw=1.2
            )
        for axes in row[len(chosen) :]:
            axes.set_axis_off()
    part = next(iter(subject.parts))
    figure.suptitle(subject.title(f"beats of each class, drawn at random from {part}{subject.lead()}"))
    figure.supxlabel("time from the R peak (ms)", fontsize=10)
    figure.supylabel("amplitude (beat scaled to 0…1)", fontsize=10)
    return figure


def draw_rates(subject: Subject) -> Figure:
    """Histogram of the heart rate of each class; the other parts as outlines over the first."""

    figure, panels = _panels(subject, "heart rate by class, of the beats that end within the window", sharey=False)
    rates = {
        part: [heart_rates(beats).clip(max=MAX_BPM) for beats in by_class(whole).values()]
        for part, whole in subject.parts.items()
    }
    everything = np.concatenate([*(some for part in rates.values() for some in part), [60.0, 100.0]])
    bins = np.arange(everything.min() // BIN_BPM * BIN_BPM, everything.max() + BIN_BPM + 1, BIN_BPM)
    for number, (part, of_part) in enumerate(rates.items()):
        for label, (axes, of_class) in enumerate(zip(panels, of_part, strict=True)):
            share = 100 * np.histogram(of_class, bins)[0] / max(len(of_class), 1)
            if number == 0:
                axes.stairs(share, bins, fill=True, color=COLOURS[label % len(COLOURS)], alpha=0.6, label=part)
            else:
                axes.stairs(share, bins, color="black", lw=1, label=part)
    more = f", {MAX_BPM} and more together" if everything.max() == MAX_BPM else ""
    _finish_panels(figure, panels, f"heart rate (bpm{more})", "share of the class (%)")
    return figure


def draw_map(subject: Subject) -> Figure:
    """t-SNE (van der Maaten and Hinton 2008, JMLR 9:2579–2605) of a sample of the first part."""
    if len(subject.first) < MIN_MAP_BEATS:
        raise ValueError(f"{subject.name}: {len(subject.first)} beats, and a map needs {MIN_MAP_BEATS}")
    sample = subset(subject.first, min(MAP_BEATS, len(subject.first)), subject.seed, MAP_BEATS_OF_CLASS)
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    perplexity = scatter_tsne(axes, sample.signal.flatten(1).numpy(), sample, subject.seed)
    part = next(iter(subject.parts))
    axes.set_title(
        f"t-SNE of the signals, perplexity {perplexity:.0f}: beats that look alike lie near each other;\n"
        f"a stratified sample, of each class {MAP_BEATS_OF_CLASS} beats where it has them"
    )
    figure.suptitle(subject.title(f"map of {len(sample):,} beats of {part}"))
    figure.legend(loc="outside right center")
    return figure


def scatter_tsne(axes: Axes, features: NDArray[np.floating], beats: Beats, seed: int) -> float:
    """Place beats by t-SNE of their features (num_beats, dim), the largest class first, so that rare ones lie on top.

    Returns:
        The perplexity.
    """
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(beats) - 1) / 3)
    place = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(features)
    counts = beats.counts()
    for label in np.argsort([-count for count in counts.values()], kind="stable").tolist():
        mine = (beats.labels == label).numpy()
        turn, colour = divmod(label, len(COLOURS))  # with seven of each, no two classes get the same pair
        name = beats.classes[label]
        axes.scatter(
            *place[mine].T,
            s=16,
            color=COLOURS[colour],
            marker=MARKERS[(colour + turn) % len(MARKERS)],
            alpha=0.7,
            lw=0,
            label=f"{name}, {counts[name]:,} beats",
        )
    axes.set(xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)", xticks=[], yticks=[])
    return perplexity


PICTURES: dict[str, Callable[[Subject], Figure]] = {
    "class_balance": draw_balance,
    "mean_beats": draw_means,
    "example_beats": draw_examples,
    "heart_rate": draw_rates,
    "map": draw_map,
}


def _panels(subject: Subject, what: str, sharey: bool) -> tuple[Figure, list[Axes]]:
    """One panel for each class."""

    num_classes = len(subject.classes)
    abreast = min(PANELS_ABREAST, num_classes)
    num_rows = -(-num_classes // abreast)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(max(2, abreast) * width, 1 + num_rows * height), layout="constrained")
    panels = figure.subplots(num_rows, abreast, sharex=True, sharey=sharey, squeeze=False).ravel().tolist()
    for axes in panels[num_classes:]:
        axes.set_axis_off()
    for axes, name in zip(panels, subject.classes, strict=False):
        axes.set_title(name, fontweight="bold")
    figure.suptitle(subject.title(what))
    return figure, panels[:num_classes]


def _finish_panels(figure: Figure, panels: Sequence[Axes], xlabel: str, ylabel: str) -> None:
    handles, labels = panels[0].get_legend_handles_labels()
    for axes in panels[-PANELS_ABREAST:]:
        axes.xaxis.set_tick_params(labelbottom=True)
        axes.set_xlabel(xlabel)
    figure.supylabel(ylabel, fontsize=10)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))
