"""One pretraining run: beats → task → encoder checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import AdamW

import data
import models
import pretrain
from data.batches import Feed, Resident
from data.beats import Beats
from data.known import CLASSES, FILES
from data.published import MissingFile, find
from experiments import loop
from experiments.machine import Machine, seed_everything
from experiments.results import git_commit, versions
from experiments.tables import ProgressLine, say
from experiments.tracking import Tracker
from models.checkpoint import Checkpoint, save, weights_of
from models.encoder import Encoder, EncoderSpec
from models.params import count_parameters, decay_groups
from pretrain.probe import probe_recall
from pretrain.task import Batch, PretrainTask

if TYPE_CHECKING:
    from pretrain.cli import Pretrain


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the table after a run shows."""

    task: str
    architecture: str
    source: str
    parameters: int
    losses: list[float]
    probe: float | None
    untrained_probe: float | None
    probed_on: str
    beats: int
    seconds: float
    file: str
    weights_hash: str


class Pretraining:
    """A task on the beats of one source, as the loop wants it."""

    def __init__(
        self, task: PretrainTask, feed: Feed, flags: Pretrain, device: str, on_epoch: Callable[[int, float], None]
    ) -> None:
        self.module: nn.Module = task.to(device)
        self.task, self.feed, self.flags, self.device, self.on_epoch = task, feed, flags, device, on_epoch
        self.optimizer = AdamW(decay_groups(task, flags.weight_decay), lr=0.0, fused=True)

    def batches(self, epoch: int) -> Sequence[Tensor]:
        return self.feed.batches(self.flags.batch_size, loop.mix(self.flags.seed, "epoch", epoch))

    def before_step(self, progress: float) -> None:
        rate = self.flags.lr * loop.warm_up_cosine(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def loss(self, index: Tensor) -> Tensor:
        signal, valid_length, target = self.feed.take(index)
        on_device = None if target is None else target.to(self.device)
        return self.task.loss(Batch(signal.to(self.device), valid_length.to(self.device), on_device))

    def after_epoch(self, epoch: int, loss: float) -> bool:
        self.on_epoch(epoch, loss)
        return False

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        del state


class Probe:
    """The linear probe on the target's labelled validation part; left out where those files are missing."""

    def __init__(self, flags: Pretrain) -> None:
        self.seed, self.beats = flags.seed, None
        name = pretrain.probed_on(flags.data)
        try:
            self.beats = data.load_split(name, "beat-random", flags.data_folder, flags.seed).validation
            self.where = f"{self.beats.source}, validation part"
        except MissingFile as error:
            self.where = f"no probe: {error}"

    def recall(self, encoder: Encoder) -> float | None:
        return None if self.beats is None else probe_recall(encoder, self.beats, self.seed)


def pretrain_encoder(flags: Pretrain) -> Outcome:
    """Train, probe and save an encoder as `flags` say.

    Raises:
        ValueError: flags, data or a state to resume that do not fit.
        KeyboardInterrupt: passed on after the state is written; `--resume` continues.
    """
    start = time.monotonic()
    machine = Machine.resolve(flags.device, flags.precision, flags.threads)
    make_task = pretrain.task_class(flags.task)
    feed = open_feed(flags, machine.device)
    beats = feed.about
    for note in beats.notes:
        say(note)
    seed_everything(loop.mix(flags.seed, "weights", 0), machine.device)
    encoder = models.build(EncoderSpec(name=flags.arch, num_samples=beats.signal.shape[-1]))
    task = make_task(encoder, flags.objective(beats.num_classes))
    settings = loop.Settings(
        num_epochs=flags.epochs,
        seed=flags.seed,
        machine=machine,
        identity={**flags.settings(), "source": beats.fingerprint},
    )
    probe = Probe(flags)
    untrained = probe.recall(encoder)
    with Tracker.open(flags.tracking, "pretrain").run(
        flags.out_file.stem, params=flags.settings(), tags={"source": beats.source}
    ) as tracked:
        trainee = Pretraining(task, feed, flags, machine.device, lambda epoch, loss: tracked.log({"loss": loss}, epoch))
        history = _train(flags, trainee, settings)
        weights_hash = _save(flags, encoder, beats, history, settings)
        outcome = Outcome(
            task=flags.task,
            architecture=flags.arch,
            source=beats.source,
            parameters=count_parameters(encoder),
            losses=history.losses,
            probe=probe.recall(encoder),
            untrained_probe=untrained,
            probed_on=probe.where,
            beats=history.beats,
            seconds=time.monotonic() - start,
            file=str(flags.out_file),
            weights_hash=weights_hash,
        )
        tracked.log({"probe_macro_recall": outcome.probe or math.nan, "untrained_probe": untrained or math.nan}, None)
    return outcome


def open_feed(flags: Pretrain, device: str) -> Feed:
    """The source's training beats: in memory, or with `stream` from their file.

    Raises:
        ValueError: beats that cannot be read, or that are in no file to stream from.
    """
    if not flags.stream:
        return Resident(data.load(flags.data, "train", flags.data_folder), device)
    from data.stream import Stream

    if flags.data in FILES:
        return Stream(find(flags.data, "train", flags.data_folder), whole=True, classes=CLASSES[flags.data])
    prefix, _, path = flags.data.partition(":")
    if prefix != "parquet":
        raise ValueError(f"--stream reads {', '.join(FILES)} or parquet:FILE, not {flags.data}")
    return Stream(Path(path), whole=False)


def _train(flags: Pretrain, trainee: Pretraining, settings: loop.Settings) -> loop.History:
    with ProgressLine(f"{flags.task} {flags.arch}", settings.num_epochs) as listener:
        return loop.run(trainee, settings, state_file=flags.state_file, resume=flags.resume, listener=listener)


def _save(flags: Pretrain, encoder: Encoder, beats: Beats, history: loop.History, settings: loop.Settings) -> str:
    checkpoint = Checkpoint(
        spec=encoder.spec,
        weights=weights_of(encoder),
        task=flags.task,
        source=beats.source,
        fingerprint=beats.fingerprint,
        preprocessing=beats.preprocessing,
        options=flags.settings(),
        seed=flags.seed,
        cost={"beats": history.beats, "seconds": history.seconds},
        metrics={"loss": history.losses[-1]},
        commit=git_commit(),
        versions=versions() | {name: str(value) for name, value in asdict(settings.machine).items()},
    )
    save(flags.out_file, checkpoint)
    return checkpoint.weights_hash
