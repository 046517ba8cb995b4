"""One `compare` from start to end: groups of checkpoints, runs, tables; resumable at any point."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import data
from data.beats import derive
from data.split import with_fewer_labels
from experiments import cluster, loop, tables
from experiments.cli import RUNS
from experiments.files import write_json
from experiments.machine import Machine, resolve_device, resolve_precision
from experiments.tracking import Run, Tracker
from finetune import groups
from finetune.train import Arm

if TYPE_CHECKING:
    from finetune.cli import Compare
    from finetune.grid import Grid


def run_comparison(flags: Compare) -> None:
    """Fine-tune every checkpoint and its controls, and show; Ctrl-C shows what there is and how to continue.

    Raises:
        ValueError: flags, data or a checkpoint that do not fit, or no run that finished.
        KeyboardInterrupt: passed on after the table.
    """
    arms = [Arm.from_file(file) for file in flags.encoders]
    grouped = groups.group_arms(arms)
    first = flags.load_split(flags.seed)
    for arm in arms:
        arm.check(first, flags.data, flags.recipe)
    for fraction in flags.label_fractions:
        with_fewer_labels(first, fraction)
    for line in (*first.train.notes, *(arm.loaded for arm in arms)):
        tables.say(line)
    device = resolve_device(flags.device)
    machine = Machine(device=device, precision=resolve_precision(flags.precision, device), threads=1)
    settings = flags.settings() | asdict(machine) | {"test": first.badge, "training beats": first.train.fingerprint}
    tracker = Tracker.open(flags.tracking, "finetune")
    with (
        tracker.run(f"compare {flags.data}", settings, {"badge": first.badge}) as tracked,
        cluster.started(flags.threads or cluster.default_workers(device), flags.address),
        loop.deferred_interrupt() as interrupted,
    ):
        from finetune.grid import Grid, run_grid

        workers = cluster.Workers.of(flags.threads, flags.address, device)
        grid = Grid(
            groups=grouped,
            seeds=range(flags.seed, flags.seed + flags.seeds),
            fractions=flags.label_fractions,
            recipe=flags.recipe,
            num_steps=flags.steps,
            context=flags.context(first, comparison=_name(flags, settings)),
            load_split=lambda seed: first if seed == flags.seed else flags.load_split(seed),
            machine=machine,
            num_workers=workers.number,
            resources=workers.resources,
        )
        tables.say(
            f"{grid.num_runs} runs on {grid.num_workers} one-thread workers, {machine.precision} on {machine.device}"
        )
        try:
            run_grid(grid, tracked, interrupted)
        except KeyboardInterrupt:
            _show(flags, grid, tracked, "interrupted")
            raise
        _show(flags, grid, tracked, "complete")


def _name(flags: Compare, settings: dict[str, Any]) -> str:
    """Of the comparison: with `--resume` that of the last one of these settings, whatever its checkpoints and seeds."""
    which = derive("", json.dumps(settings, sort_keys=True))[:12]
    path = RUNS / f"compare_{data.short_name(flags.data)}_{flags.protocol}_{which}.json"
    if flags.resume and path.exists():
        return json.loads(path.read_text())["name"]
    if flags.resume:
        tables.say("no comparison of these settings to continue: starting with the first run")
    name = uuid4().hex[:12]
    write_json(path, {"name": name, "settings": settings})
    return name


def _show(flags: Compare, grid: Grid, tracked: Run, ending: str) -> None:
    """
    Raises:
        ValueError: not a run has finished, although none was interrupted.
    """
    found = [result for result in grid.done() if result.seed in grid.seeds]
    rows = groups.make_rows(grid.groups, grid.fractions, found)
    if not rows:
        if ending == "complete":
            raise ValueError("not a single run has finished: see what they said")
        return
    title = f"Pretrained against scratch on {grid.context.dataset}, {grid.context.protocol}: {grid.recipe}"
    tables.console().print(groups.show(rows, title))
    content = {
        "comparison": grid.context.labels["comparison"],
        "ending": ending,
        "dataset": grid.context.dataset,
        "protocol": grid.context.protocol,
        "badge": grid.context.badge,
        "recipe": asdict(grid.recipe),
        "steps": grid.num_steps,
        "seeds": list(grid.seeds),
        "checkpoints": [
            _about(arm, group.label) for group in grid.groups for arm in group.arms if arm.checkpoint is not None
        ],
        "rows": [row.to_json() for row in rows],
        "chosen": {str(fraction): row.label for fraction, row in groups.chosen(rows).items()},
    }
    flags.write(content)
    tracked.artifact_json("compare.json", content)


def _about(arm: Arm, group: str) -> dict[str, Any]:
    assert arm.checkpoint is not None
    return {
        "file": str(Path(arm.origin)),
        "group": group,
        "weights": arm.encoder_hash,
        "task": arm.checkpoint.task,
        "source": arm.source,
        "architecture": arm.spec.label,
        "pretraining_seed": arm.checkpoint.seed,
        "options": dict(arm.checkpoint.options),
    }
