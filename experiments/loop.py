"""The one training loop: precision, clipping, resume, NaN guard, progress.

Step k draws everything random from a seed made of (run seed, k), and epoch e shuffles by (run seed, e). So a run that
was killed and resumed needs no generator states and ends with the same bits as one that was not.
"""

import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiments.files import load_tensors, save_tensors
from experiments.machine import Machine, autocast, seed_everything

WARM_UP = 0.05
"""Share of the training over which the learning rate rises from zero; a cosine brings it back."""
REPORT_EVERY_S = 0.5


class Trainee(Protocol):
    """What the loop trains: it owns a model, an optimizer and data, and says what one step and one epoch mean."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def optimizer(self) -> Optimizer: ...

    def batches(self, epoch: int) -> Sequence[Tensor]:
        """Index tensors of one epoch, in the order of its steps: the same for the same epoch, as many for every one."""
        ...

    def before_step(self, progress: float) -> None:
        """Set learning rates and freezing for this share (0 … 1) of the whole training."""
        ...

    def loss(self, index: Tensor) -> Tensor:
        """The loss of the batch that `index` names; runs under autocast where the precision is bf16."""
        ...

    def after_epoch(self, epoch: int, loss: float) -> bool:
        """Evaluate, report, remember; True ends the training early."""
        ...

    def state(self) -> dict[str, Any]:
        """What `after_epoch` has remembered, as tensors and JSON scalars."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a run's numbers besides model and data; a state is only resumed under equal settings."""

    num_epochs: int
    seed: int
    machine: Machine
    clip_norm: float = 1.0
    save_every_s: float = 10.0
    """Seconds between two states to resume from."""
    save_epochs: bool = False
    """Also write a state at the end of each epoch."""
    identity: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    """Whatever else must be equal to resume: task, data fingerprint, architecture, rates …"""

    def compared(self) -> dict[str, Any]:
        """By name, what a run and its resumption have in common."""
        own = {"epochs": self.num_epochs, "seed": self.seed, "clip_norm": self.clip_norm}
        return {**own, **asdict(self.machine), **self.identity}


@dataclass(kw_only=True)
class History:
    """What a run has behind it."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    """Mean loss of each finished epoch."""
    epoch_loss: float = 0.0
    """Sum of the unfinished epoch's losses."""
    beats: int = 0
    seconds: float = 0.0
    stopped: bool = False


class Listener(Protocol):
    """Shows progress, as `experiments.tables.ProgressLine` does."""

    def resumed(self, step: int) -> None: ...

    def update(self, history: History, total_steps: int, loss: float) -> None: ...


Average = Callable[[Sequence[nn.Parameter]], None]


def leave(_parameters: Sequence[nn.Parameter]) -> None:
    """A worker alone has nothing to average."""


def run(
    trainee: Trainee,
    settings: Settings,
    *,
    state_file: Path | None = None,
    resume: bool = False,
    listener: Listener | None = None,
    average: Average = leave,
    saved: Callable[[Path], None] = lambda _path: None,
) -> History:
    """Train to the end, or to an early stop. The last state stays in `state_file`, whether interrupted or not: whoever
    has written the result removes it.

    `average` makes the gradients those of all workers, where a batch is spread over several;
    `saved` is told of each state that was written.

    `resume` without a state (killed before the first was written, or never started) starts from the first step.

    Raises:
        ValueError: `resume` with a state of other settings; a loss that is not finite.
        KeyboardInterrupt: passed on once the state is written.
    """
    history = _restore(trainee, settings, state_file) if resume and state_file else History()
    if resume and listener:
        listener.resumed(history.step)
    with deferred_interrupt() as interrupted:
        _train(trainee, settings, history, state_file, listener, interrupted, average, saved)
    if state_file:
        _save(trainee, settings, history, state_file)
    return history


def _train(
    trainee: Trainee,
    settings: Settings,
    history: History,
    state_file: Path | None,
    listener: Listener | None,
    interrupted: Callable[[], bool],
    average: Average,
    saved: Callable[[Path], None],
) -> None:
    steps_per_epoch = len(trainee.batches(0))
    total_steps = steps_per_epoch * settings.num_epochs
    trained = [parameter for group in trainee.optimizer.param_groups for parameter in group["params"]]
    clock = Clock(save_every_s=settings.save_every_s, report_every_s=REPORT_EVERY_S)
    recent: list[Tensor] = []
    while history.step < total_steps and not history.stopped:
        epoch, first = divmod(history.step, steps_per_epoch)
        batches = trainee.batches(epoch)
        for number in range(first, steps_per_epoch):
            index = batches[number]
            recent.append(_step(trainee, settings, history.step, total_steps, index, trained, average))
            history.step += 1
            history.beats += len(index)
            end_of_epoch = history.step % steps_per_epoch == 0
            if end_of_epoch or interrupted() or clock.time_to_report():
                loss = _settle(history, recent, clock)
                if listener:
                    listener.update(history, total_steps, loss)
            if end_of_epoch:
                history.losses.append(history.epoch_loss / steps_per_epoch)
                history.epoch_loss = 0.0
                history.stopped = trainee.after_epoch(epoch, history.losses[-1])
            due = interrupted() or clock.time_to_save() or (settings.save_epochs and end_of_epoch)
            if state_file and due:
                _settle(history, recent, clock)
                _save(trainee, settings, history, state_file)
                saved(state_file)
            if interrupted():
                raise KeyboardInterrupt
    _settle(history, recent, clock)


def _step(
    trainee: Trainee,
    settings: Settings,
    step: int,
    total_steps: int,
    index: Tensor,
    trained: list[nn.Parameter],
    average: Average,
) -> Tensor:
    seed_everything(mix(settings.seed, "step", step), settings.machine.device)
    trainee.before_step(step / total_steps)
    with autocast(settings.machine.device, settings.machine.precision):
        loss = trainee.loss(index)
    trainee.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average(trained)
    nn.utils.clip_grad_norm_(trained, settings.clip_norm)
    trainee.optimizer.step()
    return loss.detach()


def _settle(history: History, recent: list[Tensor], clock: "Clock") -> float:
    """Move the losses of the last steps into the history, in the order of the steps; their mean."""
    values = torch.stack(recent).tolist() if recent else []
    recent.clear()
    for value in values:
        if not math.isfinite(value):
            raise ValueError(f"the loss became {value} near step {history.step}: lower the learning rate")
        history.epoch_loss += value
    history.seconds += clock.lap()
    return sum(values) / len(values) if values else math.nan


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C waits for a safe point, such as the end of a step: no state is half a step. A second one does not wait."""
    pending = threading.Event()

    def remember(_signal: int, _frame: FrameType | None) -> None:
        if pending.is_set():
            raise KeyboardInterrupt
        pending.set()

    if threading.current_thread() is not threading.main_thread():
        yield pending.is_set
        return
    before = signal.signal(signal.SIGINT, remember)
    try:
        yield pending.is_set
    finally:
        signal.signal(signal.SIGINT, before)


class Clock:
    """Seconds since the last lap, and whether it is time to report or to save."""

    def __init__(self, *, save_every_s: float, report_every_s: float) -> None:
        self.every = {"save": save_every_s, "report": report_every_s}
        self.last = dict.fromkeys(self.every, time.monotonic())
        self.lap_start = time.monotonic()

    def time_to_report(self) -> bool:
        return self._due("report")

    def time_to_save(self) -> bool:
        return self._due("save")

    def lap(self) -> float:
        now = time.monotonic()
        seconds, self.lap_start = now - self.lap_start, now
        return seconds

    def _due(self, what: str) -> bool:
        now = time.monotonic()
        due = now - self.last[what] >= self.every[what]
        if due:
            self.last[what] = now
        return due


def _save(trainee: Trainee, settings: Settings, history: History, path: Path) -> None:
    state = {
        "settings": settings.compared(),
        "history": asdict(history),
        "module": trainee.module.state_dict(),
        "optimizer": trainee.optimizer.state_dict(),
        "trainee": trainee.state(),
    }
    save_tensors(path, state)


def _restore(trainee: Trainee, settings: Settings, path: Path) -> History:
    if not path.exists():
        return History()
    state = load_tensors(path, settings.machine.device)
    for name, now in settings.compared().items():
        was = state["settings"].get(name)
        if was != now:
            raise ValueError(f"{path} was made with other settings: {name} was {was}, is {now}")
    trainee.module.load_state_dict(state["module"])
    trainee.optimizer.load_state_dict(state["optimizer"])
    trainee.restore(state["trainee"])
    return History(**state["history"])


def warm_up_cosine(progress: float) -> float:
    """Scale of the learning rate at this share of the training (Loshchilov & Hutter 2017, arXiv 1608.03983)."""
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def mix(seed: int, purpose: str, number: int) -> int:
    """A seed of its own for each (run seed, purpose, number): 63 bits of a SHA-256."""
    digest = hashlib.sha256(f"{seed} {purpose} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
