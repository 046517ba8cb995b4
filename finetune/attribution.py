"""What moved a classifier's logit for a beat: attributions to its samples and RR ratios, and how far to trust them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from data.beats import Beats
from data.intervals import RATIOS
from finetune.intervals import COLUMNS, beside
from finetune.model import Model
from models.inference import apply

Inputs = tuple[Tensor, ...]
"""Signal (num_beats, num_leads, num_samples); RR ratios (num_beats, num_ratios) where the classifier reads them."""
Forward = Callable[..., Tensor]
"""`Inputs` → logits (num_beats, num_classes)."""

WINDOW = 11
"""Samples that occlusion hides at once, and that a stretch of the table spans: 88 ms at 125 Hz."""
NUM_STEPS = 256
"""Of the integral, by midpoints: where ReLUs bend it, Gauss and Legendre's rule comes no closer."""
BEATS_AT_ONCE = 8
"""Times the steps, so that memory holds 2,048."""
NUM_STRETCHES = 3
REMOVED = 0.1
"""Share of a beat's samples that the deletion test takes away."""
NUM_DRAWS = 20
"""Of as many samples at random."""


def integrated_gradients(forward: Forward, inputs: Inputs, baselines: Inputs, target: Tensor) -> Inputs:
    """Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365): their sum over all inputs is the difference
    between the logit of `target` (num_beats,) and that of the baseline.

    Returns:
        Of the shapes of `inputs`, in units of the logit; zero where no gradient reaches an input.
    """
    from captum.attr import IntegratedGradients

    def reached(*given: Tensor) -> Tensor:
        return forward(*given) + sum(0 * part.sum() for part in given)

    method, found = IntegratedGradients(reached), []
    for rows in torch.arange(len(target)).split(BEATS_AT_ONCE):
        given, flat = (tuple(part[rows] for part in parts) for parts in (inputs, baselines))
        found.append(method.attribute(given, flat, target[rows], n_steps=NUM_STEPS, method="riemann_middle"))
    return tuple(torch.cat(parts).detach() for parts in zip(*found, strict=True))


def occlusion(forward: Forward, inputs: Inputs, baselines: Inputs, target: Tensor) -> Inputs:
    """By how much the logit of `target` (num_beats,) falls when a window of 11 samples, in all leads, or one ratio
    becomes its baseline (Zeiler and Fergus 2014, arXiv 1311.2901); spread evenly over the window's samples and leads.

    Returns:
        Of the shapes of `inputs`, in units of the logit.
    """
    from captum.attr import Occlusion

    signal, *ratios = inputs
    shapes = ((signal.shape[1], WINDOW), *((1,) for _ in ratios))
    with torch.no_grad():
        found = Occlusion(forward).attribute(inputs, shapes, strides=shapes, baselines=baselines, target=target)
    place = torch.arange(signal.shape[2]) // WINDOW
    size = torch.bincount(place)[place] * signal.shape[1]
    return (found[0] / size, *found[1:])


METHODS: dict[str, Callable[[Forward, Inputs, Inputs, Tensor], Inputs]] = {
    "ig": integrated_gradients,
    "occlusion": occlusion,
}
NAMES = {"ig": "integrated gradients", "occlusion": "occlusion"}


def flat_lines(beats: Beats) -> Tensor:
    """Each beat's and lead's own mean over the beat, as a line to the end of the window: the shape of `signal`.

    It has neither a shape nor an end. Zeros would be as far from the signal and, being the padding itself, would give
    the padding, which tells the heart rate, no attribution whatever the classifier makes of it.
    """
    length = beats.valid_length.clamp(min=1)[:, None, None]
    return (beats.signal.sum(2, keepdim=True) / length).expand_as(beats.signal).contiguous()


def inside(beats: Beats) -> Tensor:
    """Whether a sample is before the beat's end, (num_beats, num_samples)."""
    return torch.arange(beats.signal.shape[2]) < beats.valid_length[:, None]


@dataclass(frozen=True, kw_only=True)
class Explained:
    """Beats and what moved the logit of one class for each."""

    beats: Beats
    index: tuple[int, ...]
    """Of each beat in the part that it is of."""
    classes: tuple[str, ...]
    ratios: tuple[str, ...]
    """Names of the RR ratios that the classifier reads."""
    probability: NDArray[np.float64]
    """(num_beats, num_classes)."""
    target: Tensor
    """int64, (num_beats,): the class whose logit is explained."""
    logit: Tensor
    """(num_beats,), of that class."""
    baseline_logit: Tensor
    """(num_beats,), of that class for a flat line and a regular rhythm."""
    ratio_values: Tensor
    """(num_beats, num_ratios), of the RR ratios that the classifier reads."""
    attributions: Mapping[str, Inputs]
    """By method."""

    def gap(self, method: str) -> Tensor:
        """(num_beats,): sum of the attributions minus the difference of the two logits."""
        total = sum(part.flatten(1).sum(1) for part in self.attributions[method])
        return total - (self.logit - self.baseline_logit)

    def per_sample(self, method: str) -> Tensor:
        """(num_beats, num_samples): over all leads."""
        return self.attributions[method][0].sum(1)

    def padding(self, method: str) -> tuple[Tensor, Tensor]:
        """(num_beats,) each: sum of the attributions after the beat's end, and their share of all by absolute value."""
        whole = self.per_sample(method)
        outside = whole.where(~inside(self.beats), 0.0)
        weight = whole.abs().sum(1)
        return outside.sum(1), outside.abs().sum(1) / weight.where(weight > 0, 1.0)


def explain(
    model: Model,
    beats: Beats,
    index: Sequence[int],
    label: int | None = None,
    methods: Sequence[str] = tuple(METHODS),
) -> Explained:
    """Attributions of the beats at `index`, with a flat line and log ratios of 0, a regular rhythm, as baseline.

    Args:
        label: the class to explain; None for the most probable one of each beat.
    """
    chosen = beats.select(torch.tensor(index))
    probability = model.probabilities(chosen)
    target = torch.from_numpy(probability.argmax(1) if label is None else np.full(len(index), label))
    ratios = beside(chosen, model.intervals)
    inputs = (chosen.signal,) if ratios is None else (chosen.signal, ratios)
    baselines = (flat_lines(chosen), *(torch.zeros_like(part) for part in inputs[1:]))
    forward = model.classifier.eval().requires_grad_(False)
    return Explained(
        beats=chosen,
        index=tuple(index),
        classes=model.classes,
        ratios=tuple(RATIOS[column].name for column in COLUMNS[model.intervals]),
        probability=probability,
        target=target,
        logit=_logit(forward, inputs, target),
        baseline_logit=_logit(forward, baselines, target),
        ratio_values=torch.zeros(len(index), 0) if ratios is None else ratios,
        attributions={name: METHODS[name](forward, inputs, baselines, target) for name in methods},
    )


def _logit(classifier: nn.Module, inputs: Inputs, target: Tensor) -> Tensor:
    """(num_beats,), of the class `target`."""
    return apply(classifier, *inputs).gather(1, target[:, None])[:, 0]


def true_class(explained: Explained, row: int) -> str | None:
    target = explained.beats.target
    return None if target is None else explained.classes[int(target[row])]


class Stretch(NamedTuple):
    """A window of a beat, cut at the beat's end."""

    start_ms: float
    end_ms: float
    attribution: float

    def __str__(self) -> str:
        return f"{self.start_ms:.0f}–{self.end_ms:.0f} {self.attribution:+.2f}"


def windows(explained: Explained, method: str, padding: bool = False) -> Tensor:
    """Attribution of each window of `WINDOW` samples, with or without what lies after the beat's end, (num_beats,
    num_windows)."""
    whole = explained.per_sample(method)
    if not padding:
        whole = whole.where(inside(explained.beats), 0.0)
    num_windows = -(-whole.shape[1] // WINDOW)
    padded = functional.pad(whole, (0, num_windows * WINDOW - whole.shape[1]))
    return padded.unflatten(1, (num_windows, WINDOW)).sum(2)


def stretches(explained: Explained, method: str, row: int) -> list[Stretch]:
    """The windows that moved the logit most, up or down, in order of size."""
    values, length = windows(explained, method)[row], int(explained.beats.valid_length[row])
    ms = 1000 / explained.beats.rate_hz
    largest = values.abs().argsort(descending=True, stable=True)[:NUM_STRETCHES].tolist()
    return [
        Stretch(number * WINDOW * ms, min((number + 1) * WINDOW, length) * ms, float(values[number]))
        for number in largest
        if number * WINDOW < length
    ]


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """What removing samples, by putting the beat's mean in their place, takes from the explained logit: means."""

    num_beats: int
    top: float
    """Of the samples with the highest attributions."""
    random: float
    """Of as many at random, over several draws."""
    wins: int
    """Beats that lose more with the first than with the second."""


def delete(model: Model, explained: Explained, method: str, seed: int = 0) -> Deletion:
    """The deletion test of faithfulness (Samek et al. 2017, arXiv 1509.06321), on samples before the beat's end."""
    within = inside(explained.beats)
    score = explained.per_sample(method).where(within, float("-inf"))
    random = torch.Generator().manual_seed(seed)
    drawn = [torch.rand(score.shape, generator=random).where(within, float("-inf")) for _ in range(NUM_DRAWS)]
    top = _loss(model, explained, score)
    by_chance = torch.stack([_loss(model, explained, ranks) for ranks in drawn]).mean(0)
    return Deletion(
        num_beats=len(score),
        top=float(top.mean()),
        random=float(by_chance.mean()),
        wins=int((top > by_chance).sum()),
    )


def _loss(model: Model, explained: Explained, score: Tensor) -> Tensor:
    """(num_beats,): what the logit loses without the samples of the highest `score` (num_beats, num_samples)."""
    beats = explained.beats
    count = (beats.valid_length * REMOVED).ceil().long()[:, None]
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    signal = flat_lines(beats).where((rank < count)[:, None], beats.signal)
    ratios = beside(beats, model.intervals)
    inputs = (signal,) if ratios is None else (signal, ratios)
    return explained.logit - _logit(model.classifier, inputs, explained.target)
