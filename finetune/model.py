"""A fine-tuned classifier as its file holds it, ready to be asked about beats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from data.beats import Beats
from experiments import calibration
from experiments.thresholds import Thresholds
from finetune.intervals import COLUMNS
from finetune.trainee import predict
from models.checkpoint import Checkpoint, load, restore_classifier
from models.heads import Classifier


@dataclass(frozen=True, kw_only=True)
class Model:
    """A classifier in eval mode, and what its file tells of it."""

    classifier: Classifier
    checkpoint: Checkpoint
    origin: str
    """The file."""

    @classmethod
    def load(cls, file: str, device: str = "cpu") -> Self:
        """
        Raises:
            ValueError: a missing or damaged file, an encoder without a head, or a file that does not say what beats
                the classifier takes.
        """
        checkpoint = load(Path(file))
        classifier = restore_classifier(checkpoint, file)
        missing = [name for name in ("rate_hz", "num_leads", "num_samples") if name not in checkpoint.preprocessing]
        if missing or checkpoint.options.get("intervals") not in COLUMNS:
            raise ValueError(f"{file} does not say which beats it takes ({', '.join(missing) or 'intervals'} missing)")
        return cls(classifier=classifier.to(device).eval(), checkpoint=checkpoint, origin=file)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.checkpoint.classes

    @property
    def rate_hz(self) -> float:
        return float(self.checkpoint.preprocessing["rate_hz"])

    @property
    def num_leads(self) -> int:
        return int(self.checkpoint.preprocessing["num_leads"])

    @property
    def num_samples(self) -> int:
        return int(self.checkpoint.preprocessing["num_samples"])

    @property
    def intervals(self) -> str:
        """Which RR ratios join the features: none, causal or all."""
        return str(self.checkpoint.options["intervals"])

    @property
    def temperature(self) -> float:
        """That divides the logits; 1 in a file that has none."""
        return float(self.checkpoint.options.get("temperature", 1.0))

    @property
    def thresholds(self) -> Thresholds | None:
        """Of the alarms, from validation data; None in a file that has none.

        Raises:
            ValueError: something else is in their place.
        """
        content: Any = self.checkpoint.options.get("thresholds")
        return None if content is None else Thresholds.from_json(content)

    @property
    def made_from(self) -> dict[str, str]:
        """Data set, protocol and badge; "unknown" where the file does not say."""
        return {name: str(self.checkpoint.options.get(name, "unknown")) for name in ("data", "protocol", "badge")}

    def check(self, beats: Beats) -> None:
        """
        Raises:
            ValueError: the beats have another rate, length or number of leads than the classifier was made for, or
                lack the RR intervals that it reads.
        """
        takes, given = (self.num_leads, self.num_samples), tuple(beats.signal.shape[1:])
        if takes != given:
            raise ValueError(
                f"{self.origin} takes beats of {takes[0]} leads and {takes[1]} samples; "
                f"{beats.source} has {given[0]} and {given[1]}"
            )
        if beats.rate_hz != self.rate_hz:
            raise ValueError(f"{self.origin} takes beats at {self.rate_hz:g} Hz; {beats.source} has {beats.rate_hz:g}")
        if COLUMNS[self.intervals] and beats.intervals is None:
            raise ValueError(
                f"{self.origin} reads RR intervals ({self.intervals}), which the beats of {beats.source} do not carry; "
                "those cut from records do"
            )

    def check_labels(self, beats: Beats) -> None:
        """
        Raises:
            ValueError: the beats have no labels, or their classes are not those of the classifier.
        """
        if beats.classes != self.classes:
            raise ValueError(
                f"{self.origin} tells {', '.join(self.classes)} apart; {beats.source} has {', '.join(beats.classes)}"
            )
        _ = beats.labels

    def logits(self, beats: Beats) -> NDArray[np.float32]:
        """(num_beats, num_classes)."""
        return predict(self.classifier, beats, self.intervals).numpy()

    def probabilities(self, beats: Beats) -> NDArray[np.float64]:
        """(num_beats, num_classes), of logits divided by the temperature."""
        return calibration.probabilities(self.logits(beats), self.temperature)
