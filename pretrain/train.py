"""One pretraining run: beats → task → encoder checkpoint."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

import data
import models
import pretrain
from data.batches import Feed
from data.known import MissingFile
from experiments import loop
from experiments.machine import Machine, seed_everything
from experiments.results import git_commit, versions
from experiments.tables import ProgressLine, say
from experiments.tracking import Tracker
from models.checkpoint import Checkpoint, save, weights_of
from models.cost import count
from models.encoder import Encoder
from models.params import count_parameters, decay_groups
from pretrain import sources
from pretrain.probe import Probe, Reading
from pretrain.task import Batch, PretrainTask
from pretrain.team import ALONE, Team
from pretrain.watch import Watch

if TYPE_CHECKING:
    from pretrain.cli import Pretrain

COUNTED_BEATS = 32
"""Beats of the batch by which a task's multiply-adds are counted."""
READINGS = 10
"""Readings of the probe in a run, where the user has not said how many epochs lie between them."""
SAMPLED = 2048
"""Beats by which an embedding is judged where there are no labelled ones."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the table after a run shows."""

    task: str
    architecture: str
    source: str
    parameters: int
    losses: list[float]
    probe: Reading
    untrained: Reading
    readings: list[dict[str, float | None]]
    """After so many epochs, 0: untrained; on a sample of the probe's beats."""
    probed_on: str
    warnings: list[str]
    """What is wrong with the embedding, or the loss, at the end."""
    beats: int
    seconds: float
    multiply_adds: float
    file: str
    weights_hash: str


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a run is made of besides its flags."""

    feed: Feed
    probe: Probe
    probed_on: str


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run has made."""

    task: PretrainTask
    checkpoint: Checkpoint
    outcome: Outcome


def _nothing(*_told: object) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Voice:
    """Where a run tells of itself."""

    log: Callable[[int, Mapping[str, float]], None] = _nothing
    """Metrics of an epoch."""
    say: Callable[[str], None] = say
    progress: Callable[[str, int], AbstractContextManager[loop.Listener]] = ProgressLine
    saved: Callable[[Path], None] = _nothing
    """A state to resume from was written."""


class Pretraining:
    """A task on the beats of its sources, as the loop wants it."""

    def __init__(
        self,
        task: PretrainTask,
        feed: Feed,
        flags: Pretrain,
        device: str,
        *,
        team: Team,
        watch: Watch,
        on_epoch: Callable[[int, Mapping[str, float]], None],
    ) -> None:
        self.module: nn.Module = task.to(device)
        self.task, self.feed, self.flags, self.device = task, feed, flags, device
        self.team, self.watch, self.on_epoch = team, watch, on_epoch
        self.optimizer = AdamW(decay_groups(task, flags.weight_decay), lr=0.0, fused=True)

    def batches(self, epoch: int) -> Sequence[Tensor]:
        return self.feed.batches(self.flags.batch_size, loop.mix(self.flags.seed, "epoch", epoch))

    def before_step(self, progress: float) -> None:
        rate = self.flags.lr * loop.warm_up_cosine(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.task.before_step(progress)

    def loss(self, index: Tensor) -> Tensor:
        views = self.task.views(take(self.feed, index, self.flags, self.device))
        outputs = self.task(*map(self.team.rows, views))
        return self.task.objective([self.team.gather(rows, len(index)) for rows in outputs], views)

    def after_epoch(self, epoch: int, loss: float) -> bool:
        reading = self.watch.after_epoch(epoch, loss)
        self.on_epoch(epoch, {"loss": loss} | (told(reading, "probe_") if reading else {}))
        return self.team.agree(self.watch.exhausted)

    def state(self) -> dict[str, Any]:
        return self.watch.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self.watch.restore(state)


def take(feed: Feed, index: Tensor, flags: Pretrain, device: str) -> Batch:
    """The beats of a step on the device, each with a partner where the views are of patients."""
    partner = _take(feed, feed.partners(index), device) if flags.views == "patient" else None
    return _take(feed, index, device)._replace(partner=partner)


def _take(feed: Feed, index: Tensor, device: str) -> Batch:
    signal, valid_length, *known = feed.take(index)
    target, group = (None if tensor is None else tensor.to(device) for tensor in known)
    return Batch(signal.to(device), valid_length.to(device), target, group)


def told(reading: Reading, prefix: str) -> dict[str, float]:
    """What of a reading is a number, for a tracker."""
    return {f"{prefix}{name}": value for name, value in asdict(reading).items() if value is not None}


def pretrain_encoder(flags: Pretrain) -> Outcome:
    """Train, probe and save an encoder as `flags` say.

    Raises:
        ValueError: flags, data or a state to resume that do not fit.
        KeyboardInterrupt: passed on after the state is written; `--resume` continues.
    """
    machine = Machine.resolve(flags.device, flags.precision, flags.threads)
    on_team = flags.workers > 1 or flags.address is not None
    material = prepare(flags, "cpu" if on_team else machine.device)
    for note in material.feed.about.notes:
        say(note)
    tags = {"source": material.feed.about.source, "task": flags.task, "architecture": flags.arch}
    with Tracker.open(flags.tracking, "pretrain").run(flags.out_file.stem, flags.settings(), tags) as tracked:
        voice = Voice(log=lambda epoch, metrics: tracked.log(metrics, epoch))
        if on_team:
            from pretrain.distributed import run_team

            finished = run_team(flags, material, machine, voice)
        else:
            finished = run(flags, material, machine, voice, state_file=flags.state_file)
        save(flags.out_file, finished.checkpoint)
        flags.state_file.unlink(missing_ok=True)
        outcome = finished.outcome
        tracked.log(told(outcome.probe, "final_probe_") | told(outcome.untrained, "untrained_probe_"))
        if flags.pictures:
            from pretrain import pictures

            batch = take(material.feed, _some(material.feed), flags, "cpu")
            for picture in pictures.write(finished.task, batch, material.probe, outcome, flags.folder):
                tracked.artifact_file(picture)
    return outcome


def prepare(flags: Pretrain, device: str) -> Material:
    """Read the beats to train on, and those of the probe.

    Raises:
        ValueError: a file that is missing or not as it should be; a task that needs labels, and a source without.
    """
    feed = sources.open_feed(flags, device)
    if pretrain.entry(flags.task).labels and feed.about.target is None:
        without = ", ".join(name for name, entry in pretrain.TASKS.items() if not entry.labels)
        raise ValueError(
            f"--task {flags.task} learns from labels, which {feed.about.source} has not got for all its beats: "
            f"choose from {without}"
        )
    if flags.views == "patient":
        feed.partners(torch.arange(1))
    target = sources.probed_on(flags.data)
    try:
        beats = data.load_split(target, flags.protocol, flags.data_folder, flags.seed).validation
        return Material(feed=feed, probe=Probe(beats, flags.seed), probed_on=f"{beats.source}, validation part")
    except MissingFile as error:
        if flags.patience:
            raise ValueError(f"--patience {flags.patience} looks at a probe, and there is none: {error}") from None
        sample = feed.take(_some(feed))
        beats = replace(
            feed.about, signal=sample.signal.cpu(), valid_length=sample.valid_length.cpu(), target=None, group=None
        )
        return Material(feed=feed, probe=Probe(beats, flags.seed), probed_on=f"no probe: {error}")


def _some(feed: Feed) -> Tensor:
    return feed.batches(SAMPLED, 0)[0]


def run(
    flags: Pretrain,
    material: Material,
    machine: Machine,
    voice: Voice,
    *,
    state_file: Path | None = None,
    team: Team = ALONE,
) -> Finished:
    """Train and probe.

    Args:
        voice: where it tells of itself.
        team: this worker's place among several; of theirs, the first one's result counts.

    Raises:
        ValueError: flags or a state to resume that do not fit; a loss that is not finite.
        KeyboardInterrupt: passed on after the state is written.
    """
    start, feed = time.monotonic(), material.feed
    task = make_task(flags, feed, machine.device)
    multiply_adds = multiply_adds_a_beat(task, feed, flags)
    num_beats = sum(map(len, feed.batches(flags.batch_size, 0)))
    if flags.compute is not None:
        flags = replace(flags, epochs=max(1, round(flags.compute * 1e12 / (multiply_adds * num_beats))))
    settings = loop.Settings(
        num_epochs=flags.epochs,
        seed=flags.seed,
        machine=machine,
        save_every_s=flags.save_every,
        identity={**flags.settings(), "source": feed.about.fingerprint, "workers": team.size},
    )
    watch = make_watch(task, material, flags, voice.say)
    untrained = material.probe.read(material.probe.features(task.encoder))
    trainee = Pretraining(task, feed, flags, machine.device, team=team, watch=watch, on_epoch=voice.log)
    with voice.progress(f"{flags.task} {flags.arch}", flags.epochs) as listener:
        history = loop.run(
            trainee,
            settings,
            state_file=state_file,
            resume=flags.resume,
            listener=listener,
            average=team.average,
            saved=voice.saved,
        )
    watch.restore_best()
    probe = material.probe.read(material.probe.features(task.encoder))
    checkpoint = to_checkpoint(flags, task.encoder, feed, history, settings, multiply_adds, watch, probe, untrained)
    return Finished(
        task=task,
        checkpoint=checkpoint,
        outcome=Outcome(
            task=flags.task,
            architecture=flags.arch,
            source=feed.about.source,
            parameters=count_parameters(task.encoder),
            losses=history.losses,
            probe=probe,
            untrained=untrained,
            readings=[
                {"epoch": epoch + 1, **asdict(reading)}
                for epoch, reading in ({-1: watch.untrained} | watch.readings).items()
            ],
            probed_on=material.probed_on,
            warnings=list(watch.collapse.values()),
            beats=history.beats,
            seconds=time.monotonic() - start,
            multiply_adds=checkpoint.cost["multiply_adds"],
            file=str(flags.out_file),
            weights_hash=checkpoint.weights_hash,
        ),
    )


def make_task(flags: Pretrain, feed: Feed, device: str) -> PretrainTask:
    """
    Raises:
        ValueError: an architecture that cannot take these beats or do this task, or too few beats a step.
    """
    about = feed.about
    seed_everything(loop.mix(flags.seed, "weights", 0), device)
    encoder = models.build(models.parse(flags.arch, about.signal.shape[1], about.signal.shape[2]))
    task = pretrain.task_class(flags.task)(encoder, flags.objective(feed))
    smallest, needed = min(map(len, feed.batches(flags.batch_size, 0))), max(task.smallest_batch, flags.workers)
    if smallest < needed:
        raise ValueError(
            f"--task {flags.task} on {flags.workers} workers needs at least {needed} beats in a batch, "
            f"not {smallest}: a larger --batch-size, or more beats"
        )
    return task


def multiply_adds_a_beat(task: PretrainTask, feed: Feed, flags: Pretrain) -> float:
    """Of a training step, forward and backward, in fp32; the task itself is left as it is."""
    trial = copy.deepcopy(task)
    index = feed.batches(flags.batch_size, 0)[0][:COUNTED_BEATS]
    batch = take(feed, index, flags, "cpu")
    return count(lambda: trial.loss(batch).backward()) / len(index)


def make_watch(task: PretrainTask, material: Material, flags: Pretrain, say: Callable[[str], None]) -> Watch:
    return Watch(
        task,
        material.probe.sample(),
        num_epochs=flags.epochs,
        every=flags.probe_every or max(1, math.ceil(flags.epochs / READINGS)),
        patience=flags.patience,
        batch_size=len(material.feed.batches(flags.batch_size, 0)[0]),
        say=say,
    )


def to_checkpoint(
    flags: Pretrain,
    encoder: Encoder,
    feed: Feed,
    history: loop.History,
    settings: loop.Settings,
    multiply_adds: float,
    watch: Watch,
    probe: Reading,
    untrained: Reading,
) -> Checkpoint:
    beats = feed.about
    return Checkpoint(
        spec=encoder.spec,
        weights=weights_of(encoder),
        task=flags.task,
        source=beats.source,
        fingerprint=beats.fingerprint,
        preprocessing=beats.preprocessing,
        options=flags.settings() | {"epochs": flags.epochs},
        seed=flags.seed,
        cost={
            "beats": history.beats,
            "seconds": history.seconds,
            "multiply_adds": multiply_adds * history.beats,
        },
        metrics={"loss": history.losses[-1], **told(probe, "probe_"), **told(untrained, "untrained_")}
        | {"warnings": len(watch.collapse)},
        commit=git_commit(),
        versions=versions() | {name: str(value) for name, value in asdict(settings.machine).items()},
    )
