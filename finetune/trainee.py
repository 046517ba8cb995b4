"""A classifier on one split, as the training loop wants it: schedule, rates, loss, activations, the epoch to keep."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data.augment import augment
from data.balance import BALANCES, class_weights
from data.batches import balanced, shuffled
from data.beats import Beats
from data.split import Split
from experiments import loop
from experiments.machine import Machine
from experiments.metrics import confusion_matrix, macro_recall_error, scores
from finetune.activations import Boundary, Shelf, boundary, frozen_steps
from finetune.intervals import beside
from finetune.recipe import Recipe
from finetune.schedules import Timeline
from models import HEAD
from models.heads import Classifier
from models.inference import apply
from models.losses import LossOptions, make_loss
from models.params import make_optimizer, set_rates

AUGMENTED_BY = ("amplitude", "noise", "shift")
WORTH_KEEPING = 1.0
"""Epochs that a phase must last for its activations to be computed once and kept."""


class Epoch(NamedTuple):
    """What validation said after an epoch."""

    number: int
    metrics: Mapping[str, float]
    beats: int
    """Seen since the start, synthetic ones included."""
    kept_confusion: np.ndarray
    """Of the epoch that would be kept if this were the last."""


EpochListener = Callable[[Epoch], None]


def ignore(_epoch: Epoch) -> None:
    pass


def evaluate(model: Classifier, beats: Beats, intervals: str = "none") -> np.ndarray:
    """Confusion matrix (num_classes, num_classes) of the most probable class.

    Args:
        intervals: what the model was trained with: a recipe's, and an option of the model's checkpoint.
    """
    return confusion_of(predict(model, beats, intervals), beats)


def predict(model: Classifier, beats: Beats, intervals: str = "none", at: Boundary | None = None) -> Tensor:
    """Logits (num_beats, num_classes), in float32; from activations of these beats where there are any."""
    ratios = beside(beats, intervals)
    more = () if ratios is None else (ratios,)
    if at is None:
        return apply(model, beats.signal, *more)
    return apply(model, at.validation, *more, call=lambda x, *rest: model.above(at.num_steps, x, *rest))


def confusion_of(logits: Tensor, beats: Beats) -> np.ndarray:
    return confusion_matrix(beats.labels.numpy(), logits.argmax(1).numpy(), beats.num_classes)


class FineTuning:
    """A classifier on one split.

    Keeps the latest epoch whose validation macro recall is within one standard error of the best so far (the rule of
    Breiman et al., Classification and Regression Trees, 1984): with a few rare beats to validate on, a higher figure
    is luck, and the later epoch has the more settled weights.
    """

    def __init__(
        self,
        model: Classifier,
        split: Split,
        recipe: Recipe,
        seed: int,
        machine: Machine,
        on_epoch: EpochListener = ignore,
        shelf: Shelf | None = None,
    ) -> None:
        """
        Args:
            shelf: where activations are shared with other runs; None to keep none and compute every step in full.
        """
        device = machine.device
        self.module, self.recipe, self.seed, self.on_epoch = model.to(device), recipe, seed, on_epoch
        self.machine, self.shelf = machine, shelf
        self.balanced = BALANCES[recipe.balance](split.train, seed)
        beats = self.balanced.beats
        self.signal, self.target = beats.signal.to(device), beats.labels.to(device)
        self.valid_length = beats.valid_length.to(device)
        intervals = beside(beats, recipe.intervals)
        self.intervals = None if intervals is None else intervals.to(device)
        self.criterion = _criterion(beats, recipe, self.balanced.weighted, self.balanced.balanced_batches, device)
        self.validation = split.validation
        model.batchnorm, model.feature_dropout = recipe.batchnorm, recipe.feature_dropout
        self.optimizer = make_optimizer(model, recipe.weight_decay)
        self.timeline = Timeline(recipe, list(model.encoder.stages))
        self._check_something_learns()
        self.anchor = self._anchor() if recipe.l2_sp else []
        self.decays = [group["weight_decay"] for group in self.optimizer.param_groups]
        self.average = MovingAverage(model) if recipe.average else None
        model.train()
        self.phase: int | None = None
        self.boundary: Boundary | None = None
        self.augmented = False
        self.kept: dict[str, Tensor] = {}
        self.kept_confusion = np.zeros((0, 0), np.int64)
        self.best_recall = self.best_error = 0.0
        self.curve: list[dict[str, float]] = []

    def batches(self, epoch: int) -> Sequence[Tensor]:
        seed = loop.mix(self.seed, "epoch", epoch)
        if self.balanced.balanced_batches:
            return balanced(self.balanced.beats.labels, self.recipe.batch_size, seed)
        return shuffled(len(self.signal), self.recipe.batch_size, seed)

    def before_step(self, progress: float) -> None:
        self._follow()
        rate = self.recipe.lr * loop.warm_up_cosine(progress)
        scales = self.timeline.scales(progress)
        rates = {stage: {kind: rate * scale for kind, scale in kinds.items()} for stage, kinds in scales.items()}
        set_rates(self.module, self.optimizer, dict.fromkeys(self.module.stages) | rates)
        if self.phase != self.timeline.at(progress):
            self._enter(self.timeline.at(progress))

    def loss(self, index: Tensor) -> Tensor:
        intervals = None if self.intervals is None else self.intervals[index]
        if self.boundary is None:
            signal = self.signal[index]
            if self.augmented:
                signal = augment(signal, self.valid_length[index], AUGMENTED_BY)
            logits = self.module(signal, intervals)
        else:
            logits = self.module.above(self.boundary.num_steps, self.boundary.train[index], intervals)
        if self.average:
            self.average.is_behind = True
        return self.criterion(logits, self.target[index]) + self._pull()

    def after_epoch(self, epoch: int, loss: float) -> bool:
        number = epoch + 1
        if number % self.recipe.validate_every and number < self.recipe.epochs:
            return False
        self._follow()
        model = self.average.model if self.average else self.module
        confusion = confusion_of(predict(model, self.validation, self.recipe.intervals, self.boundary), self.validation)
        metrics = {"loss": loss, **scores(confusion)}
        self.curve.append(metrics)
        if metrics["macro_recall"] >= self.best_recall:
            self.best_recall, self.best_error = metrics["macro_recall"], float(macro_recall_error(confusion))
        if metrics["macro_recall"] >= self.best_recall - self.best_error:
            self.kept, self.kept_confusion = copy.deepcopy(model.state_dict()), confusion
        self.on_epoch(Epoch(epoch, metrics, number * len(self.signal), self.kept_confusion))
        return False

    def state(self) -> dict[str, Any]:
        return {
            "kept": self.kept,
            "kept_confusion": self.kept_confusion.tolist(),
            "best_recall": self.best_recall,
            "best_error": self.best_error,
            "curve": self.curve,
            "anchor": [start for _, start in self.anchor],
            "average": self.average.state() if self.average else {},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.kept, self.curve = state["kept"], list(state["curve"])
        self.best_recall, self.best_error = state["best_recall"], state["best_error"]
        self.kept_confusion = np.array(state["kept_confusion"], np.int64)
        self.anchor = [(now, start) for (now, _), start in zip(self.anchor, state["anchor"], strict=True)]
        if self.average:
            self.average.restore(state["average"])
        for group, decay in zip(self.optimizer.param_groups, self.decays, strict=True):
            group["weight_decay"] = decay  # this recipe's, where it may differ from the state's

    def _enter(self, number: int) -> None:
        """A phase begins, or goes on after an interruption."""
        self.phase, self.boundary = number, None
        num_steps = frozen_steps(self.module)
        first_learns = next(iter(self.module.encoder.stages)) not in self.module.still
        self.augmented = self.recipe.augment == "always" or (self.recipe.augment == "thawed" and first_learns)
        lasts = (self.timeline.end(number) - self.timeline.starts[number]) * self.recipe.epochs
        if self.shelf is None or not num_steps or self.augmented or lasts < WORTH_KEEPING:
            return
        if self.average and self._has_learned_before(number, num_steps):
            return  # the averaged model's frozen stages still move
        beats = self.balanced.beats, self.validation
        self.boundary = boundary(self.module, num_steps, self.signal, beats, self.machine, self.shelf)

    def _has_learned_before(self, number: int, num_steps: int) -> bool:
        stages = list(self.module.encoder.stages)
        below = set(stages[: stages.index(list(self.module.encoder.steps)[num_steps - 1]) + 1])
        return any(below & set(phase.learns) for phase in self.timeline.phases[:number])

    def _follow(self) -> None:
        """Take the last step's weights into the average."""
        if self.average and self.average.is_behind:
            steps = max(1, round(len(self.signal) / self.recipe.batch_size))
            self.average.update(self.module, self.recipe.average * steps)

    def _anchor(self) -> list[tuple[nn.Parameter, Tensor]]:
        """The encoder's parameters and where they start from; they do not decay."""
        pairs = []
        for group in self.optimizer.param_groups:
            if group["stage"] != HEAD and group["kind"] != "adapter":
                group["weight_decay"] = 0.0
                pairs += [(parameter, parameter.detach().clone()) for parameter in group["params"]]
        return pairs

    def _pull(self) -> Tensor | float:
        """L2-SP (Li et al. 2018, arXiv 1802.01483): half the squared distance from the start, of what learns."""
        learning = [(now, start) for now, start in self.anchor if now.requires_grad]
        if not learning:
            return 0.0
        return self.recipe.l2_sp / 2 * torch.stack([(now - start).square().sum() for now, start in learning]).sum()

    def _check_something_learns(self) -> None:
        """
        Raises:
            ValueError: the schedule means kinds of parameters that the encoder does not have.
        """
        groups = {(group["stage"], group["kind"]) for group in self.optimizer.param_groups}
        meant = {
            (stage, kind) for phase in self.timeline.phases for stage, kinds in phase.learns.items() for kind in kinds
        }
        encoder = {group for group in meant if group[0] != HEAD}
        if encoder and not encoder & groups:
            raise ValueError(
                f"--schedule {self.recipe.schedule}: {self.module.encoder.spec.label} has no such parameters; "
                "nothing of it would learn"
            )


class MovingAverage:
    """The moving average of a model's weights and statistics (Polyak and Juditsky 1992; Izmailov et al. 2018, arXiv
    1803.05407), young weights first: of its first steps it is the plain mean."""

    def __init__(self, model: Classifier) -> None:
        self.model = copy.deepcopy(model)
        self.num_updates = 0
        self.is_behind = False
        """A step was made since the last update."""

    @torch.no_grad()
    def update(self, model: Classifier, half_life_steps: float) -> None:
        self.num_updates, self.is_behind = self.num_updates + 1, False
        share = max(1 / self.num_updates, 1 - 0.5 ** (1 / half_life_steps))
        own, now = self.model.state_dict(), model.state_dict()
        moving = [name for name, tensor in own.items() if tensor.is_floating_point()]
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            [own[name] for name in moving], [now[name] for name in moving], share
        )
        for name in own.keys() - set(moving):
            own[name].copy_(now[name])

    def state(self) -> dict[str, Any]:
        return {"weights": self.model.state_dict(), "num_updates": self.num_updates, "is_behind": self.is_behind}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["weights"])
        self.num_updates, self.is_behind = state["num_updates"], state["is_behind"]


def _criterion(
    beats: Beats, recipe: Recipe, weighted: bool, equal_shares: bool, device: str
) -> Callable[[Tensor, Tensor], Tensor]:
    """The recipe's loss; where batches hold equal shares of the classes, those are the shares that it knows."""
    counts = torch.bincount(beats.labels, minlength=beats.num_classes)
    weights = class_weights(beats.labels, beats.num_classes, recipe.weight_power).to(device) if weighted else None
    if equal_shares:
        counts = (counts > 0).long() * len(beats)
    options = LossOptions(gamma=recipe.gamma, beta=recipe.beta, margin=recipe.margin, tau=recipe.tau)
    return make_loss(recipe.loss, counts.to(device), weights, options)
