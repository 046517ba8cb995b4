"""One `tune` from start to end: measure, plan, search, paired seeds, table; resumable at any point."""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from torch.nn import functional

import data
from data.balance import BALANCES
from data.split import Split
from experiments import cluster, loop, results, tables
from experiments.cli import continuing
from experiments.files import write_json
from experiments.machine import Machine, resolve_device, resolve_precision
from experiments.metrics import objective
from experiments.results import RunResult
from experiments.space import Space
from experiments.tracking import Run, Tracker
from finetune import searchspace, show
from finetune.plan import Finals, Search, Work, after_search_s, plan_finals, plan_search
from finetune.recipe import Recipe, fixed_by
from finetune.studies import Study
from finetune.train import Arm, Context
from models.cost import count

if TYPE_CHECKING:
    from finetune.cli import Tune

COUNTED = 8
"""Beats by which the multiply-adds of training from scratch are counted."""
SEARCH_AT_MOST = 0.7
"""Share of the time left at its start after which a search that is slower than planned is ended."""
GRACE = 1.06
"""Share of the budget after which runs that have not ended are given up."""


class Notes:
    """`study.json`: the study's name, its settings with the space, and the plans as they are made."""

    def __init__(self, flags: Tune, transfer: Arm, split: Split, space: Space) -> None:
        """
        Raises:
            ValueError: `--resume` of a study of other settings.
        """
        self.path = flags.folder / "study.json"
        made_of = {"weights": transfer.encoder_hash, "training beats": split.train.fingerprint}
        settings = flags.settings() | made_of | {"space": space.to_json()}
        self.content: dict[str, Any] = {"name": uuid4().hex[:12], "settings": settings}
        if not (flags.resume and self.path.exists()):
            self._keep_another()
            self.save()
            return
        self.content = json.loads(self.path.read_text())
        for name, value in settings.items():
            if self.content["settings"].get(name) != value:
                was = self.content["settings"].get(name)
                raise ValueError(f"{self.path} is of other settings: {name} was {_brief(was)}, is {_brief(value)}")

    def _keep_another(self) -> None:
        """The notes of an earlier study of the folder; its results are in the store."""
        if self.path.exists():
            kept = self.path.with_name(f"study_{json.loads(self.path.read_text())['name']}.json")
            self.path.rename(kept)
            tables.say(f"an earlier study of this folder is kept as {kept} (--resume would have continued it)")

    def save(self) -> None:
        write_json(self.path, self.content)

    def remember(self, name: str, content: Any) -> None:
        self.content[name] = content
        self.save()


def _brief(value: Any) -> str:
    return f"another one ({value['name']})" if isinstance(value, dict) else str(value)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """
    Raises:
        ValueError: another process works on this study.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"another tune works on {folder}: wait for it, or take another --seed") from None
        yield


@contextmanager
def _room(*paths: Path) -> Iterator[None]:
    """
    Raises:
        ValueError: a disk is full; of these paths the one with the least room is named.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        full = f"the disk of {min(paths, key=_free_bytes)} is full"
        raise ValueError(f"{full}; with more room, to continue: {continuing('finetune')}") from None


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(next(place for place in (path, *path.resolve().parents) if place.exists())).free


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
    fixed = fixed_by(flags.fixed)
    recipe = replace(Recipe(), **fixed)
    recipe.check()
    transfer = flags.arm()
    split = data.load_split(flags.data, flags.protocol, flags.data_folder, flags.seed)
    transfer.check(split, flags.data, recipe)
    space = searchspace.checked(flags.space, fixed, transfer)
    _check_search(flags, space)
    for name in flags.objective:
        objective(name, split.train.classes)
    for line in (*split.train.notes, transfer.loaded):
        tables.say(line)
    places = (flags.folder, flags.out_file, *([flags.json] if flags.json else []), Path(tempfile.gettempdir()))
    with _room(*places), _alone(flags.folder):
        notes = Notes(flags, transfer, split, space)
        tracker = Tracker.open(flags.tracking, "finetune")
        tracked_as = (f"tune {transfer.origin}", flags.settings(), {"badge": split.badge, "space": space.name})
        with (
            tracker.run(*tracked_as, continued=notes.content.get("tracked", "")) as tracked,
            cluster.started(flags.threads or cluster.default_workers(resolve_device(flags.device)), flags.address),
            loop.deferred_interrupt() as interrupted,
        ):
            if tracked.id:
                notes.remember("tracked", tracked.id)
            _run(flags, _study(flags, transfer, split, space, recipe, notes, tracked, interrupted), notes, budget)


def _run(flags: Tune, study: Study, notes: Notes, budget: Budget) -> None:
    for result in (*study.finished("search"), *study.finished("final")):
        study.track(result)  # a killed tune may not have come to it
    try:
        _search_and_compare(flags, study, notes, budget)
    except KeyboardInterrupt:
        show.outcome(flags, study, notes.content, "interrupted")
        raise
    except ValueError:
        show.outcome(flags, study, notes.content, "failed")
        raise
    except TimeoutError:
        show.outcome(flags, study, notes.content, "out of time")
        tables.say(f"the budget of {flags.budget} is spent; to continue: {continuing('finetune')}")
    else:
        show.outcome(flags, study, notes.content, "complete")


def _study(
    flags: Tune,
    transfer: Arm,
    split: Split,
    space: Space,
    recipe: Recipe,
    notes: Notes,
    tracked: Run,
    interrupted: Callable[[], bool],
) -> Study:
    """Once Ray runs, since it knows the cluster."""
    device = resolve_device(flags.device)
    workers = cluster.Workers.of(flags.threads, flags.address, device)
    base = flags.context(split)
    return Study(
        name=notes.content["name"],
        arms=(transfer, Arm(name="scratch", spec=transfer.spec)),
        split=split,
        base=base,
        base_recipe=recipe,
        space=space,
        objectives=flags.objective,
        searcher=flags.searcher,
        scheduler=flags.scheduler,
        prior=_prior(flags, transfer, base, recipe, space, notes.content["name"]),
        seed=flags.seed,
        num_workers=workers.number,
        resources=workers.resources,
        shares_disk=flags.address is None,
        machine=Machine(device=device, precision=resolve_precision(flags.precision, device), threads=1),
        trial_bytes=workers.bytes_each,
        folder=flags.folder,
        store=results.STORE,
        tracked=tracked,
        interrupted=interrupted,
    )


def _prior(flags: Tune, arm: Arm, base: Context, recipe: Recipe, space: Space, own: str) -> Sequence[RunResult]:
    if not flags.warm_start:
        return ()
    return searchspace.earlier(results.read(results.STORE), arm, base, recipe, space, flags.seed, own)


def _check_search(flags: Tune, space: Space) -> None:
    """What would otherwise be found out after the start.

    Raises:
        ValueError: a grid without end, nothing that population-based training could change, or a scheduler that needs
            a disk that all nodes share.
    """
    from finetune.schedulers import NEED_STATES, SCHEDULERS, Race

    if flags.searcher == "grid":
        for pretrained in (True, False):
            space.grid(searchspace.GRID_POINTS, {"pretrained": pretrained})
        if flags.scheduler == "pbt":
            raise ValueError("--scheduler pbt needs a population, which a grid is not: take --searcher random or tpe")
    if flags.address is not None and flags.scheduler in NEED_STATES:
        raise ValueError(
            f"--scheduler {flags.scheduler} hands weights over through a disk that all nodes share: with --address, "
            "choose asha, fifo or median"
        )
    SCHEDULERS[flags.scheduler](Race(num_epochs=1, grace_epochs=1, space=space))


def _search_and_compare(flags: Tune, study: Study, notes: Notes, budget: Budget) -> None:
    from finetune.finals import final_runs, run_finals

    if "finals" not in notes.content:
        _plan_and_search(flags, study, notes, budget)
    finals = Finals(**notes.content["finals"])
    best = {arm: Recipe(**recipe) for arm, recipe in notes.content["best"].items()}
    tables.say(f"comparison: {finals}, {tables.duration(max(0.0, budget.left_s))} left")
    runs = final_runs(study, finals, best)
    run_finals(study, finals, runs, study.split.load_test(), budget.deadline)
    tested = [result for result in study.finished("final") if result.part == "test"]
    if len(tested) < len(runs):
        raise ValueError(f"{len(runs) - len(tested)} of the {len(runs)} compared runs failed: see what they said")


def _plan_and_search(flags: Tune, study: Study, notes: Notes, budget: Budget) -> None:
    """Ends with the best recipes and the comparison's plan in the notes.

    Raises:
        TimeoutError: the search has left no time.
    """
    from finetune.schedulers import SPENDS
    from finetune.tune import measure_speed, search

    num_arms, extra = len(study.arms), _extra_epochs(study, study.base_recipe)
    if flags.scratch_plus and not extra:
        raise ValueError(f"--scratch-plus: {study.arms[0].origin} does not say what its pretraining has cost")

    def measured() -> Work:
        study.stop_if_interrupted()
        return Work(
            num_train=len(study.split.train),
            num_validation=len(study.split.validation),
            beats_per_s=measure_speed(study),
            num_workers=study.num_workers,
        )

    def finals(left_s: float, work: Work, extra: float) -> Finals:
        return plan_finals(left_s, work, num_arms, flags.seeds, flags.epochs, extra, flags.scratch_plus)

    if "search" not in notes.content:
        work = measured()
        plan = plan_search(budget.left_s, work, num_arms, flags.trials, SPENDS[study.scheduler])
        notes.remember("search", asdict(plan))
        left_s = after_search_s(budget.left_s, num_arms)
        show.plan(study, work, plan, finals(left_s, work, extra), budget.seconds, extra)
    best = search(study, Search(**notes.content["search"]), budget.left_s * SEARCH_AT_MOST)
    if budget.left_s <= 0:
        raise TimeoutError
    notes.content["best"] = {arm: asdict(recipe) for arm, recipe in best.items()}
    work = measured()  # what else the machine does may have changed
    extra = _extra_epochs(study, best["scratch"])
    notes.remember("finals", asdict(finals(budget.left_s, work, extra)))


def _extra_epochs(study: Study, recipe: Recipe) -> float:
    """What the pretraining has cost, in epochs of training the same encoder from scratch by a recipe whose balance may
    add or drop beats: counted multiply-adds."""
    checkpoint = study.arms[0].checkpoint
    spent = float(checkpoint.cost.get("multiply_adds", 0.0)) if checkpoint else 0.0
    model = study.arms[1].build("linear", study.split.train.num_classes, study.seed)
    signal, target = study.split.train.signal[:COUNTED], study.split.train.labels[:COUNTED]
    a_beat = count(lambda: functional.cross_entropy(model(signal), target).backward()) / len(signal)
    num_beats = len(BALANCES[recipe.balance](study.split.train, study.seed).beats)
    return spent / (a_beat * num_beats)
