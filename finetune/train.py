"""One fine-tuning run: encoder + head on a split → the kept epoch's classifier and its RunResult."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

import models
from data import OF_TRAINING, may_hold_test_beats
from data.augment import augment
from data.balance import BALANCES, Counts
from data.batches import balanced, shuffled
from data.beats import Beats
from data.split import Split
from experiments import loop
from experiments.machine import Machine, seed_everything
from experiments.metrics import confusion_matrix, macro_recall_error, recall_per_class, scores
from experiments.results import Part, RunResult, versions
from finetune import schedules
from finetune.intervals import COLUMNS, beside
from finetune.recipe import Recipe
from models.checkpoint import Checkpoint, attach, load, weights_of
from models.encoder import EncoderSpec
from models.heads import HEAD, Classifier
from models.inference import apply
from models.losses import weighted_cross_entropy
from models.params import count_parameters, make_optimizer, set_rates

AUGMENTED_BY = ("amplitude", "noise", "shift")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What a run starts from."""

    name: str
    spec: EncoderSpec
    checkpoint: Checkpoint | None = None
    origin: str = ""
    loaded: str = ""
    """How much of the encoder came from the checkpoint."""

    @classmethod
    def from_file(cls, file: str) -> Arm:
        """Transfer from a pretrained encoder.

        Raises:
            ValueError: a missing or damaged file, or one of a whole classifier.
        """
        checkpoint = load(Path(file))
        if checkpoint.head is not None:
            raise ValueError(f"{file} is a whole classifier; a pretrained encoder is needed")
        _, loaded = attach(checkpoint, file)
        arm = cls(name="transfer", spec=checkpoint.spec, checkpoint=checkpoint, origin=file)
        return replace(arm, loaded=f"{file}: {checkpoint.task} on {arm.source}; loaded {loaded}")

    @property
    def encoder_hash(self) -> str | None:
        return None if self.checkpoint is None else self.checkpoint.weights_hash

    @property
    def source(self) -> str | None:
        """What the encoder was pretrained on, unlabelled beats of a target included."""
        return None if self.checkpoint is None else self.checkpoint.source

    def check(self, split: Split, dataset: str, intervals: str = "none") -> None:
        """
        Raises:
            ValueError: the encoder takes beats of another shape, the beats lack the intervals asked for, or beats that
                the encoder was pretrained on may be test beats here.
        """
        beats, options = split.train, {} if self.checkpoint is None else self.checkpoint.options
        beside(beats, intervals)
        protocol = str(options.get("protocol"))
        for source in filter(None, str(options.get("data", "")).split(",")):
            if may_hold_test_beats(source, protocol, dataset, split.protocol):
                raise ValueError(
                    f"{self.origin} was pretrained on {source}, which may hold test beats of {dataset} by "
                    f"{split.protocol}: pretrain it on other beats, or on {dataset}{OF_TRAINING} with --protocol "
                    f"{split.protocol}"
                )
        takes, given = (self.spec.num_leads, self.spec.num_samples), tuple(beats.signal.shape[1:])
        if takes != given:
            raise ValueError(
                f"{self.origin or self.spec.name} takes beats of {takes[0]} leads and {takes[1]} samples; "
                f"{beats.source} has {given[0]} and {given[1]}"
            )

    def build(self, head: str, num_classes: int, seed: int, num_intervals: int = 0) -> Classifier:
        """The same seed gives every arm the same head, whatever its encoder."""
        seed_everything(loop.mix(seed, "weights", 0), "cpu")
        encoder = models.build(self.spec)
        if self.checkpoint is not None:
            encoder, _ = attach(self.checkpoint, self.origin)
        seed_everything(loop.mix(seed, "head", 0), "cpu")
        return Classifier(encoder, head, num_classes, num_intervals)


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


class FineTuning:
    """A classifier on one split, as the loop wants it.

    Keeps the latest epoch whose validation macro recall is within one standard error of the best so far (the rule of
    Breiman et al., Classification and Regression Trees, 1984): with a few rare beats to validate on, a higher figure
    is luck, and the later epoch has the more settled weights.
    """

    def __init__(
        self, model: Classifier, split: Split, recipe: Recipe, seed: int, device: str, on_epoch: EpochListener
    ) -> None:
        self.module, self.recipe, self.seed, self.on_epoch = model.to(device), recipe, seed, on_epoch
        self.balanced = BALANCES[recipe.balance](split.train, seed)
        beats, weights = self.balanced.beats, self.balanced.class_weights
        self.signal, self.target = beats.signal.to(device), beats.labels.to(device)
        self.valid_length = beats.valid_length.to(device)
        intervals = beside(beats, recipe.intervals)
        self.intervals = None if intervals is None else intervals.to(device)
        self.class_weights = None if weights is None else weights.to(device)
        self.validation = split.validation
        self.optimizer = make_optimizer(model, recipe.weight_decay)
        self.stages = tuple(model.encoder.stages)
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
        scales = schedules.scales(self.recipe.schedule, progress, self.stages, self.recipe.ratio)
        rate = self.recipe.lr * loop.warm_up_cosine(progress)
        rates = {stage: None if scale is None else rate * scale for stage, scale in scales.items()}
        set_rates(self.module, self.optimizer, rates | {HEAD: rate})

    def loss(self, index: Tensor) -> Tensor:
        signal = self.signal[index]
        if self.recipe.augment:
            signal = augment(signal, self.valid_length[index], AUGMENTED_BY)
        intervals = None if self.intervals is None else self.intervals[index]
        return weighted_cross_entropy(self.module(signal, intervals), self.target[index], self.class_weights)

    def after_epoch(self, epoch: int, loss: float) -> bool:
        number = epoch + 1
        if number % self.recipe.validate_every and number < self.recipe.epochs:
            return False
        confusion = evaluate(self.module, self.validation, self.recipe.intervals)
        metrics = {"loss": loss, **scores(confusion)}
        self.curve.append(metrics)
        if metrics["macro_recall"] >= self.best_recall:
            self.best_recall, self.best_error = metrics["macro_recall"], float(macro_recall_error(confusion))
        if metrics["macro_recall"] >= self.best_recall - self.best_error:
            self.kept, self.kept_confusion = copy.deepcopy(self.module.state_dict()), confusion
        self.on_epoch(Epoch(epoch, metrics, number * len(self.signal), self.kept_confusion))
        return False

    def state(self) -> dict[str, Any]:
        return {
            "kept": self.kept,
            "kept_confusion": self.kept_confusion.tolist(),
            "best_recall": self.best_recall,
            "best_error": self.best_error,
            "curve": self.curve,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.kept, self.curve = state["kept"], list(state["curve"])
        self.best_recall, self.best_error = state["best_recall"], state["best_error"]
        self.kept_confusion = np.array(state["kept_confusion"], np.int64)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every result of a command shares."""

    dataset: str
    protocol: str
    badge: str
    classes: tuple[str, ...]
    commit: str | None = None
    labels: Mapping[str, str | int | float] = field(default_factory=dict)
    """Whatever else a result's `config` should say, such as the study it belongs to."""

    def result(
        self, arm: Arm, recipe: Recipe, seed: int, part: Part, confusion: np.ndarray, cost: Mapping[str, float]
    ) -> RunResult:
        recalls = recall_per_class(confusion)
        per_class = {f"recall_{name}": float(recall) for name, recall in zip(self.classes, recalls, strict=True)}
        return RunResult(
            arm=arm.name,
            encoder=arm.encoder_hash,
            source=arm.source,
            dataset=self.dataset,
            config={**asdict(recipe), "arch": arm.spec.label, **self.labels},
            seed=seed,
            protocol=self.protocol,
            badge=self.badge,
            part=part,
            metrics=scores(confusion) | per_class,
            confusion=confusion.tolist(),
            classes=list(self.classes),
            cost=dict(cost),
            commit=self.commit,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The classifier of the kept epoch, and what validation said of it."""

    model: Classifier
    validation: RunResult
    curve: list[dict[str, float]]
    counts: Counts
    """Training beats of each class before and after the balance."""


def evaluate(model: Classifier, beats: Beats, intervals: str = "none") -> np.ndarray:
    """Confusion matrix (num_classes, num_classes) of the most probable class.

    Args:
        intervals: what the model was trained with: a recipe's, and an option of the model's checkpoint.
    """
    ratios = beside(beats, intervals)
    logits = apply(model, beats.signal) if ratios is None else apply(model, beats.signal, ratios)
    return confusion_matrix(beats.labels.numpy(), logits.argmax(1).numpy(), beats.num_classes)


def train(
    arm: Arm,
    split: Split,
    recipe: Recipe,
    seed: int,
    context: Context,
    machine: Machine,
    *,
    state_file: Path | None = None,
    resume: bool = False,
    listener: loop.Listener | None = None,
    on_epoch: EpochListener = ignore,
) -> Trained:
    """Fine-tune `arm` by `recipe`; nothing of the test part is read.

    Raises:
        ValueError: a recipe, a checkpoint or a state that does not fit; a loss that is not finite.
    """
    recipe.check()
    arm.check(split, context.dataset, recipe.intervals)
    model = arm.build(recipe.head, split.train.num_classes, seed, len(COLUMNS[recipe.intervals]))
    tuning = FineTuning(model, split, recipe, seed, machine.device, on_epoch)
    settings = loop.Settings(
        num_epochs=recipe.epochs,
        seed=seed,
        machine=machine,
        identity={
            **asdict(recipe),
            "arch": str(arm.spec),
            "encoder": arm.encoder_hash or "scratch",
            "data": split.train.fingerprint,
        },
    )
    history = loop.run(tuning, settings, state_file=state_file, resume=resume, listener=listener)
    model.load_state_dict(tuning.kept)
    cost = {"beats": history.beats, "seconds": history.seconds, "parameters": count_parameters(model)}
    result = context.result(arm, recipe, seed, "validation", tuning.kept_confusion, cost)
    return Trained(model=model, validation=result, curve=tuning.curve, counts=tuning.balanced.counts)


def to_checkpoint(trained: Trained, train_part: Beats) -> Checkpoint:
    """The whole classifier as a file can hold it."""
    result, model = trained.validation, trained.model
    return Checkpoint(
        spec=model.encoder.spec,
        weights=weights_of(model),
        task=f"fine-tuned on {result.dataset} ({result.arm})",
        source=train_part.source,
        fingerprint=train_part.fingerprint,
        preprocessing=train_part.preprocessing,
        seed=result.seed,
        options=result.config,
        head=str(result.config["head"]),
        classes=train_part.classes,
        cost=result.cost,
        metrics={f"validation_{name}": value for name, value in result.metrics.items()},
        commit=result.commit,
        versions=versions(),
    )
