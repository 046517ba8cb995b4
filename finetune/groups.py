"""Several checkpoints side by side: groups of pretraining seeds, their rows with nested intervals, the tables. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.console import Group as Lines
from rich.table import Table

from data import OF_TRAINING
from experiments import tables
from experiments.files import nan_to_null
from experiments.metrics import Difference, is_collapsed, nested_difference, recall_per_class, verdict
from experiments.results import RunResult
from finetune.recipe import Recipe
from finetune.train import Arm

Cell = tuple[str, str, str | None, float, int]
"""Arm, architecture, encoder's hash, label fraction, seed: which of its comparison's runs a result is of."""


def cell_of(result: RunResult) -> Cell:
    config = result.config
    return result.arm, str(config["arch"]), result.encoder, float(config["label_fraction"] or 0), result.seed


@dataclass(frozen=True, kw_only=True)
class Group:
    """Arms that differ in nothing but the seed of their pretraining; a control is a group of one."""

    label: str
    arm: str
    """random-frozen, scratch or transfer."""
    architecture: str
    arms: tuple[Arm, ...]

    def adapt(self, recipe: Recipe) -> Recipe:
        """The comparison's recipe for this group: there is nothing in random weights to spare, or everything."""
        if self.arm == "scratch":
            return recipe.untrained()
        return replace(recipe.untrained(), schedule="frozen") if self.arm == "random-frozen" else recipe


def group_arms(arms: Sequence[Arm]) -> list[Group]:
    """For each architecture, in the order of `arms`: random-frozen, scratch, and the groups of checkpoints.

    Raises:
        ValueError: the same encoder twice, or two that differ in nothing that their files tell.
    """
    _check_different(arms)
    groups: list[Group] = []
    for spec in {arm.spec.label: arm.spec for arm in arms}.values():
        control = Arm(name="scratch", spec=spec)
        for name in ("random-frozen", "scratch"):
            arm = (replace(control, name=name),)
            groups.append(Group(label=f"{name} · {spec.label}", arm=name, architecture=spec.label, arms=arm))
        nested: dict[str, list[Arm]] = {}
        for arm in (arm for arm in arms if arm.spec.label == spec.label):
            nested.setdefault(json.dumps(_made_by(arm), sort_keys=True), []).append(arm)
        labels = _labels([_made_by(members[0]) for members in nested.values()])
        groups += [
            Group(label=f"{label} · {spec.label}", arm="transfer", architecture=spec.label, arms=tuple(members))
            for label, members in zip(labels, nested.values(), strict=True)
        ]
    return groups


def _made_by(arm: Arm) -> dict[str, Any]:
    """Whatever its file tells of a checkpoint's making but the seed."""
    assert arm.checkpoint is not None
    options = {name: value for name, value in arm.checkpoint.options.items() if name != "seed"}
    made_by = {**options, "task": arm.checkpoint.task, "source": arm.source}
    # A target's training part is cut anew for each seed; any other source is the same file for all.
    return made_by if OF_TRAINING in str(options.get("data")) else made_by | {"beats": arm.checkpoint.fingerprint}


def _labels(made_by: Sequence[Mapping[str, Any]]) -> list[str]:
    """The task of each, and where that is not all the difference, what else differs."""
    names = dict.fromkeys(name for made in made_by for name in made)
    different = [name for name in names if len({str(made.get(name)) for made in made_by}) > 1]
    more = [name for name in different if name not in ("task", "beats")] or different
    tasks = [made["task"] for made in made_by]
    return [
        task
        if tasks.count(task) == 1
        else ", ".join([task, *(f"{name} {made.get(name)}" for name in more if name != "task")])
        for task, made in zip(tasks, made_by, strict=True)
    ]


def _check_different(arms: Sequence[Arm]) -> None:
    seen: dict[str, Arm] = {}
    for arm in arms:
        assert arm.checkpoint is not None
        seed = json.dumps([_made_by(arm), arm.spec.to_json(), arm.checkpoint.seed], sort_keys=True)
        for key, what in (
            (arm.checkpoint.weights_hash, "hold the same encoder"),
            (seed, "say the same pretraining seed"),
        ):
            if key in seen:
                raise ValueError(f"{seen[key].origin} and {arm.origin} {what}: name each pretraining once")
            seen[key] = arm


@dataclass(frozen=True, kw_only=True)
class Row:
    """One group at one label fraction, on the test part."""

    label: str
    arm: str
    architecture: str
    label_fraction: float
    train_beats: int
    num_pretraining_seeds: int
    """0 for a control."""
    num_seeds: int
    """Fine-tune seeds that any of the group's encoders has."""
    macro_recall: float
    validation_macro_recall: float
    """What ★ goes by."""
    recall: Mapping[str, float]
    metrics: Mapping[str, float]
    num_runs: int
    num_collapsed: int
    """Runs that predict one class, or whose macro recall is at chance."""
    seconds: float
    difference: Difference | None
    """To scratch of the architecture, over the seeds that all the group's encoders and scratch have."""
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
    rows = []
    for fraction in fractions:
        here = [result for result in results if result.config["label_fraction"] == fraction]
        scratch = {group.architecture: _tested(here, group) for group in groups if group.arm == "scratch"}
        rows += [_row(group, fraction, here, scratch[group.architecture]) for group in groups if _tested(here, group)]
    return rows


def _tested(results: Sequence[RunResult], group: Group) -> list[RunResult]:
    return [result for result in results if result.part == "test" and _is_of(result, group)]


def _is_of(result: RunResult, group: Group) -> bool:
    made_by = (result.arm, result.config["arch"], result.encoder)
    return made_by in {(group.arm, group.architecture, arm.encoder_hash) for arm in group.arms}


def _row(group: Group, fraction: float, results: Sequence[RunResult], scratch: Sequence[RunResult]) -> Row:
    runs = _tested(results, group)
    validated = {
        cell_of(result): result.metrics["macro_recall"]
        for result in results
        if result.part == "validation" and _is_of(result, group)
    }
    confusions = np.array([run.confusion for run in runs])
    recalls = recall_per_class(confusions).mean(0)
    num_encoders = len({run.encoder for run in runs} - {None})
    difference = None if group.arm == "scratch" else _difference(runs, scratch)
    return Row(
        label=group.label,
        arm=group.arm,
        architecture=group.architecture,
        label_fraction=fraction,
        train_beats=int(runs[0].config["train_beats"] or 0),
        num_pretraining_seeds=num_encoders,
        num_seeds=len({run.seed for run in runs}),
        macro_recall=_mean([run.metrics["macro_recall"] for run in runs]),
        validation_macro_recall=_mean(list(validated.values())),
        recall={name: float(recall) for name, recall in zip(runs[0].classes, recalls, strict=True)},
        metrics={
            name: _mean([run.metrics[name] for run in runs]) for name in ("macro_f1", "macro_precision", "accuracy")
        },
        num_runs=len(runs),
        num_collapsed=sum(map(is_collapsed, confusions)),
        seconds=_mean([run.cost["seconds"] for run in runs]),
        difference=difference,
        verdict=verdict(difference, num_encoders) if difference and group.arm == "transfer" else "",
        badge=runs[0].badge,
        source=runs[0].source,
        runs=[
            {
                "encoder": run.encoder,
                "pretraining_seed": run.config.get("pretraining_seed"),
                "seed": run.seed,
                "macro_recall": run.metrics["macro_recall"],
                "validation_macro_recall": validated.get(cell_of(run)),
            }
            for run in runs
        ],
    )


def _difference(treated: Sequence[RunResult], scratch: Sequence[RunResult]) -> Difference | None:
    """Encoders × seeds, of the seeds that every encoder and scratch have."""
    control = {run.seed: run.metrics["macro_recall"] for run in scratch}
    recall = {(run.encoder, run.seed): run.metrics["macro_recall"] for run in treated}
    encoders = list(dict.fromkeys(run.encoder for run in treated))
    seeds = [seed for seed in sorted(control) if all((encoder, seed) in recall for encoder in encoders)]
    if not seeds:
        return None
    return nested_difference([[recall[encoder, seed] - control[seed] for seed in seeds] for encoder in encoders])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


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
    caption = (
        "seeds: pretraining × fine-tune. − scratch: of the same architecture and seed. 95 % interval: pretraining and "
        "fine-tune seeds as crossed random effects, Student's t; with one checkpoint over fine-tune seeds alone. Not "
        "corrected for the number of rows. ★ chosen on validation data, for each share of labels."
    )
    best = list(chosen(rows).values())
    return Lines(_verdict_table(rows, best, title), caption, "", _recall_table(rows, best))


def _verdict_table(rows: Sequence[Row], best: Sequence[Row], title: str) -> Table:
    table = Table(title=title, title_style="bold")
    table.add_column("labels", justify="right", no_wrap=True)
    table.add_column("arm · architecture")
    for header in ("seeds", "macro recall", "− scratch", "95 % interval", "wins", "collapsed"):
        table.add_column(header, justify="right", no_wrap=header not in ("macro recall", "collapsed"))
    for header in ("verdict", "leakage", "pretrained on"):
        table.add_column(header)
    for row in rows:
        gap = row.difference
        table.add_row(
            _share(row),
            _name(row, best),
            f"{row.num_pretraining_seeds} × {row.num_seeds}" if row.num_pretraining_seeds else str(row.num_seeds),
            f"{row.macro_recall:.3f}",
            tables.signed(gap.mean) if gap else "",
            tables.interval(gap.low, gap.high, sign=True) if gap else "",
            f"{gap.wins}/{gap.num_pairs}" if gap else "",
            f"{row.num_collapsed}/{row.num_runs}",
            row.verdict,
            row.badge,
            row.source or "–",
        )
    return table


def _recall_table(rows: Sequence[Row], best: Sequence[Row]) -> Table:
    table = Table(title="Test recall by class, mean of the runs", title_style="bold")
    table.add_column("labels", justify="right", no_wrap=True)
    table.add_column("arm · architecture")
    columns = {"macro F1": "macro_f1", "macro precision": "macro_precision", "acc.": "accuracy"}
    for header in (*rows[0].recall, *columns, "validation macro recall", "s a run"):
        table.add_column(header, justify="right")
    for row in rows:
        values = (*row.recall.values(), *(row.metrics[name] for name in columns.values()), row.validation_macro_recall)
        table.add_row(_share(row), _name(row, best), *(f"{value:.3f}" for value in values), f"{row.seconds:.0f}")
    return table


def _share(row: Row) -> str:
    return f"{row.label_fraction:.3g} ({row.train_beats:,})"


def _name(row: Row, best: Sequence[Row]) -> str:
    return f"[bold]{row.label} ★[/bold]" if any(row is other for other in best) else row.label
