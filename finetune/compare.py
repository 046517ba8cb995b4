"""One `compare` from start to end: groups of checkpoints, runs, tables, a picture; resumable at any point."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import data
from data.beats import derive
from data.split import Split, with_fewer_labels
from experiments import cluster, loop, tables
from experiments.cli import RUNS
from experiments.files import write_json
from experiments.machine import Machine, resolve_device, resolve_precision
from experiments.tracking import Run, Tracker
from finetune import rows
from finetune.controls import controls_for
from finetune.efficiency import draw_efficiency
from finetune.groups import group_arms
from finetune.train import Arm

if TYPE_CHECKING:
    from finetune.cli import Compare
    from finetune.grid import Grid


def run_comparisons(flags: Compare) -> None:
    """By each protocol, fine-tune every checkpoint and its controls, and show; Ctrl-C shows what there is and how to
    continue.

    Raises:
        ValueError: flags, data or a checkpoint that do not fit, or no run that finished.
        KeyboardInterrupt: passed on after the table.
    """
    arms = [Arm.from_file(file) for file in flags.encoders]
    device = resolve_device(flags.device)
    machine = Machine(device=device, precision=resolve_precision(flags.precision, device), threads=1)
    first = {protocol: _checked(flags, arms, protocol) for protocol in flags.protocol}
    notes = dict.fromkeys(note for split in first.values() for note in split.train.notes)
    for line in (*notes, *(arm.loaded for arm in arms)):
        tables.say(line)
    tracker = Tracker.open(flags.tracking, "finetune")
    content: dict[str, Any] = {"ending": "interrupted", "comparisons": []}
    with (
        cluster.started(flags.threads or cluster.default_workers(device), flags.address),
        loop.deferred_interrupt() as interrupted,
    ):
        try:
            for split in first.values():
                _compare(flags, arms, split, machine, tracker, interrupted, content["comparisons"])
            content["ending"] = "complete"
        finally:
            flags.write(content)


def _checked(flags: Compare, arms: list[Arm], protocol: str) -> Split:
    """The split of the first seed, held against everything before hours are spent.

    Raises:
        ValueError: what does not fit.
    """
    split = flags.load_split(protocol, flags.seed)
    for recipe in flags.recipes():
        for arm in arms:
            arm.check(split, flags.data, recipe)
    for fraction in flags.seeds_of():
        with_fewer_labels(split, fraction)
    group_arms(arms, flags.recipes())
    return split


def _compare(
    flags: Compare,
    arms: list[Arm],
    first: Split,
    machine: Machine,
    tracker: Tracker,
    interrupted: Callable[[], bool],
    shown: list[dict[str, Any]],
) -> None:
    """
    Args:
        shown: to which what the tables show is added, after an interruption too.

    Raises:
        ValueError: not a run has finished, although none was interrupted.
    """
    from finetune.grid import Grid, run_grid

    protocol = first.protocol
    settings = flags.settings(protocol) | asdict(machine)
    settings |= {"test": first.badge, "training beats": first.train.fingerprint}
    notes = _notes(flags, settings, protocol)
    workers = cluster.Workers.of(flags.threads, flags.address, machine.device)
    with tracker.run(f"compare {flags.data} {protocol}", settings, {"badge": first.badge}) as tracked:
        grid = Grid(
            groups=group_arms(arms, flags.recipes(), controls_for(first.train)),
            seeds=flags.seeds_of(),
            num_steps=flags.steps,
            context=flags.context(first, comparison=json.loads(notes.read_text())["name"]),
            load_split=lambda seed: first if seed == flags.seed else flags.load_split(protocol, seed),
            machine=machine,
            num_workers=workers.number,
            resources=workers.resources,
        )
        tables.say(
            f"{protocol}: {grid.num_runs:,} runs on {grid.num_workers} one-thread workers, {machine.precision} on "
            f"{machine.device}"
        )
        try:
            run_grid(grid, tracked, interrupted)
        finally:
            if content := _show(flags, grid, tracked, notes.with_name(notes.stem)):
                shown.append(content)
    if not content:
        raise ValueError("not a single run has finished: see what they said")


def _notes(flags: Compare, settings: dict[str, Any], protocol: str) -> Path:
    """File that names the comparison: with `--resume` the last one of these settings, whatever its checkpoints, seeds,
    shares and variations."""
    which = derive("", json.dumps(settings, sort_keys=True))[:12]
    path = RUNS / f"compare_{data.short_name(flags.data)}_{protocol}_{which}.json"
    if flags.resume and path.exists():
        return path
    if flags.resume:
        tables.say("no comparison of these settings to continue: starting with the first run")
    write_json(path, {"name": uuid4().hex[:12], "settings": settings})
    return path


def _show(flags: Compare, grid: Grid, tracked: Run, pictures: Path) -> dict[str, Any] | None:
    """Tables and picture of what has finished, and the same for --json; None where nothing has."""
    wanted = {(fraction, seed) for fraction, seeds in grid.seeds.items() for seed in seeds}
    found = [result for result in grid.done() if (result.config["label_fraction"], result.seed) in wanted]
    made = rows.make_rows(grid.groups, list(grid.seeds), found)
    if not made:
        return None
    context = grid.context
    architectures = ", ".join(dict.fromkeys(group.architecture for group in grid.groups if group.recipe))
    title = f"Pretrained against scratch on {context.dataset}, {context.protocol}: {architectures}, {flags.recipe}"
    tables.console().print(rows.show(made, title))
    files = draw_efficiency(made, f"{context.dataset}, {context.protocol}", pictures)
    for file in files:
        tracked.artifact_file(file)
    tables.say(f"picture: {files[0]}")
    content = {
        "comparison": context.labels["comparison"],
        "dataset": context.dataset,
        "protocol": context.protocol,
        "badge": context.badge,
        "recipes": [asdict(recipe) for recipe in flags.recipes()],
        "steps": grid.num_steps,
        "seeds": {str(fraction): list(seeds) for fraction, seeds in grid.seeds.items()},
        "checkpoints": [
            _about(arm, group.label)
            for group in grid.groups
            for arm in group.arms
            if isinstance(arm, Arm) and arm.checkpoint is not None
        ],
        "rows": [row.to_json() for row in made],
        "chosen": {str(fraction): row.label for fraction, row in rows.chosen(made).items()},
        "pictures": [str(file) for file in files],
    }
    tracked.artifact_json("compare.json", content)
    return content


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
