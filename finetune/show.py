"""What `tune` prints and writes: the plan before, the spending and the comparison after, the chosen classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from experiments import tables
from experiments.results import RunResult
from experiments.space import space_table
from finetune import arms
from finetune.importance import Importance, Trial, importance_table, importances
from finetune.pictures import draw_study
from finetune.plan import Finals, Search, Work
from finetune.recipe import recipe_of
from models.checkpoint import load, save

if TYPE_CHECKING:
    from finetune.cli import Tune
    from finetune.studies import Study


def plan(study: Study, work: Work, search: Search, finals: Finals, budget_s: float, extra_epochs: float) -> None:
    """Before anything is spent: the space, and what each arm will get."""
    console = tables.console()
    console.print(space_table(study.space))
    table = Table(title=f"Plan for {tables.duration(budget_s)}", title_style="bold", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    objectives = " and ".join(name.replace("_", " ") for name in study.objectives)
    warm = f"; {len(study.prior)} earlier trials known" if study.prior else ""
    for row in (
        (
            "measured",
            f"{work.beats_per_s:,.0f} training beats/s on each of {work.num_workers} one-thread workers, "
            f"{study.machine.precision} on {study.machine.device}",
        ),
        ("search", f"{search}; {study.searcher} and {study.scheduler}, for validation {objectives}{warm}"),
        ("comparison", f"{finals}; planned anew with the time that the search leaves"),
        ("scratch+", f"scratch and the compute of pretraining: {extra_epochs:.1f} epochs of training from scratch"),
        ("split", f"{study.split.protocol}: {work.num_train:,} training, {work.num_validation:,} validation beats"),
    ):
        table.add_row(*row)
    console.print(table)


def outcome(flags: Tune, study: Study, notes: Mapping[str, Any], ending: str) -> None:
    """What there is: the search so far, the comparison so far; and the chosen classifier, saved."""
    searched, final = study.finished("search"), study.finished("final")
    console = tables.console()
    content: dict[str, Any] = {**notes, "ending": ending, "search_results": [], "failed": study.failures()}
    if searched:
        content["search_results"] = spending(study, searched)
        console.print(_search_table(study, content["search_results"]))
        content |= _search(study, searched)
    if any(result.part == "test" for result in final):
        test = study.split.load_test()
        counts = list(study.split.train.counts().values())
        rows = arms.make_rows(final, arms.majority_confusion(counts, test.labels.numpy()))
        console.print(arms.show(rows, f"Transfer against scratch on {study.base.dataset}"))
        content["final_results"] = final_spending(final)
        console.print(_final_table(content["final_results"]))
        content |= {"rows": [row.to_json() for row in rows], "chosen": arms.chosen(rows).arm}
        content["file"] = _save_chosen(flags, study, final, arms.chosen(rows).arm)
        tables.say(f"written: {content['file']}")
    flags.write(content)
    study.tracked.artifact_json("tune.json", content)


def _search(study: Study, searched: Sequence[RunResult]) -> dict[str, Any]:
    """Importance and pictures of the search, and where there are several objectives its Pareto front."""
    console = tables.console()
    content: dict[str, Any] = {"importance": {}}
    trials = [
        Trial(arm=result.arm, config=result.config, value=float(np.mean(study.values(np.array(result.confusion)))))
        for result in searched
    ]
    for arm in study.arms:
        of_arm = [(trial.config, trial.value) for trial in trials if trial.arm == arm.name]
        rows = importances(of_arm, study.space, arm.facts) if of_arm else []
        if any(row.fanova is not None for row in rows):
            console.print(importance_table(rows, f"Importance of each dimension, {arm.name}"))
        content["importance"][arm.name] = [_as_json(row) for row in rows]
    if len(study.objectives) > 1:
        front = study.front(searched)
        console.print(_front_table(study, front))
        content["front"] = [result.to_json() for result in front]
    facts = {arm.name: arm.facts for arm in study.arms}
    files = draw_study(study.folder / "pictures", trials, study.space, " and ".join(study.objectives), facts)
    for file in files:
        study.tracked.artifact_file(file)
    tables.say(f"pictures of the search: {study.folder / 'pictures'}")
    content["pictures"] = [str(file) for file in files]
    return content


def _as_json(row: Importance) -> dict[str, Any]:
    return {
        "name": row.name,
        "fanova": row.fanova,
        "ped_anova": row.ped_anova,
        "trials": row.num_trials,
        "conditional": row.is_conditional,
        "reason": row.reason,
    }


def spending(study: Study, searched: Sequence[RunResult]) -> list[dict[str, Any]]:
    """What each arm's search has cost and found."""
    spent = []
    for arm in study.arms:
        trials = [result for result in searched if result.arm == arm.name]
        if trials:
            total = {name: sum(trial.cost[name] for trial in trials) for name in ("epochs", "beats", "seconds")}
            compared = study.compared(arm)
            counts = {"trials": len(trials), "compared": len(compared), "failed": len(study.failures(arm))}
            spent.append({"arm": arm.name, **counts, **total, "best": study.best(compared).to_json()})
    return spent


def final_spending(final: Sequence[RunResult]) -> list[dict[str, Any]]:
    """What each arm's compared runs have cost."""
    tested = [result for result in final if result.part == "test"]
    return [
        {
            "arm": arm,
            "runs": len(runs := [result for result in tested if result.arm == arm]),
            "epochs": sum(int(run.config["epochs"] or 0) for run in runs),
            "beats": sum(run.cost["beats"] for run in runs),
            "seconds": sum(run.cost["seconds"] for run in runs),
            "recipe": str(recipe_of(runs[0])),
        }
        for arm in dict.fromkeys(result.arm for result in tested)
    ]


def _search_table(study: Study, spent: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Search: spending, and the best recipe by validation", title_style="bold")
    table.caption = "compared: as many of an arm's first trials as every arm has tried; the best is one of these"
    table.add_column("arm")
    headers = ("trials", "compared", "failed", "epochs", "beats seen", "worker time")
    for header in (*headers, *map(_words, study.objectives)):
        table.add_column(header, justify="right")
    table.add_column("best recipe")
    for row in spent:
        best = RunResult.from_json(row["best"])
        table.add_row(
            row["arm"],
            str(row["trials"]),
            str(row["compared"]),
            str(row["failed"]),
            f"{row['epochs']:.0f}",
            f"{row['beats']:,.0f}",
            tables.duration(row["seconds"]),
            *(f"{value:.3f}" for value in study.values(np.array(best.confusion))),
            str(recipe_of(best)),
        )
    return table


def _final_table(spent: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Comparison: spending", title_style="bold")
    table.add_column("arm")
    for header in ("runs", "epochs", "beats seen", "worker time"):
        table.add_column(header, justify="right")
    table.add_column("recipe")
    for row in spent:
        seconds = tables.duration(row["seconds"])
        table.add_row(row["arm"], str(row["runs"]), str(row["epochs"]), f"{row['beats']:,.0f}", seconds, row["recipe"])
    return table


def _front_table(study: Study, front: Sequence[RunResult]) -> Table:
    table = Table(title="Pareto front on validation data: no trial is better in all of these", title_style="bold")
    table.add_column("arm")
    for header in map(_words, study.objectives):
        table.add_column(header, justify="right")
    table.add_column("recipe")
    for result in front:
        values = study.values(np.array(result.confusion))
        table.add_row(result.arm, *(f"{value:.3f}" for value in values), str(recipe_of(result)))
    return table


def _words(name: str) -> str:
    return f"validation {name.replace('_', ' ')}"


def _save_chosen(flags: Tune, study: Study, final: Sequence[RunResult], arm: str) -> str:
    from finetune.finals import model_file

    validated = [result for result in final if result.arm == arm and result.part == "validation"]
    best = max(validated, key=lambda result: result.metrics["macro_recall"])
    save(flags.out_file, load(model_file(study, arm, best.seed)))
    return str(flags.out_file)
