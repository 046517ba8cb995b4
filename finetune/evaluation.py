"""What a classifier's answers on a test part are worth: recall first, with intervals, promises and patients. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.calibration import Bin, gaps, probabilities, reliability
from experiments.curves import average_precision
from experiments.files import nan_to_null
from experiments.metrics import confusion_matrix, macro_recall, recall_per_class
from experiments.resampling import Estimate, Floats, estimate
from experiments.thresholds import Alarms, Promises, Thresholds, alarms, fit_promises, fit_thresholds

ALPHA = 0.05
"""What is less likely is not put down to chance."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What turns logits into probabilities and alarms, and what data it is from."""

    temperature: float
    thresholds: Thresholds
    promises: Promises | None
    """None where no validation part was at hand to promise anything from."""
    validated: tuple[Alarms, ...]
    """What the promises' thresholds did to the beats that set them."""
    fitted_on: str


def calibrate(
    logits: Floats, target: NDArray[np.int64], temperature: float, floor: float, limits: Sequence[float], fitted_on: str
) -> Calibration:
    """Thresholds for a recall floor, and for a miss rate of each class, from validation beats.

    Args:
        logits: (num_beats, num_classes).
        target: (num_beats,).
    """
    probability_BC = probabilities(logits, temperature)
    promises = fit_promises(probability_BC, target, limits)
    return Calibration(
        temperature=temperature,
        thresholds=fit_thresholds(probability_BC, target, floor),
        promises=promises,
        validated=tuple(alarms(promises, probability_BC, target)),
        fitted_on=fitted_on,
    )


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Test beats and what the classifier says of them."""

    logits: Floats
    """(num_beats, num_classes)."""
    target: NDArray[np.int64]
    group: NDArray[np.int64] | None
    """(num_beats,), the patient; None where patients are not known."""
    classes: tuple[str, ...]
    calibration: Calibration

    @property
    def probability(self) -> Floats:
        return probabilities(self.logits, self.calibration.temperature)

    @property
    def uncalibrated(self) -> Floats:
        return probabilities(self.logits)

    @property
    def confusion(self) -> NDArray[np.int64]:
        return confusion_matrix(self.target, self.logits.argmax(1), len(self.classes))


@dataclass(frozen=True, kw_only=True)
class Patient:
    """The beats of one patient."""

    name: int
    num_beats: int
    macro_recall: float
    """Over the classes that he has."""
    recall: Mapping[str, float]
    support: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that is told of a classifier on a test part."""

    model: str
    data: str
    protocol: str
    seed: int
    badge: str
    classes: tuple[str, ...]
    num_beats: int
    drawn: str
    """What the intervals' resamples are drawn from: patients, records or beats."""
    num_drawn: int
    estimates: Mapping[str, Estimate]
    confusion: Sequence[Sequence[int]]
    reliability: Mapping[str, Sequence[Bin]]
    """Uncalibrated and calibrated."""
    calibration: Calibration
    alarms: Sequence[Alarms]
    promised: Sequence[Alarms]
    """What the promises' thresholds do; empty without promises."""
    patients: Sequence[Patient]
    """The worst first; empty where they are not known."""

    @property
    def title(self) -> str:
        return f"{self.model} on {self.data}, {self.protocol}, leakage {self.badge}"

    def outcome(self, label: int) -> str:
        """Of a class's promise, on the test part."""
        promises = self.calibration.promises
        assert promises is not None
        limit, missed = promises.limits[label], self.estimates[f"promise_miss_rate_{self.classes[label]}"]
        if promises.values[label] is None:
            return f"no promise: {promises.num_beats[label]} validation beats, {promises.needed[label]} needed"
        if np.isnan(missed.value):
            return "no test beats"
        if missed.value <= limit:
            return "kept"
        beats = self.promised[label].support
        chance = promises.chance(label, round(missed.value * beats), beats)
        return "exceeded, within chance" if missed.low <= limit or chance > ALPHA else "exceeded"

    def to_json(self) -> dict[str, Any]:
        """What is not defined becomes null."""
        content = nan_to_null(asdict(self))
        if self.calibration.promises is not None:
            content["outcomes"] = {name: self.outcome(label) for label, name in enumerate(self.classes)}
        return content


def evaluate(scored: Scored, *, model: str, data: str, protocol: str, seed: int, badge: str) -> Evaluation:
    """
    Raises:
        ValueError: no beats.
    """
    if not len(scored.target):
        raise ValueError(f"{data} has no test beats by {protocol}")
    probability, calibration = scored.probability, scored.calibration
    group = _known(scored.group)
    drawn = "beats" if group is None else "records" if protocol == "ds1-ds2" else "patients"
    promises = calibration.promises
    return Evaluation(
        model=model,
        data=data,
        protocol=protocol,
        seed=seed,
        badge=badge,
        classes=scored.classes,
        num_beats=len(scored.target),
        drawn=drawn,
        num_drawn=len(scored.target) if group is None else len(np.unique(group)),
        estimates=estimate(Measure(scored), len(scored.target), group),
        confusion=scored.confusion.tolist(),
        reliability={
            "uncalibrated": reliability(scored.uncalibrated, scored.target),
            "calibrated": reliability(probability, scored.target),
        },
        calibration=calibration,
        alarms=alarms(calibration.thresholds, probability, scored.target),
        promised=alarms(promises, probability, scored.target) if promises else [],
        patients=[] if group is None else _patients(scored, group),
    )


def _known(group: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """Groups where every beat has one and there are two or more: of one, nothing can be drawn."""
    return None if group is None or (group < 0).any() or len(np.unique(group)) < 2 else group


def _patients(scored: Scored, group: NDArray[np.int64]) -> list[Patient]:
    predicted, num_classes, patients = scored.logits.argmax(1), len(scored.classes), []
    for name in np.unique(group).tolist():
        mine = group == name
        confusion = confusion_matrix(scored.target[mine], predicted[mine], num_classes)
        patients.append(
            Patient(
                name=name,
                num_beats=int(mine.sum()),
                macro_recall=float(macro_recall(confusion)),
                recall=dict(zip(scored.classes, recall_per_class(confusion).tolist(), strict=True)),
                support=dict(zip(scored.classes, confusion.sum(1).tolist(), strict=True)),
            )
        )
    return sorted(patients, key=lambda patient: (patient.macro_recall, -patient.num_beats))


class Measure:
    """Every figure of a test part for many resamples of its beats at once; see `experiments.resampling`."""

    def __init__(self, scored: Scored) -> None:
        self.classes, self.score_CB = scored.classes, scored.probability.T
        number_C = np.arange(len(scored.classes))
        self.true_BC = scored.target[:, None] == number_C
        answer_BC = scored.logits.argmax(1)[:, None] == number_C
        columns = {
            "beats": self.true_BC,
            "answers": answer_BC,
            "hits": answer_BC & self.true_BC,
            "ece_uncalibrated": gaps(scored.uncalibrated, scored.target),
            "ece": gaps(scored.probability, scored.target),
        }
        rules = {"alarm": scored.calibration.thresholds, "promise": scored.calibration.promises}
        self.rules = {name: rule for name, rule in rules.items() if rule is not None}
        for name, rule in self.rules.items():
            raised_BC = scored.probability >= [np.inf if value is None else value for value in rule.values]
            columns |= {f"{name}s": raised_BC, f"{name}_hits": raised_BC & self.true_BC}
        self.edges = dict(zip(columns, np.cumsum([column.shape[1] for column in columns.values()]), strict=True))
        self.columns = np.concatenate(list(columns.values()), axis=1).astype(np.float64)

    def __call__(self, weights_RB: Floats) -> dict[str, Floats]:
        """(num_resamples, num_beats) → (num_resamples,) of each name; NaN where a class that has beats has none."""
        parts = np.split(weights_RB @ self.columns, list(self.edges.values())[:-1], axis=1)
        sums = dict(zip(self.edges, parts, strict=True))
        beats, hits, num_beats = sums["beats"], sums["hits"], weights_RB.sum(1)
        per_class = {
            "recall": _share(hits, beats),
            "f1": _share(2 * hits, beats + sums["answers"]),
            "precision": np.nan_to_num(_share(hits, sums["answers"])),
            "auprc": self._areas(weights_RB),
        }
        per_class = {name: np.where(beats > 0, value_RC, np.nan) for name, value_RC in per_class.items()}
        present = self.true_BC.any(0)
        macro = {f"macro_{name}": value_RC[:, present].mean(1) for name, value_RC in per_class.items()}
        for name, rule in self.rules.items():
            found = _share(sums[f"{name}_hits"], np.where([value is None for value in rule.values], 0, beats))
            per_class |= {f"{name}_recall": found, f"{name}_miss_rate": 1 - found}
            per_class[f"{name}_precision"] = _share(sums[f"{name}_hits"], sums[f"{name}s"])
        of_class = {
            f"{name}_{label}": value_RC[:, column]
            for name, value_RC in per_class.items()
            for column, label in enumerate(self.classes)
        }
        errors = {name: np.abs(sums[name]).sum(1) / num_beats for name in ("ece_uncalibrated", "ece")}
        return {**macro, **of_class, **errors, "accuracy": hits.sum(1) / num_beats}

    def _areas(self, weights_RB: Floats) -> Floats:
        of_class = zip(self.score_CB, self.true_BC.T, strict=True)
        return np.stack([average_precision(score, true, weights_RB) for score, true in of_class], axis=1)


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
