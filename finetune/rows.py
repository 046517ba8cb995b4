"""What a comparison says: a row for each group and share of labels, nested by seeds, with verdicts; tables. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.console import Group as Lines
from rich.table import Table

from experiments import tables
from experiments.files import nan_to_null
from experiments.metrics import Difference, holm, is_collapsed, nested_difference, recall_per_class, verdict
from experiments.results import RunResult
from finetune.groups import Cell, Group, adapt, cell_of, varied

LINEAR = "linear"
Scored = Mapping[Cell, RunResult]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One group at one label fraction, on the test part."""

    label: str
    name: str
    """Of the pretraining, or of the control."""
    words: str
    """What of its recipe, and architecture, differs from other rows."""
    arm: str
    architecture: str
    label_fraction: float
    train_beats: int
    num_pretraining_seeds: int
    """0 for a control."""
    num_seeds: int
    """Fine-tune seeds that any of the group's encoders has."""
    macro_recall: float
    low: float | None
    high: float | None
    """95 % interval of macro recall, for both kinds of seeds; None of a single run."""
    validation_macro_recall: float
    """What ★ goes by."""
    recall: Mapping[str, float]
    metrics: Mapping[str, float]
    num_runs: int
    num_collapsed: int
    """Runs that predict one class, or whose macro recall is at chance."""
    beats: float
    """Seen by a run, mean."""
    seconds: float
    difference: Difference | None
    """To scratch of the architecture and recipe, over the seeds that all the group's encoders and scratch have."""
    over_linear: Difference | None
    """To the linear control, where there is one."""
    p_holm: float | None
    """Of the difference to scratch, corrected over the transfer rows of this share of labels (Holm 1979)."""
    verdict: str
    badge: str
    source: str | None
    runs: Sequence[Mapping[str, str | int | float | None]]

    def to_json(self) -> dict[str, Any]:
        """The recall of a class that the test part lacks becomes null."""
        return nan_to_null(asdict(self))


def make_rows(groups: Sequence[Group], fractions: Sequence[float], results: Sequence[RunResult]) -> list[Row]:
    """Fraction by fraction, each group that has a finished run, in the order of `groups`.

    Args:
        results: of the validation and of the test part, of the seeds to compare.
    """
    tested, validated = (
        {cell_of(result): result for result in results if result.part == part} for part in ("test", "validation")
    )
    return [row for fraction in fractions for row in _corrected(_rows_at(groups, fraction, tested, validated))]


def _rows_at(groups: Sequence[Group], fraction: float, tested: Scored, validated: Scored) -> list[Row]:
    runs_of = [(group, _runs(group, fraction, tested)) for group in groups]
    linear = next((runs for group, runs in runs_of if group.arm == LINEAR), {})
    rows = []
    for group, runs in runs_of:
        if runs:
            scratch = next((of for other, of in runs_of if _is_control_of(other, group)), {})
            validation = {cell: validated[cell] for cell in runs if cell in validated}
            rows.append(_row(group, fraction, runs, validation, scratch, linear if group.arm != LINEAR else {}))
    return rows


def _runs(group: Group, fraction: float, tested: Scored) -> dict[Cell, RunResult]:
    cells = {group.cell(arm, fraction, 0)[:-1] for arm in group.arms}
    return {cell: result for cell, result in tested.items() if cell[:-1] in cells}


def _is_control_of(other: Group, group: Group) -> bool:
    """Whether it is scratch of the same architecture, by what of the recipe concerns random weights too."""
    if other.arm != "scratch" or group.arm == "scratch" or group.recipe is None or other.recipe is None:
        return False
    same_recipe = varied(adapt(group.recipe, "scratch")) == varied(other.recipe)
    return other.architecture == group.architecture and same_recipe


def _row(
    group: Group,
    fraction: float,
    runs: Mapping[Cell, RunResult],
    validated: Mapping[Cell, RunResult],
    scratch: Mapping[Cell, RunResult],
    linear: Mapping[Cell, RunResult],
) -> Row:
    first = next(iter(runs.values()))
    confusions = np.array([run.confusion for run in runs.values()])
    recalls = recall_per_class(confusions).mean(0)
    num_encoders = len({run.encoder for run in runs.values()} - {None})
    difference = _difference(runs, scratch)
    level = _spread(runs)
    return Row(
        label=group.label,
        name=group.name,
        words=group.words,
        arm=group.arm,
        architecture=group.architecture,
        label_fraction=fraction,
        train_beats=int(first.config["train_beats"] or 0),
        num_pretraining_seeds=num_encoders,
        num_seeds=len({run.seed for run in runs.values()}),
        macro_recall=_mean(run.metrics["macro_recall"] for run in runs.values()),
        low=level.low if level else None,
        high=level.high if level else None,
        validation_macro_recall=_mean(result.metrics["macro_recall"] for result in validated.values()),
        recall={name: float(recall) for name, recall in zip(first.classes, recalls, strict=True)},
        metrics={
            name: _mean(run.metrics[name] for run in runs.values())
            for name in ("macro_f1", "macro_precision", "accuracy")
        },
        num_runs=len(runs),
        num_collapsed=sum(map(is_collapsed, confusions)),
        beats=_mean(run.cost["beats"] for run in runs.values()),
        seconds=_mean(run.cost["seconds"] for run in runs.values()),
        difference=difference,
        over_linear=_difference(runs, linear),
        p_holm=None,
        verdict=verdict(difference, num_encoders) if difference and group.arm == "transfer" else "",
        badge=first.badge,
        source=first.source,
        runs=[_about(run, validated.get(cell)) for cell, run in runs.items()],
    )


def _about(run: RunResult, validated: RunResult | None) -> dict[str, str | int | float | None]:
    return {
        "encoder": run.encoder,
        "pretraining_seed": run.config.get("pretraining_seed"),
        "seed": run.seed,
        "macro_recall": run.metrics["macro_recall"],
        "validation_macro_recall": validated.metrics["macro_recall"] if validated else None,
    }


def _corrected(rows: Sequence[Row]) -> list[Row]:
    """With the p-values and verdicts of the transfer rows corrected over all of them."""
    asked = [row.difference.p_value if row.difference and row.arm == "transfer" else None for row in rows]
    return [
        row
        if corrected is None or row.difference is None
        else replace(row, p_holm=corrected, verdict=verdict(row.difference, row.num_pretraining_seeds, corrected))
        for row, corrected in zip(rows, holm(asked), strict=True)
    ]


def _difference(treated: Mapping[Cell, RunResult], control: Mapping[Cell, RunResult]) -> Difference | None:
    """Encoders × seeds, of the seeds that every encoder and the control have."""
    of_control = {run.seed: run.metrics["macro_recall"] for run in control.values()}
    recall_PK = _by_encoder(treated, of_control)
    if recall_PK is None:
        return None
    seeds, recalls = recall_PK
    return nested_difference(recalls - np.array([of_control[seed] for seed in seeds]))


def _spread(runs: Mapping[Cell, RunResult]) -> Difference | None:
    """The mean over encoders × seeds with its interval."""
    found = _by_encoder(runs, {run.seed for run in runs.values()})
    return nested_difference(found[1]) if found else None


def _by_encoder(
    runs: Mapping[Cell, RunResult], seeds: Mapping[int, float] | set[int]
) -> tuple[list[int], np.ndarray] | None:
    """The seeds, of these, that every encoder has, and macro recall (num_encoders, num_seeds)."""
    recall = {(run.encoder, run.seed): run.metrics["macro_recall"] for run in runs.values()}
    encoders = list(dict.fromkeys(run.encoder for run in runs.values()))
    shared = [seed for seed in sorted(seeds) if all((encoder, seed) in recall for encoder in encoders)]
    if not shared:
        return None
    return shared, np.array([[recall[encoder, seed] for seed in shared] for encoder in encoders])


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def chosen(rows: Sequence[Row]) -> dict[float, Row]:
    """Of each label fraction, the row of highest validation macro recall: the test part has no say."""
    best: dict[float, Row] = {}
    for row in rows:
        so_far = best.setdefault(row.label_fraction, row)
        if row.validation_macro_recall > so_far.validation_macro_recall:
            best[row.label_fraction] = row
    return best


def show(rows: Sequence[Row], title: str) -> Lines:
    """Differences and verdicts; below them recall by class."""
    sources: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.source is not None:
            sources.setdefault(row.source, {})[row.name] = None
    caption = (
        "".join(f"{', '.join(names)}: pretrained on {source}. " for source, names in sources.items())
        + "seeds: pretraining × fine-tune. − scratch: of the same architecture, recipe and seed. 95 % interval of that "
        "difference: pretraining and fine-tune seeds as crossed random effects, Student's t; with one checkpoint over "
        "fine-tune seeds alone. p: corrected by Holm over the pretrained rows of a share of labels; a verdict "
        "needs the interval and p ≤ .05. ★ chosen on validation data, for each share of labels."
    )
    best = list(chosen(rows).values())
    return Lines(_verdict_table(rows, best, title), caption, "", _recall_table(rows, best))


def _verdict_table(rows: Sequence[Row], best: Sequence[Row], title: str) -> Table:
    has_linear = any(row.over_linear for row in rows)
    table = Table(title=title, title_style="bold")
    table.add_column("labels", justify="right", no_wrap=True)
    table.add_column("arm · recipe")
    for header in ("seeds", "macro recall", "− scratch", "95 % interval", "p", "wins"):
        table.add_column(header, justify="right", no_wrap=header != "macro recall")
    if has_linear:
        table.add_column("− linear", justify="right", no_wrap=True)
    table.add_column("verdict")
    table.add_column("leakage", no_wrap=True)
    for row in rows:
        gap = row.difference
        table.add_row(
            _share(row),
            _name(row, best),
            f"{row.num_pretraining_seeds} × {row.num_seeds}" if row.num_pretraining_seeds else str(row.num_seeds),
            f"{row.macro_recall:.3f}",
            tables.signed(gap.mean) if gap else "",
            tables.interval(gap.low, gap.high, sign=True) if gap else "",
            "" if row.p_holm is None else f"{row.p_holm:.2g}",
            f"{gap.wins}/{gap.num_pairs}" if gap else "",
            *([tables.signed(row.over_linear.mean) if row.over_linear else ""] if has_linear else []),
            row.verdict,
            row.badge,
        )
    return table


def _recall_table(rows: Sequence[Row], best: Sequence[Row]) -> Table:
    table = Table(title="Test recall by class, mean of the runs", title_style="bold")
    table.add_column("labels", justify="right", no_wrap=True)
    table.add_column("arm · recipe")
    columns = {"macro F1": "macro_f1", "macro precision": "macro_precision", "acc.": "accuracy"}
    for header in (*rows[0].recall, *columns, "validation macro recall", "collapsed", "beats a run", "s a run"):
        table.add_column(header, justify="right")
    for row in rows:
        values = (*row.recall.values(), *(row.metrics[name] for name in columns.values()), row.validation_macro_recall)
        cost = (f"{row.num_collapsed}/{row.num_runs}", f"{row.beats:,.0f}", f"{row.seconds:.0f}")
        table.add_row(_share(row), _name(row, best), *(f"{value:.3f}" for value in values), *cost)
    return table


def _share(row: Row) -> str:
    return f"{row.label_fraction:.3g} ({row.train_beats:,})"


def _name(row: Row, best: Sequence[Row]) -> str:
    return f"[bold]{row.label} ★[/bold]" if any(row is other for other in best) else row.label
