"""Tasks × architectures at equal compute, ranked by what a probe says of the encoders: `python -m pretrain compare`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import ray
from rich.table import Table

import models
import pretrain
from experiments import cluster, loop, tables
from experiments.machine import Machine, resolve_device, resolve_precision, resolve_threads
from experiments.metrics import Difference, paired_difference
from experiments.tracking import Run, Tracker
from models.checkpoint import Checkpoint, load, save
from pretrain import sources
from pretrain.train import Material, Voice, prepare, run

if TYPE_CHECKING:
    from pretrain.cli import Compare, Pretrain

READ = ("linear", "neighbours", "effective_rank")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A task and an architecture, over its pretraining seeds."""

    task: str
    architecture: str
    origin: str
    """own, or the library that it is of."""
    num_seeds: int
    linear: float
    """Macro recall of the linear probe, mean over seeds."""
    neighbours: float
    effective_rank: float
    gain: Difference
    """Of the linear probe, to the same encoder untrained, paired by seed."""
    neighbours_gain: Difference
    num_warned: int
    """Runs that ended with a warning: a collapsed embedding, or a loss at chance."""
    epochs: int
    multiply_adds: float
    seconds: float
    source: str


def compare(flags: Compare) -> list[Row]:
    """Pretrain whatever is not there yet, and rank it.

    Raises:
        ValueError: flags or data that do not fit, or a checkpoint of other settings to continue with.
        KeyboardInterrupt: passed on after the table of what there is.
    """
    cells = flags.cells()
    device = resolve_device(flags.device)
    machine = Machine(device=device, precision=resolve_precision(flags.precision, device), threads=1)
    beats = cache(lambda seed: sources.load(replace(flags, seed=seed)).fingerprint)
    done = {cell.out_file: _read(cell, beats(cell.seed)) for cell in cells if flags.resume and cell.out_file.exists()}
    left = [cell for cell in cells if cell.out_file not in done]
    for cell in cells:
        if cell.out_file in done:
            cell.state_file.unlink(missing_ok=True)
    num_workers = flags.threads or cluster.default_workers(device)
    tables.say(
        f"{len(left)} runs of {flags.compute:g} × 10¹² multiply-adds on {num_workers} one-thread workers, "
        f"{len(done)} done before"
    )
    with (
        Tracker.open(flags.tracking, "pretrain").run(f"compare {flags.data}", flags.settings()) as tracked,
        loop.deferred_interrupt() as interrupted,
    ):
        try:
            if left:
                with cluster.started(num_workers):
                    _run_all(left, machine, num_workers, done, tracked, interrupted)
        except KeyboardInterrupt:
            if rows := make_rows(cells, done):
                show(rows, flags)
            raise
        rows = make_rows(cells, done)
        if not rows:
            raise ValueError("not a single run has finished: see what they said")
        show(rows, flags)
        tracked.artifact_json("compare.json", [asdict(row) for row in rows])
    return rows


def _read(cell: Pretrain, beats: str) -> Checkpoint:
    found = load(cell.out_file)
    was, wanted = {**found.options, "beats": found.fingerprint}, {**cell.settings(), "beats": beats}
    for name, value in wanted.items():
        if name != "epochs" and was.get(name) != value:
            raise ValueError(
                f"{cell.out_file} is of other settings: {name} was {was.get(name)}, is {value}; name another "
                "--out folder, or leave --resume out to train it again"
            )
    return found


def _run_all(
    left: Sequence[Pretrain],
    machine: Machine,
    num_workers: int,
    done: dict[Any, Checkpoint],
    tracked: Run,
    interrupted: Any,
) -> None:
    def stop_if_interrupted() -> None:
        if interrupted():
            raise KeyboardInterrupt

    started = _start(left, machine)
    runs = cluster.finished(started, 2 * num_workers, stop_if_interrupted, lambda cell: cell.out_file.stem)
    for number, (cell, checkpoint) in enumerate(runs, start=1):
        save(cell.out_file, checkpoint)
        cell.state_file.unlink(missing_ok=True)
        done[cell.out_file] = checkpoint
        found = checkpoint.metrics
        with tracked.child(cell.out_file.stem, cell.settings(), {"source": checkpoint.source}) as child:
            child.log(found | checkpoint.cost)
        tables.say(
            f"{number}/{len(left)} {cell.task} {cell.arch} seed {cell.seed} · linear probe {found['probe_linear']:.3f} "
            f"(untrained {found['untrained_linear']:.3f}) · {tables.duration(checkpoint.cost['seconds'])}"
            + (" · warning: collapsed or at chance" if found["warnings"] else "")
        )


def _start(left: Sequence[Pretrain], machine: Machine) -> Iterator[tuple[Pretrain, Any]]:
    """A seed's beats are in the object store only as long as its runs need them."""
    for seed in dict.fromkeys(cell.seed for cell in left):
        cells = [cell for cell in left if cell.seed == seed]
        material: dict[bool, Any] = {}
        for cell in cells:
            labels = pretrain.entry(cell.task).labels
            if labels not in material:
                prepared = prepare(cell, "cpu")
                if prepared.probe.beats.target is None:
                    raise ValueError(f"encoders are ranked by a probe, and there is {prepared.probed_on}")
                material[labels] = ray.put(prepared)
            yield cell, _run.remote(cell, material[labels], machine)


@ray.remote(num_cpus=1)
def _run(cell: Pretrain, material: Material, machine: Machine) -> Checkpoint:
    resolve_threads(machine.threads)
    return run(cell, material, machine, Voice(), state_file=cell.state_file).checkpoint


def make_rows(cells: Sequence[Pretrain], done: Mapping[Any, Checkpoint]) -> list[Row]:
    """The best linear probe first; a task and architecture without a finished run is left out."""
    grouped: dict[tuple[str, str], list[Checkpoint]] = {}
    for cell in cells:
        if cell.out_file in done:
            grouped.setdefault((cell.task, cell.arch), []).append(done[cell.out_file])
    rows = [_row(task, arch, found) for (task, arch), found in grouped.items()]
    return sorted(rows, key=lambda row: -row.linear)


def _row(task: str, arch: str, found: Sequence[Checkpoint]) -> Row:
    def each(name: str) -> list[float]:
        return [checkpoint.metrics[name] for checkpoint in found]

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    return Row(
        task=task,
        architecture=arch,
        origin=models.origin(arch),
        num_seeds=len(found),
        linear=mean(each("probe_linear")),
        neighbours=mean(each("probe_neighbours")),
        effective_rank=mean(each("probe_effective_rank")),
        gain=paired_difference(each("probe_linear"), each("untrained_linear")),
        neighbours_gain=paired_difference(each("probe_neighbours"), each("untrained_neighbours")),
        num_warned=sum(checkpoint.metrics["warnings"] > 0 for checkpoint in found),
        epochs=int(found[0].options["epochs"]),
        multiply_adds=mean([checkpoint.cost["multiply_adds"] for checkpoint in found]),
        seconds=mean([checkpoint.cost["seconds"] for checkpoint in found]),
        source=found[0].source,
    )


def show(rows: Sequence[Row], flags: Compare) -> None:
    """Our own architectures and library ones are told apart in a column."""
    table = Table(title=f"Pretrained on {rows[0].source}, ranked by linear probe at equal compute", title_style="bold")
    for header in ("task", "architecture", "origin"):
        table.add_column(header, no_wrap=True)
    for header in ("seeds", "linear", "− untrained", "95 % interval", "nearest", "− untrained "):
        table.add_column(header, justify="right", no_wrap=True)
    for header in ("rank", "warned", "epochs", "10¹² m-adds", "s a run"):
        table.add_column(header, justify="right")
    for number, row in enumerate(rows):
        table.add_row(
            f"[bold]{row.task} ★[/bold]" if number == 0 else row.task,
            row.architecture,
            row.origin,
            str(row.num_seeds),
            f"{row.linear:.3f}",
            tables.signed(row.gain.mean),
            tables.interval(row.gain.low, row.gain.high, sign=True),
            f"{row.neighbours:.3f}",
            tables.signed(row.neighbours_gain.mean),
            f"{row.effective_rank:.1f}",
            f"{row.num_warned}/{row.num_seeds}",
            str(row.epochs),
            f"{row.multiply_adds / 1e12:.2f}",
            f"{row.seconds:.0f}",
        )
    shown = tables.console()
    shown.print(table)
    tables.say(
        f"linear, nearest: macro recall of the probes of frozen features, on the validation part of the target "
        f"({flags.protocol}); interval by Student's t over pretraining seeds; rank: effective rank of the features; "
        "m-adds: multiply-adds of the training. Whether pretraining helps, `python -m finetune compare` says."
    )
