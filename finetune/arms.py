"""Arms side by side: rows with intervals, differences of paired seeds, verdicts, badges. Pure: results in, rows out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from experiments import tables
from experiments.files import nan_to_null
from experiments.metrics import (
    Difference,
    bootstrap_interval,
    confusion_matrix,
    is_collapsed,
    macro_recall,
    paired_difference,
    recall_per_class,
    scores,
    verdict,
)
from experiments.results import RunResult

ARMS = ("majority", "random-frozen", "scratch", "scratch+", "transfer")
"""In the order of a table's rows."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm of a comparison, on the test part."""

    arm: str
    num_seeds: int
    macro_recall: float
    interval: tuple[float, float]
    """95 %, bootstrap over test beats, averaged over seeds."""
    recall: Mapping[str, float]
    metrics: Mapping[str, float]
    confusion: list[list[float]]
    """Mean over seeds."""
    validation_macro_recall: float | None
    """What an arm is chosen by; None for an arm that is not trained."""
    num_collapsed: int
    """Runs that predict one class, or whose macro recall is at chance."""
    seconds: float
    difference: Difference | None
    """To scratch, over the seeds that both have."""
    verdict: str
    badge: str
    source: str | None

    def to_json(self) -> dict[str, Any]:
        """The recall of a class that the test part lacks becomes null."""
        return nan_to_null(asdict(self))


def make_rows(results: Sequence[RunResult], majority: np.ndarray) -> list[Row]:
    """Rows in the order of `ARMS`, from each run's validation and test results.

    Args:
        majority: confusion matrix of always answering the most frequent class, on the test part.
    """
    tested = [result for result in results if result.part == "test"]
    badge, classes = tested[0].badge, tested[0].classes
    rows = [_row("majority", [majority], classes, badge=badge)]
    for arm in ARMS[1:]:
        runs = [result for result in tested if result.arm == arm]
        if not runs:
            continue
        validated = [r.metrics["macro_recall"] for r in results if r.part == "validation" and r.arm == arm]
        difference = None if arm == "scratch" else _difference(runs, [r for r in tested if r.arm == "scratch"])
        num_encoders = len({run.encoder for run in runs})
        rows.append(
            _row(
                arm,
                [np.array(run.confusion) for run in runs],
                classes,
                badge=badge,
                validation=float(np.mean(validated)) if validated else None,
                seconds=float(np.mean([run.cost["seconds"] for run in runs])),
                difference=difference,
                verdict=verdict(difference, num_encoders) if difference and arm == "transfer" else "",
                source=runs[0].source,
            )
        )
    return rows


def _row(
    arm: str,
    confusions: Sequence[np.ndarray],
    classes: Sequence[str],
    *,
    badge: str,
    validation: float | None = None,
    seconds: float = 0.0,
    difference: Difference | None = None,
    verdict: str = "",
    source: str | None = None,
) -> Row:
    stacked = np.stack(confusions)
    per_run = [scores(confusion) for confusion in stacked]
    metrics = {name: float(np.mean([run[name] for run in per_run])) for name in per_run[0]}
    recalls = np.mean(recall_per_class(stacked), axis=0)
    return Row(
        arm=arm,
        num_seeds=len(confusions),
        macro_recall=metrics["macro_recall"],
        interval=bootstrap_interval(stacked, macro_recall),
        recall={name: float(recall) for name, recall in zip(classes, recalls, strict=True)},
        metrics=metrics,
        confusion=stacked.mean(0).tolist(),
        validation_macro_recall=validation,
        num_collapsed=sum(map(is_collapsed, stacked)),
        seconds=seconds,
        difference=difference,
        verdict=verdict,
        badge=badge,
        source=source,
    )


def _difference(treated: Sequence[RunResult], control: Sequence[RunResult]) -> Difference | None:
    by_seed = {run.seed: run.metrics["macro_recall"] for run in control}
    paired = [run for run in treated if run.seed in by_seed]
    if not paired:
        return None
    return paired_difference([run.metrics["macro_recall"] for run in paired], [by_seed[run.seed] for run in paired])


def majority_confusion(train_counts: Sequence[int], test_target: np.ndarray) -> np.ndarray:
    """Always the class that is most frequent in training."""
    most_frequent = np.full_like(test_target, int(np.argmax(train_counts)))
    return confusion_matrix(test_target, most_frequent, len(train_counts))


def chosen(rows: Sequence[Row]) -> Row:
    """The arm of highest validation macro recall, of those with all seeds: the test part has no say."""
    most = max(row.num_seeds for row in rows if row.seconds)
    return max((row for row in rows if row.num_seeds == most), key=lambda row: row.validation_macro_recall or 0.0)


def show(rows: Sequence[Row], title: str) -> Group:
    """The comparison, every arm's metrics, and the chosen arm's confusion matrix."""
    best = chosen(rows)
    sources = " and ".join(dict.fromkeys(row.source for row in rows if row.source))
    caption = (
        f"transfer: pretrained on {sources or 'nothing yet'}. ★ chosen on validation data. 95 % intervals: recall "
        "by bootstrap over test beats, optimistic since a patient has many beats; difference by Student's t over pairs."
    )
    confusion = tables.confusion_table(best.confusion, list(best.recall), f"{best.arm}: test beats, mean of its seeds")
    return Group(_verdict_table(rows, best, title), caption, "", _metric_table(rows, best), "", confusion)


def _verdict_table(rows: Sequence[Row], best: Row, title: str) -> Table:
    table = Table(title=title, title_style="bold")
    table.add_column("arm", no_wrap=True)
    for header in ("seeds", "macro recall", "95 % interval", "− scratch", "95 % interval ", "wins", "collapsed"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("verdict", min_width=18)
    table.add_column("leakage", no_wrap=True)
    for row in rows:
        gap, runs = row.difference, row.num_seeds if row.seconds else 0
        table.add_row(
            _name(row, best),
            str(runs or "–"),
            f"{row.macro_recall:.3f}",
            tables.interval(*row.interval),
            tables.signed(gap.mean) if gap else "",
            tables.interval(gap.low, gap.high, sign=True) if gap else "",
            f"{gap.wins}/{gap.num_pairs}" if gap else "",
            f"{row.num_collapsed}/{runs}" if runs else "–",
            row.verdict,
            row.badge,
        )
    return table


def _metric_table(rows: Sequence[Row], best: Row) -> Table:
    table = Table(title="Test metrics, mean of the seeds", title_style="bold")
    table.add_column("arm")
    columns = {"macro F1": "macro_f1", "micro F1": "micro_f1", "macro precision": "macro_precision", "acc.": "accuracy"}
    for header in (*(f"recall {name}" for name in rows[0].recall), *columns, "s a run"):
        table.add_column(header, justify="right")
    for row in rows:
        values = (*row.recall.values(), *(row.metrics[name] for name in columns.values()))
        seconds = f"{row.seconds:.0f}" if row.seconds else "–"
        table.add_row(_name(row, best), *(f"{value:.3f}" for value in values), seconds)
    return table


def _name(row: Row, best: Row) -> str:
    return f"[bold]{row.arm} ★[/bold]" if row is best else row.arm
