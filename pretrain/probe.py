"""What an encoder's frozen features say: about arrhythmia, by two probes, and whether they say anything at all."""

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.beats import Beats
from data.split import subset
from models.inference import apply

NUM_FOLDS = 5
NUM_NEIGHBOURS = 20
NEIGHBOURS_AT_ONCE = 1024
SAMPLE, SAMPLE_OF_CLASS = 2048, 64
"""Beats of the probe while a run goes on, and of each class at least where there are as many."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the probes said of an encoder."""

    linear: float | None
    """Macro recall (0 … 1) of a linear classifier on frozen features; None without labelled beats."""
    neighbours: float | None
    """Macro recall of the nearest neighbours' vote."""
    effective_rank: float
    """How many directions the features fill (1 … dim)."""
    spread: float
    """How far the features of different beats lie apart, 0 (all the same) … 1 (every direction)."""


class Probe(NamedTuple):
    """Beats to judge an encoder by: labelled ones of the target's validation part, never test beats."""

    beats: Beats
    seed: int

    def sample(self) -> "Probe":
        """A stratified part, for a look while a run goes on."""
        if self.beats.target is None or len(self.beats) <= SAMPLE:
            return self
        return Probe(subset(self.beats, SAMPLE, self.seed, SAMPLE_OF_CLASS), self.seed)

    def features(self, encoder: nn.Module) -> Tensor:
        """(num_beats, dim)."""
        return apply(encoder, self.beats.signal)

    def read(self, features_ND: Tensor) -> Reading:
        target = self.beats.target
        return Reading(
            linear=None if target is None else linear_recall(features_ND, target, self.seed),
            neighbours=None if target is None else neighbour_recall(features_ND, target),
            effective_rank=effective_rank(features_ND),
            spread=spread(features_ND),
        )


def linear_recall(features_ND: Tensor, target_N: Tensor, seed: int) -> float:
    """Macro recall of balanced logistic regression on standardised features, cross-validated: each beat is judged by a
    classifier that was fitted without its fold."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import recall_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, target = features_ND.numpy(), target_N.numpy()
    classifier = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", solver="newton-cholesky"))
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a class of fewer beats than folds: some are judged by who never saw the class
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        predicted = cross_val_predict(classifier, features, target, cv=folds)
    return float(recall_score(target, predicted, average="macro"))


def neighbour_recall(features_ND: Tensor, target_N: Tensor) -> float:
    """Macro recall of a vote of each beat's nearest others by cosine of standardised features.

    A vote counts one over its class's size, so that a rare class can win (Wu et al. 2018, arXiv 1805.01978, weigh
    their neighbours too, by similarity).
    """
    centred = features_ND - features_ND.mean(0)
    unit = nn.functional.normalize(centred / centred.std(0).clamp(min=1e-6), dim=1)
    size = torch.bincount(target_N).clamp(min=1)
    count = min(NUM_NEIGHBOURS, len(unit) - 1)
    predicted = []
    for rows in torch.arange(len(unit)).split(NEIGHBOURS_AT_ONCE):
        likeness = unit[rows] @ unit.T
        likeness[torch.arange(len(rows)), rows] = -torch.inf
        labels = target_N[likeness.topk(count).indices]
        votes = torch.zeros(len(rows), len(size)).scatter_add_(1, labels, (1 / size)[labels])
        predicted.append(votes.argmax(1))
    right = torch.bincount(target_N[torch.cat(predicted) == target_N], minlength=len(size))
    present = torch.bincount(target_N) > 0
    return float((right / size)[present].mean())


def effective_rank(features_ND: Tensor) -> float:
    """Exponential of the entropy of the singular values of the centred features (Roy and Vetterli 2007, EUSIPCO;
    RankMe, Garrido et al. 2023, arXiv 2210.02885); 1 if they lie on a line or in a point."""
    values = torch.linalg.svdvals(features_ND - features_ND.mean(0))
    share = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(share).sum().exp())


def spread(features_ND: Tensor) -> float:
    """Mean standard deviation of unit-length feature vectors, times √dim (Chen and He 2021, arXiv 2011.10566)."""
    unit = nn.functional.normalize(features_ND, dim=1)
    return float(unit.std(0).mean() * unit.shape[1] ** 0.5)
