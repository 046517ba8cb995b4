"""What an encoder has to beat, without any: the most frequent class, and a logistic regression on a few numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.beats import Beats
from data.intervals import RATIOS
from data.split import Split
from experiments.metrics import confusion_matrix, macro_recall
from experiments.results import RunResult
from finetune.train import Context

EARLY_SAMPLES = 20
"""After the R peak, at 125 Hz: the ventricles' depolarisation and the start of what follows."""
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""scikit-learn's C, the inverse of the L2 penalty, to choose from; of equals the first."""
NUM_FOLDS = 5
MAX_ITERATIONS = 1000

Answer = Callable[[Beats], NDArray[np.int64]]
"""Beats → classes (num_beats,)."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """An arm without an encoder: nothing of it is pretrained, and no recipe applies to it."""

    name: str
    architecture: str = "none"
    encoder_hash: None = None
    source: None = None

    def run(self, split: Split, test: Beats, seed: int, context: Context) -> tuple[RunResult, RunResult]:
        """Fit on the training part; results on the validation and on the test part."""
        start = time.perf_counter()
        answer = CONTROLS[self.name](split.train)
        cost = {"beats": float(len(split.train)), "seconds": time.perf_counter() - start}
        return (
            context.result(self, None, seed, "validation", _confusion(answer, split.validation), cost),
            context.result(self, None, seed, "test", _confusion(answer, test), cost),
        )


def controls_for(beats: Beats) -> list[Control]:
    """`majority`, and `linear` where the beats carry their RR intervals."""
    return [Control(name=name) for name in CONTROLS if name != "linear" or beats.intervals is not None]


def majority(train: Beats) -> Answer:
    """Always the class that is most frequent in training."""
    most_frequent = int(train.labels.bincount().argmax())
    return lambda beats: np.full(len(beats), most_frequent)


def linear(train: Beats) -> Answer:
    """Logistic regression on standardised log RR ratios and early samples, all classes of equal weight.

    The strength of its penalty is that of the highest macro recall on beats of the training part's patients that the
    fit has not seen, each fifth of them held out once; of its beats where patients are unknown. The features are those
    of the inter-patient literature in their simplest form (de Chazal, O'Dwyer and Reilly 2004, IEEE TBME
    51(7):1196–1206); four of the six ratios look ahead in time.

    Raises:
        ValueError: the beats carry no intervals.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def regression(strength: float) -> Any:
        weighted = LogisticRegression(C=strength, class_weight="balanced", max_iter=MAX_ITERATIONS)
        return make_pipeline(StandardScaler(), weighted)

    def held_out_recall(strength: float) -> float:
        predicted: Any = cross_val_predict(regression(strength), x, target, groups=groups, cv=folds)
        return float(macro_recall(confusion_matrix(target, predicted, train.num_classes)))

    x, target = features(train), train.labels.numpy()
    groups = None if train.group is None else train.group.numpy()
    folds = KFold(NUM_FOLDS, shuffle=True, random_state=0)
    if groups is not None:
        folds = GroupKFold(min(NUM_FOLDS, len(np.unique(groups))))
    model = regression(max(STRENGTHS, key=held_out_recall)).fit(x, target)
    return lambda beats: model.predict(features(beats)).astype(np.int64)


def features(beats: Beats) -> NDArray[np.float32]:
    """(num_beats, 6 ratios + `EARLY_SAMPLES` of each lead).

    Raises:
        ValueError: the beats carry no intervals.
    """
    if beats.intervals is None:
        raise ValueError(f"{beats.source}: the beats do not carry the {len(RATIOS)} RR ratios of the linear control")
    early = beats.signal[:, :, 1 : 1 + EARLY_SAMPLES].flatten(1)
    return np.concatenate([beats.intervals.numpy(), early.numpy()], axis=1)


def _confusion(answer: Answer, beats: Beats) -> NDArray[np.int64]:
    return confusion_matrix(beats.labels.numpy(), answer(beats), beats.num_classes)


CONTROLS: dict[str, Callable[[Beats], Answer]] = {"majority": majority, "linear": linear}
"""In the order of a table's rows."""
