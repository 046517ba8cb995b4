"""One `tune` from start to end: measure, plan, search, paired seeds, table; resumable at any point."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from rich.table import Table

import data
from data.split import Split
from experiments import cluster, loop, results, tables
from experiments.cli import continuing
from experiments.files import write_json
from experiments.machine import Machine, resolve_device, resolve_precision
from experiments.results import RunResult
from experiments.tracking import Tracker
from finetune import arms
from finetune.plan import Finals, Search, Work, after_search_s, plan_finals, plan_search
from finetune.recipe import Recipe, recipe_of
from finetune.train import Arm
from models.checkpoint import load, save

if TYPE_CHECKING:
    from finetune.cli import Tune
    from finetune.tune import Study

SEARCH_AT_MOST = 0.7
"""Share of the time left at its start after which a search that is slower than planned is ended."""
GRACE = 1.06
"""Share of the budget after which runs that have not ended are given up."""


class Notes:
    """`study.json`: the study's name, its settings, and the plans as they are made."""

    def __init__(self, flags: Tune, transfer: Arm, split: Split) -> None:
        """
        Raises:
            ValueError: `--resume` of a study of other settings.
        """
        self.path = flags.folder / "study.json"
        made_of = {"weights": transfer.encoder_hash, "training beats": split.train.fingerprint}
        settings = flags.settings() | made_of
        self.content: dict[str, Any] = {"name": uuid4().hex[:12], "settings": settings}
        if not (flags.resume and self.path.exists()):
            self.save()
            return
        self.content = json.loads(self.path.read_text())
        for name, value in settings.items():
            if self.content["settings"].get(name) != value:
                was = self.content["settings"].get(name)
                raise ValueError(f"{self.path} is of other settings: {name} was {was}, is {value}")

    def save(self) -> None:
        write_json(self.path, self.content)

    def remember(self, name: str, content: dict[str, Any]) -> None:
        self.content[name] = content
        self.save()


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Seconds for the whole command, from its start."""

    seconds: float
    start: float

    @property
    def left_s(self) -> float:
        return self.seconds - (time.monotonic() - self.start)

    @property
    def deadline(self) -> float:
        return self.start + self.seconds * GRACE


def run_study(flags: Tune, budget: Budget) -> None:
    """Search, compare and show; Ctrl-C or the budget's end show what there is and how to continue.

    Raises:
        ValueError: flags, data or a checkpoint that do not fit.
        KeyboardInterrupt: passed on after the table.
    """
    transfer = flags.arm()
    scratch = Arm(name="scratch", spec=transfer.spec)
    split = data.load_split(flags.data, flags.protocol, flags.data_folder, flags.seed)
    transfer.check(split, flags.data)
    for line in (*split.train.notes, transfer.loaded):
        tables.say(line)
    notes = Notes(flags, transfer, split)
    device = resolve_device(flags.device)
    machine = Machine(device=device, precision=resolve_precision(flags.precision, device), threads=1)
    num_workers = flags.threads or cluster.default_workers(device)
    tracker = Tracker.open(flags.tracking, "finetune")
    with (
        tracker.run(f"tune {transfer.origin}", flags.settings(), {"badge": split.badge}) as tracked,
        cluster.started(num_workers),
        loop.deferred_interrupt() as interrupted,
    ):
        from finetune.tune import Study

        study = Study(
            name=notes.content["name"],
            arms=(transfer, scratch),
            split=split,
            base=flags.context(split),
            seed=flags.seed,
            num_workers=num_workers,
            machine=machine,
            folder=flags.folder,
            store=results.STORE,
            tracked=tracked,
            interrupted=interrupted,
        )
        try:
            _search_and_compare(flags, study, notes, budget)
        except KeyboardInterrupt:
            _show(flags, study, notes, "interrupted")
            raise
        except TimeoutError:
            _show(flags, study, notes, "out of time")
            tables.say(f"the budget of {flags.budget} is spent; to continue: {continuing('finetune')}")
        else:
            _show(flags, study, notes, "complete")


def _search_and_compare(flags: Tune, study: Study, notes: Notes, budget: Budget) -> None:
    from finetune.finals import final_runs, run_finals

    if "finals" not in notes.content:
        _plan_and_search(flags, study, notes, budget)
    finals = Finals(**notes.content["finals"])
    best = {arm: Recipe(**recipe) for arm, recipe in notes.content["best"].items()}
    tables.say(f"comparison: {finals}, {tables.duration(max(0.0, budget.left_s))} left")
    run_finals(study, finals, final_runs(study, finals, best), study.split.load_test(), budget.deadline)


def _plan_and_search(flags: Tune, study: Study, notes: Notes, budget: Budget) -> None:
    """Ends with the best recipes and the comparison's plan in the notes.

    Raises:
        TimeoutError: the search has left no time.
    """
    from finetune.tune import measure_speed, search

    work = Work(
        num_train=len(study.split.train),
        num_validation=len(study.split.validation),
        beats_per_s=measure_speed(study),
        num_workers=study.num_workers,
    )
    study.stop_if_interrupted()
    num_arms = len(study.arms)
    if "search" not in notes.content:
        plan = plan_search(budget.left_s, work, num_arms, flags.trials)
        notes.remember("search", asdict(plan))
        finals = plan_finals(after_search_s(budget.left_s, num_arms), work, num_arms, flags.seeds, flags.epochs)
        _show_plan(study, work, plan, finals, budget)
    best = search(study, Search(**notes.content["search"]), budget.left_s * SEARCH_AT_MOST)
    if budget.left_s <= 0:
        raise TimeoutError
    notes.content["best"] = {arm: asdict(recipe) for arm, recipe in best.items()}
    notes.remember("finals", asdict(plan_finals(budget.left_s, work, num_arms, flags.seeds, flags.epochs)))


def _show_plan(study: Study, work: Work, search: Search, finals: Finals, budget: Budget) -> None:
    table = Table(title=f"Plan for {tables.duration(budget.seconds)}", title_style="bold", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row(
        "measured",
        f"{work.beats_per_s:,.0f} training beats/s on each of {work.num_workers} one-thread workers, "
        f"{study.machine.precision} on {study.machine.device}",
    )
    table.add_row("search", f"{search}; ASHA stops the worse ones early")
    table.add_row("comparison", f"{finals}; planned anew with the time that the search leaves")
    table.add_row(
        "split", f"{study.split.protocol}: {work.num_train:,} training, {work.num_validation:,} validation beats"
    )
    tables.console().print(table)


def _show(flags: Tune, study: Study, notes: Notes, ending: str) -> None:
    """What there is: the search so far, the comparison so far; and the chosen classifier, saved."""
    searched, final = study.finished("search"), study.finished("final")
    console = tables.console()
    content: dict[str, Any] = {**notes.content, "ending": ending, "search_results": _spending(searched)}
    if searched:
        console.print(_search_table(searched))
    if any(result.part == "test" for result in final):
        test = study.split.load_test()
        counts = list(study.split.train.counts().values())
        rows = arms.make_rows(final, arms.majority_confusion(counts, test.labels.numpy()))
        console.print(arms.show(rows, f"Transfer against scratch on {study.base.dataset}"))
        content |= {"rows": [row.to_json() for row in rows], "chosen": arms.chosen(rows).arm}
        content["file"] = _save_chosen(flags, study, final, arms.chosen(rows).arm)
        tables.say(f"written: {content['file']}")
    flags.write(content)
    study.tracked.artifact_json("tune.json", content)


def _save_chosen(flags: Tune, study: Study, final: Sequence[RunResult], arm: str) -> str:
    from finetune.finals import model_file

    validated = [result for result in final if result.arm == arm and result.part == "validation"]
    best = max(validated, key=lambda result: result.metrics["macro_recall"])
    save(flags.out_file, load(model_file(study, arm, best.seed)))
    return str(flags.out_file)


def _spending(searched: Sequence[RunResult]) -> list[dict[str, Any]]:
    """What each arm's search has cost and found."""
    spent = []
    for arm in dict.fromkeys(result.arm for result in searched):
        trials = [result for result in searched if result.arm == arm]
        best = max(trials, key=lambda result: result.metrics["macro_recall"])
        total = {name: sum(trial.cost[name] for trial in trials) for name in ("epochs", "beats", "seconds")}
        spent.append({"arm": arm, "trials": len(trials), **total, "best": best.to_json()})
    return spent


def _search_table(searched: Sequence[RunResult]) -> Table:
    table = Table(title="Search: spending, and the best recipe by validation", title_style="bold")
    table.add_column("arm")
    for header in ("trials", "epochs", "beats seen", "worker time", "validation macro recall"):
        table.add_column(header, justify="right")
    table.add_column("best recipe")
    for spent in _spending(searched):
        best = RunResult.from_json(spent["best"])
        table.add_row(
            spent["arm"],
            str(spent["trials"]),
            f"{spent['epochs']:.0f}",
            f"{spent['beats']:,.0f}",
            tables.duration(spent["seconds"]),
            f"{best.metrics['macro_recall']:.3f}",
            str(recipe_of(best)),
        )
    return table
