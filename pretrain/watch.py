"""A run is watched: probes now and then, collapse named while it can be helped, an end when nothing more is learned."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.probe import Probe, Reading
from pretrain.task import PretrainTask

AT_CHANCE = 0.01
"""A loss not further below chance than this share of it (of 1, where chance is below) says that nothing was learned."""
JUDGED_FROM = 0.3
"""Share of the training after which a loss at chance, or an encoder that has not moved, is no longer a beginning."""
RANK_KEPT, SPREAD_KEPT = 0.2, 0.1
"""Shares of the untrained encoder's effective rank and spread, below which an embedding counts as collapsed."""
MOVED = 1e-3
"""Relative change of the weights below which an encoder counts as not trained at all: its features may change
nevertheless, by the running statistics of BatchNorm."""


class Watch:
    """Reads the probes every `every` epochs; says once for each kind of collapse what is wrong and what to change."""

    def __init__(
        self,
        task: PretrainTask,
        probe: Probe,
        *,
        num_epochs: int,
        every: int,
        patience: int,
        batch_size: int,
        say: Callable[[str], None],
    ) -> None:
        """
        Args:
            patience: readings without a better linear probe after which the run ends, its best encoder kept; 0: none.
        """
        self.task, self.probe, self.say = task, probe, say
        self.num_epochs, self.every, self.patience = num_epochs, every, patience
        self.chance = task.chance(batch_size)
        self.untrained = probe.read(probe.features(task.encoder))
        self.untrained_weights = _weights(task.encoder)
        self.readings: dict[int, Reading] = {}
        self.collapse: dict[str, str] = {}
        self.best_epoch, self.best_weights, self.best_collapse = -1, {}, {}

    def after_epoch(self, epoch: int, loss: float) -> Reading | None:
        """The reading of this epoch, where it is one of those that are read."""
        if (epoch + 1) % self.every and epoch + 1 < self.num_epochs:
            return None
        reading = self.probe.read(self.probe.features(self.task.encoder))
        self.readings[epoch] = reading
        found = self.signs(reading, loss, (epoch + 1) / self.num_epochs)
        for kind, words in found.items():
            if kind not in self.collapse:
                self.say(f"warning: {words}")
        self.collapse = found
        if self.patience and (self.best_epoch < 0 or _linear(reading) > _linear(self.readings[self.best_epoch])):
            self.best_epoch, self.best_weights = epoch, copy.deepcopy(self.task.state_dict())
            self.best_collapse = dict(found)
        return reading

    @property
    def exhausted(self) -> bool:
        """Whether the probe has stood still for `patience` readings."""
        since = [epoch for epoch in self.readings if epoch > self.best_epoch]
        return bool(self.patience) and len(since) >= self.patience

    def restore_best(self) -> None:
        """With `patience`: the task as it was when the probe was best, and what was wrong with it then."""
        if self.best_weights:
            self.task.load_state_dict(self.best_weights)
            self.collapse = self.best_collapse

    def signs(self, reading: Reading, loss: float, progress: float) -> dict[str, str]:
        """By kind, what is wrong with the embedding or the loss, and what to change."""
        found = {}
        before, change = self.untrained, f"change: {self.task.remedy}"
        if reading.effective_rank < max(RANK_KEPT * before.effective_rank, 1.05):
            found["rank"] = (
                f"the embedding collapses: it fills {reading.effective_rank:.1f} of {self.task.encoder.dim} directions "
                f"(untrained {before.effective_rank:.1f}); {change}"
            )
        if reading.spread < SPREAD_KEPT * before.spread:
            found["spread"] = (
                f"the embedding collapses: all beats come out nearly the same, spread {reading.spread:.3f} "
                f"(untrained {before.spread:.3f}); {change}"
            )
        if progress < JUDGED_FROM:
            return found
        if self.chance is not None and loss >= self.chance - AT_CHANCE * max(abs(self.chance), 1):
            found["chance"] = f"the loss stays at chance, {loss:.3f} ({self.chance:.3f}): nothing is learned; {change}"
        moved = (_weights(self.task.encoder) - self.untrained_weights).norm() / self.untrained_weights.norm()
        if moved < MOVED:
            found["still"] = f"the encoder has not moved ({moved:.1e} of its weights): change: a higher --lr"
        return found

    def state(self) -> dict[str, Any]:
        return {
            "readings": {str(epoch): asdict(reading) for epoch, reading in self.readings.items()},
            "collapse": dict(self.collapse),
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
            "best_collapse": dict(self.best_collapse),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.readings = {int(epoch): Reading(**reading) for epoch, reading in state["readings"].items()}
        self.collapse = dict(state["collapse"])
        self.best_epoch, self.best_weights = state["best_epoch"], state["best_weights"]
        self.best_collapse = dict(state["best_collapse"])


def _weights(encoder: nn.Module) -> Tensor:
    """Every parameter, as one vector on the CPU."""
    return torch.cat([parameter.detach().flatten().cpu() for parameter in encoder.parameters()])


def _linear(reading: Reading) -> float:
    return -math.inf if reading.linear is None else reading.linear
