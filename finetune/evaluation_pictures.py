"""Pictures of an evaluation: reliability, precision over recall, confusion, patients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from data.pictures import COLOURS, GREYS, MARKERS, write_figures
from experiments.calibration import NUM_BINS, Bin, expected_calibration_error
from experiments.curves import precision_recall
from finetune.evaluation import Evaluation, Patient, Scored

PANELS_ABREAST = 3
PANEL_INCHES = (3.2, 2.9)
ROW_INCHES = 0.3
CLASS_ROOM = 0.7
"""Of a patient's row, over which the marks of the classes are spread, so that they do not cover each other."""
MOST_PATIENTS = 40
DARK = 0.5
"""Share of a row above which a cell of the heat map is so dark that its words are white."""
SMALL = 8


def draw_evaluation(folder: Path, evaluation: Evaluation, scored: Scored) -> list[Path]:
    """Draw each picture as PNG and SVG; the paths written. Patients only where they are known."""
    figures = {
        "reliability": partial(draw_reliability, evaluation),
        "precision_recall": partial(draw_curves, evaluation, scored),
        "confusion": partial(draw_confusion, evaluation),
    }
    if evaluation.patients:
        figures["patients"] = partial(draw_patients, evaluation)
    return write_figures(figures, folder)


def draw_reliability(evaluation: Evaluation) -> Figure:
    """Accuracy over confidence before and after the temperature; below, how many beats have that confidence (log)."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 1))
    titles = ("uncalibrated", f"temperature {evaluation.calibration.temperature:.3g}")
    for number, (title, bins) in enumerate(zip(titles, evaluation.reliability.values(), strict=True)):
        above, below = panels[:, number]
        confidence, accuracy, share = _points(bins)
        above.plot([0, 1], [0, 1], color="0.5", lw=1, ls="--", label="calibrated")
        above.vlines(confidence, confidence, accuracy, color=COLOURS[1], lw=3, label="gap")
        above.plot(confidence, accuracy, color=COLOURS[0], marker="o", ms=5, lw=1.5, label="beats of a bin")
        above.set(title=f"{title}: ECE {expected_calibration_error(bins):.3f}", xlim=(0, 1.02), ylim=(-0.02, 1.03))
        below.bar(confidence, share, width=0.8 / NUM_BINS, color=GREYS[1])
        below.set(yscale="log", xlabel="confidence (probability of the answer)")
        below.yaxis.set_major_formatter("{x:g}")
    panels[0, 0].set_ylabel("accuracy")
    panels[1, 0].set_ylabel("beats (%)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.suptitle(f"Reliability on the test part\n{evaluation.title}")
    return figure


def draw_curves(evaluation: Evaluation, scored: Scored) -> Figure:
    """Precision over recall of each class against the rest, and where the thresholds of its alarms lie."""
    num_classes, estimates, promises = len(evaluation.classes), evaluation.estimates, evaluation.calibration.promises
    floor = f"{100 * evaluation.calibration.thresholds.floor:g} %"
    num_rows = -(-num_classes // PANELS_ABREAST)
    abreast = -(-num_classes // num_rows)
    size = (max(2, abreast) * PANEL_INCHES[0], 1.3 + num_rows * PANEL_INCHES[1])
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(num_rows, abreast, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for axes in panels[num_classes:]:
        axes.set_axis_off()
    for label, (axes, name) in enumerate(zip(panels, evaluation.classes, strict=False)):
        is_class = scored.target == label
        axes.plot(*precision_recall(scored.probability[:, label], is_class), color=COLOURS[0], label="all thresholds")
        axes.axhline(is_class.mean(), color="0.5", lw=1, ls="--", label="share of the beats")
        _mark(axes, evaluation, "alarm", name, f"alarms, floor {floor}", marker="o", s=90, color=COLOURS[1])
        if promises is not None:
            limit = f"{100 * promises.limits[label]:g} %"
            _mark(axes, evaluation, "promise", name, f"promise, misses ≤ {limit}", marker="D", s=22, color=COLOURS[3])
        area = f"AUPRC {estimates[f'auprc_{name}'].value:.3f}, {is_class.sum():,} beats"
        axes.set_title(f"{name}: {area if is_class.any() else 'no beats'}")
        axes.set(xlim=(0, 1.02), ylim=(0, 1.03))
    for axes in panels[max(0, num_classes - abreast) : num_classes]:
        axes.xaxis.set_tick_params(labelbottom=True)
        axes.set_xlabel("recall")
    figure.supylabel("precision", fontsize=10)
    found = [axes.get_legend_handles_labels() for axes in panels[:num_classes]]
    handles = {label: handle for pair in found for handle, label in zip(*pair, strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
    figure.suptitle(f"Precision and recall on the test part\n{evaluation.title}")
    return figure


def draw_confusion(evaluation: Evaluation) -> Figure:
    """Where the beats of each true class went, in percent of its row, with their numbers."""
    confusion = np.array(evaluation.confusion)
    support = confusion.sum(1, keepdims=True)
    share = confusion / np.where(support > 0, support, 1)
    num_classes = len(evaluation.classes)
    figure = Figure(figsize=(2.6 + 0.95 * num_classes, 1.9 + 0.75 * num_classes), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", norm=Normalize(0, 1), aspect="auto")
    for row, column in np.ndindex(confusion.shape):
        words = f"{100 * share[row, column]:.1f} %\n{confusion[row, column]:,}" if support[row, 0] else "–"
        colour = "white" if share[row, column] > DARK else "black"
        axes.text(column, row, words, ha="center", va="center", color=colour, fontsize=SMALL)
    axes.set_xticks(range(num_classes), evaluation.classes)
    axes.set_yticks(range(num_classes), evaluation.classes)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted class", ylabel="true class")
    bar = figure.colorbar(image, ax=axes, fraction=0.05, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["0 %", "50 %", "100 %"])
    figure.suptitle(f"Confusion, {evaluation.num_beats:,} test beats\n{evaluation.title}", wrap=True)
    return figure


def draw_patients(evaluation: Evaluation) -> Figure:
    """Recall of each patient's classes, the larger the more beats; the worst macro recall above."""
    shown = evaluation.patients[:MOST_PATIENTS]
    figure = Figure(figsize=(8, 1.8 + ROW_INCHES * max(6, len(shown))), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(shown))
    axes.hlines(rows, 0, 1, color="0.9", lw=1, zorder=0)
    for label, name in enumerate(evaluation.classes):
        _draw_class(axes, shown, name, label, CLASS_ROOM * ((label + 0.5) / len(evaluation.classes) - 0.5))
    macro = [patient.macro_recall for patient in shown]
    axes.scatter(macro, rows, s=90, marker="|", color="black", lw=2, label="macro recall", zorder=4)
    axes.set_yticks(rows, [f"{patient.name} ({patient.num_beats:,})" for patient in shown], fontsize=SMALL)
    one = evaluation.drawn.removesuffix("s")
    axes.set(xlim=(-0.03, 1.03), ylim=(len(shown) - 0.4, -0.6), xlabel="recall", ylabel=f"{one} (beats)")
    left_out = f", the {len(shown)} worst of {len(evaluation.patients)}" * (len(shown) < len(evaluation.patients))
    figure.legend(loc="outside lower center", ncols=min(6, len(evaluation.classes) + 1))
    figure.suptitle(f"Recall by {one}{left_out}\n{evaluation.title}")
    return figure


def _points(bins: Sequence[Bin]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(num_bins,) each: confidence, accuracy, percent of the beats."""
    rows = np.array([(one.confidence, one.accuracy, one.num_beats) for one in bins])
    return rows[:, 0], rows[:, 1], 100 * rows[:, 2] / rows[:, 2].sum()


def _mark(axes: Axes, evaluation: Evaluation, rule: str, name: str, said: str, **look: Any) -> None:
    """Where a threshold set on validation data lies on the test part's curve."""
    found = [evaluation.estimates.get(f"{rule}_{what}_{name}") for what in ("recall", "precision")]
    place = [np.nan if one is None else one.value for one in found]
    if not np.isnan(place).any():
        axes.scatter(*place, label=said, edgecolors="black", zorder=4, **look)


def _draw_class(axes: Axes, patients: Sequence[Patient], name: str, label: int, shift: float) -> None:
    """The recall of one class, of each patient that has it, `shift` below the middle of his row."""
    having = [(row, patient) for row, patient in enumerate(patients) if patient.support[name]]
    if having:
        axes.scatter(
            [patient.recall[name] for _, patient in having],
            [row + shift for row, _ in having],
            s=[12 + 12 * np.log10(patient.support[name]) for _, patient in having],
            color=COLOURS[label % len(COLOURS)],
            marker=MARKERS[label % len(MARKERS)],
            lw=0,
            label=name,
            zorder=3,
        )
