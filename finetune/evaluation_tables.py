"""What `evaluate` prints."""

from __future__ import annotations

from math import isnan

from rich.table import Table

from experiments import tables
from experiments.resampling import Estimate
from finetune.evaluation import Evaluation, Patient

NUM_PATIENTS = 10
"""The worst; all of them are in `--json`."""
FEW = 10
"""Fewer patients leave a bootstrap too little to draw from."""


def show(evaluation: Evaluation) -> None:
    shown, calibration = tables.console(), evaluation.calibration
    tables.say(f"temperature {calibration.temperature:.3g} and thresholds: from {calibration.fitted_on}")
    shown.print(metric_table(evaluation))
    tables.say(intervals_said(evaluation))
    if calibration.promises is None:
        tables.say("no promise of what further beats are missed: that takes validation beats of this data set")
    else:
        shown.print(promise_table(evaluation))
    shown.print(
        tables.confusion_table(evaluation.confusion, evaluation.classes, f"Test beats, leakage {evaluation.badge}")
    )
    if evaluation.patients:
        shown.print(patient_table(evaluation))


def intervals_said(evaluation: Evaluation) -> str:
    """What the intervals are worth."""
    drawn, number = evaluation.drawn, evaluation.num_drawn
    if drawn == "beats":
        return f"95 % intervals: bootstrap over {number:,} beats, optimistic since a patient has many beats"
    worth = "so few that they say little" if number < FEW else "of few they are somewhat narrow"
    return f"95 % intervals: bootstrap over {number:,} whole {drawn}; {worth}"


METRICS = (
    ("recall", "macro_recall", "recall"),
    ("F1", "macro_f1", "f1"),
    ("precision", "macro_precision", "precision"),
    ("AUPRC", "macro_auprc", "auprc"),
    ("alarms: recall", None, "alarm_recall"),
    ("alarms: precision", None, "alarm_precision"),
    ("ECE before temperature", "ece_uncalibrated", None),
    ("ECE after temperature", "ece", None),
    ("accuracy", "accuracy", None),
)
"""Name of a row; its estimate of all classes, and of each class."""


def metric_table(evaluation: Evaluation) -> Table:
    table = Table(title=evaluation.title, title_style="bold")
    thresholds = evaluation.calibration.thresholds
    floor = f"{100 * thresholds.floor:g} %"
    table.caption = f"{evaluation.num_beats:,} test beats; alarms: set to find {floor} of each class's validation beats"
    table.add_column("metric", no_wrap=True)
    for name in ("all", *evaluation.classes):
        table.add_column(name, justify="right")
    for name, of_all, of_class in METRICS:
        if of_class == "alarm_recall":
            table.add_row("alarms: threshold", "", *map(_limit, thresholds.values))
        names = [f"{of_class}_{label}" if of_class else None for label in evaluation.classes]
        table.add_row(name, *(_cell(evaluation, estimate) for estimate in (of_all, *names)))
    return table


def promise_table(evaluation: Evaluation) -> Table:
    """What was promised of each class, beside what validation and test data show."""
    promises, estimates = evaluation.calibration.promises, evaluation.estimates
    assert promises is not None
    table = Table(title=f"Promised misses of each class, leakage {evaluation.badge}", title_style="bold")
    table.caption = (
        "of beats drawn as the validation beats were, in expectation; conformal risk control, arXiv 2208.02814"
    )
    for header in ("class", "promised", "validation beats", "threshold", "validation missed", "test missed"):
        table.add_column(header, justify="left" if header == "class" else "right")
    for header in ("alarms", "precision"):
        table.add_column(header, justify="right")
    table.add_column("outcome")
    for label, name in enumerate(evaluation.classes):
        silent = promises.values[label] is None
        missed, raised = estimates[f"promise_miss_rate_{name}"], evaluation.promised[label]
        table.add_row(
            name,
            f"≤ {_percent(promises.limits[label])}",
            f"{promises.num_beats[label]:,}",
            _limit(promises.values[label]),
            "–" if silent else _percent(1 - evaluation.calibration.validated[label].recall),
            "–"
            if isnan(missed.value)
            else f"{_percent(missed.value)} [{_percent(missed.low)}, {_percent(missed.high)}]",
            "–" if silent else f"{raised.num_alarms:,}",
            "–" if isnan(raised.precision) else f"{raised.precision:.3f}",
            evaluation.outcome(label),
        )
    return table


def patient_table(evaluation: Evaluation) -> Table:
    worst = evaluation.patients[:NUM_PATIENTS]
    one = evaluation.drawn.removesuffix("s")
    what = f"the {len(worst)} worst of {len(evaluation.patients)}" if len(worst) < len(evaluation.patients) else "all"
    table = Table(title=f"By {one}, {what}, leakage {evaluation.badge}", title_style="bold")
    table.caption = f"recall and beats of each class; macro: over the classes that the {one} has"
    for header in (one, "beats", "macro recall", *evaluation.classes):
        table.add_column(header, justify="right")
    for patient in worst:
        cells = [_recall(patient, name) for name in evaluation.classes]
        table.add_row(str(patient.name), f"{patient.num_beats:,}", f"{patient.macro_recall:.3f}", *cells)
    return table


def _cell(evaluation: Evaluation, name: str | None) -> str:
    """The value, and below it its interval."""
    if name is None:
        return ""
    estimate = evaluation.estimates[name]
    return "–" if isnan(estimate.value) else f"{estimate.value:.3f}\n{_bounds(estimate)}"


def _bounds(estimate: Estimate) -> str:
    return "" if isnan(estimate.low) else tables.interval(estimate.low, estimate.high)


def _limit(threshold: float | None) -> str:
    return "–" if threshold is None else f"{threshold:.3g}"


def _percent(share: float) -> str:
    return "–" if isnan(share) else f"{100 * share:.1f} %"


def _recall(patient: Patient, name: str) -> str:
    return "–" if isnan(patient.recall[name]) else f"{patient.recall[name]:.3f} ({patient.support[name]:,})"
