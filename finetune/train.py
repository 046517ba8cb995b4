"""One fine-tuning run: encoder + head on a split → the kept epoch's classifier and its RunResult."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import models
from data import OF_TRAINING, may_hold_test_beats
from data.balance import Counts
from data.split import Split
from experiments import loop
from experiments.calibration import fit_temperature, probabilities
from experiments.machine import Machine, seed_everything
from experiments.metrics import recall_per_class, scores
from experiments.results import Part, RunResult, versions
from experiments.thresholds import Thresholds, fit_thresholds
from finetune.activations import NoShelf, Shelf
from finetune.intervals import COLUMNS, beside
from finetune.recipe import Recipe
from finetune.schedules import Timeline
from finetune.trainee import EpochListener, FineTuning, ignore, predict
from models import adapters
from models.checkpoint import Checkpoint, attach, load, weights_of
from models.encoder import EncoderSpec
from models.heads import Classifier
from models.params import count_parameters

if TYPE_CHECKING:
    from finetune.controls import Control


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
    def architecture(self) -> str:
        return self.spec.label

    @property
    def facts(self) -> dict[str, bool]:
        """What the conditions of a search space may ask of an arm."""
        return {"pretrained": self.checkpoint is not None}

    @property
    def source(self) -> str | None:
        """What the encoder was pretrained on, unlabelled beats of a target included."""
        return None if self.checkpoint is None else self.checkpoint.source

    @property
    def stages(self) -> list[str]:
        """Of its encoder, from input to output."""
        return list(models.build(self.spec).stages)

    def check(self, split: Split, dataset: str, recipe: Recipe | None = None) -> None:
        """
        Raises:
            ValueError: the encoder takes beats of another shape or has not the stages that the recipe names, the beats
                lack the intervals asked for, or beats that the encoder was pretrained on may be test beats here.
        """
        beats, options = split.train, {} if self.checkpoint is None else self.checkpoint.options
        recipe = recipe or Recipe()
        beside(beats, recipe.intervals)
        Timeline(recipe, self.stages)
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

    def build(
        self, head: str, num_classes: int, seed: int, num_intervals: int = 0, adapter_rank: int = 0
    ) -> Classifier:
        """The same seed gives every arm the same head, whatever its encoder.

        Args:
            adapter_rank: of the encoder's low-rank adapters; 0 for none.
        """
        seed_everything(loop.mix(seed, "weights", 0), "cpu")
        encoder = models.build(self.spec)
        if self.checkpoint is not None:
            encoder, _ = attach(self.checkpoint, self.origin)
        if adapter_rank:
            seed_everything(loop.mix(seed, "adapters", 0), "cpu")
            adapters.adapt(encoder, adapter_rank)
        seed_everything(loop.mix(seed, "head", 0), "cpu")
        return Classifier(encoder, head, num_classes, num_intervals)


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
        self,
        arm: Arm | Control,
        recipe: Recipe | None,
        seed: int,
        part: Part,
        confusion: np.ndarray,
        cost: Mapping[str, float],
    ) -> RunResult:
        """
        Args:
            recipe: None of a control, to which none applies.
        """
        recalls = recall_per_class(confusion)
        per_class = {f"recall_{name}": float(recall) for name, recall in zip(self.classes, recalls, strict=True)}
        return RunResult(
            arm=arm.name,
            encoder=arm.encoder_hash,
            source=arm.source,
            dataset=self.dataset,
            config={**(asdict(recipe) if recipe else {}), "arch": arm.architecture, **self.labels},
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
    temperature: float
    """That divides the logits, from validation data."""
    thresholds: Thresholds
    """Of an alarm for each class, for the recipe's recall floor on validation data."""


NO_SHELF = NoShelf()


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
    saved: Callable[[Path], None] | None = None,
    shelf: Shelf | None = NO_SHELF,
    free: Collection[str] = (),
) -> Trained:
    """Fine-tune `arm` by `recipe`; nothing of the test part is read.

    Args:
        saved: told of the state that is then written at the end of each epoch, and of no other.
        shelf: where frozen stages' activations are shared with other runs; None to compute them at every step.
        free: fields of the recipe in which a state to resume may differ.

    Raises:
        ValueError: a recipe, a checkpoint or a state that does not fit; a loss that is not finite.
    """
    recipe.check()
    arm.check(split, context.dataset, recipe)
    num_intervals = len(COLUMNS[recipe.intervals])
    model = arm.build(recipe.head, split.train.num_classes, seed, num_intervals, recipe.adapter_rank)
    tuning = FineTuning(model, split, recipe, seed, machine, on_epoch, shelf)
    settings = loop.Settings(
        num_epochs=recipe.epochs,
        seed=seed,
        machine=machine,
        save_every_s=10.0 if saved is None else float("inf"),
        save_epochs=saved is not None,
        identity={
            **{name: value for name, value in asdict(recipe).items() if name not in free},
            "arch": str(arm.spec),
            "encoder": arm.encoder_hash or "scratch",
            "data": split.train.fingerprint,
        },
    )
    tell = saved or (lambda _state: None)
    history = loop.run(tuning, settings, state_file=state_file, resume=resume, listener=listener, saved=tell)
    model.load_state_dict(tuning.kept)
    adapters.merge(model.encoder)
    logits, target = predict(model, split.validation, recipe.intervals).numpy(), split.validation.labels.numpy()
    temperature = fit_temperature(logits, target)
    thresholds = fit_thresholds(probabilities(logits, temperature), target, recipe.recall_floor)
    cost = {"beats": history.beats, "seconds": history.seconds, "parameters": count_parameters(model)}
    result = context.result(arm, recipe, seed, "validation", tuning.kept_confusion, cost)
    counts = tuning.balanced.counts
    return Trained(
        model=model,
        validation=result,
        curve=tuning.curve,
        counts=counts,
        temperature=temperature,
        thresholds=thresholds,
    )


def to_checkpoint(trained: Trained, split: Split) -> Checkpoint:
    """The whole classifier as a file can hold it."""
    result, model, train_part = trained.validation, trained.model, split.train
    return Checkpoint(
        spec=model.encoder.spec,
        weights=weights_of(model),
        task=f"fine-tuned on {result.dataset} ({result.arm})",
        source=train_part.source,
        fingerprint=train_part.fingerprint,
        preprocessing=train_part.preprocessing,
        seed=result.seed,
        options={
            **result.config,
            "data": result.dataset,
            "protocol": result.protocol,
            "badge": result.badge,
            "pretrained_on": result.source or "nothing",
            "split_seed": split.seed,
            "validated_on": split.validation.fingerprint,
            "temperature": trained.temperature,
            "thresholds": trained.thresholds.to_json(),
        },
        head=str(result.config["head"]),
        classes=train_part.classes,
        cost=result.cost,
        metrics={f"validation_{name}": value for name, value in result.metrics.items()},
        commit=result.commit,
        versions=versions(),
    )


def with_test(checkpoint: Checkpoint, tested: RunResult) -> Checkpoint:
    """The classifier with what the test part said of it."""
    found = {f"test_{name}": value for name, value in tested.metrics.items()}
    return replace(checkpoint, metrics={**checkpoint.metrics, **found})
