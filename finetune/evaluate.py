"""One `evaluate` from start to end: calibrate on validation beats, look at the test part once, show, draw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import data
from data import OF_TRAINING
from data.split import Split
from experiments import tables
from experiments.calibration import fit_temperature
from finetune.evaluation import Calibration, Scored, calibrate, evaluate
from finetune.evaluation_pictures import draw_evaluation
from finetune.evaluation_tables import show
from finetune.model import Model

if TYPE_CHECKING:
    from finetune.model_commands import Evaluate

MISS_RATE = 0.05
OTHER_DATA = "unknown"
"""The badge where the test beats are of another data set: nothing tells whether a patient is in both."""


def run(flags: Evaluate) -> None:
    model = flags.load()
    limits = miss_rates(flags.miss_rate or (), model.classes)
    name, protocol = target_of(model, flags.data, flags.protocol)
    split = open_split(model, flags, name, protocol)
    own = is_own(model, split)
    if not own and not flags.recalibrate and (flags.miss_rate is not None or flags.recall_floor is not None):
        flag = "--miss-rate" if flags.miss_rate is not None else "--recall-floor"
        raise ValueError(f"{flag}: {model.origin} was not made from {name}; add --recalibrate to fit anything there")
    calibration = (
        fit(model, split, name, limits, flags.recall_floor) if own or flags.recalibrate else stored(model, name)
    )
    scored = score(model, split, calibration)
    evaluation = evaluate(
        scored,
        model=Path(model.origin).name,
        data=name,
        protocol=protocol,
        seed=split.seed,
        badge=split.badge if own else OTHER_DATA,
    )
    show(evaluation)
    folder = flags.folder(name, protocol)
    files = draw_evaluation(folder, evaluation, scored)
    tables.say(f"{len(files)} pictures: {folder}")
    flags.write(evaluation.to_json() | {"pictures": [str(file) for file in files]})


def miss_rates(words: Sequence[str], classes: Sequence[str]) -> list[float]:
    """The limit of each class, from words such as `0.05` (all classes) and `V=0.02`.

    Raises:
        ValueError: a class that is not there, or no share between 0 and 1.
    """
    limits = dict.fromkeys(classes, MISS_RATE)
    for word in sorted(words, key=lambda word: "=" in word):
        label, _, number = word.rpartition("=")
        if label and label not in limits:
            raise ValueError(f"--miss-rate {word}: the classes are {', '.join(classes)}")
        try:
            limit = float(number)
        except ValueError:
            limit = float("nan")
        if not 0 < limit < 1:
            raise ValueError(f"--miss-rate {word}: a share above 0 and below 1 is needed, such as 0.05 or V=0.05")
        limits |= {label: limit} if label else dict.fromkeys(classes, limit)
    return list(limits.values())


def target_of(model: Model, name: str | None, protocol: str | None) -> tuple[str, str]:
    """Data set and protocol: those named, else those that the model was made by.

    Raises:
        ValueError: neither says; or the test beats may be beats that the model was trained on.
    """
    made = model.made_from
    found = {"--data": name or made["data"], "--protocol": protocol or made["protocol"]}
    if unknown := [flag for flag, value in found.items() if value == "unknown"]:
        raise ValueError(f"{model.origin} does not say what it was trained on: name {' and '.join(unknown)}")
    name, protocol = found.values()
    source, target = _canonical(made["data"]), _canonical(name)
    if data.may_hold_test_beats(f"{source}{OF_TRAINING}", made["protocol"], target, protocol):
        raise ValueError(
            f"{model.origin} was trained on {made['data']} by {made['protocol']}, which may hold test beats of {name} "
            f"by {protocol}: train one by {protocol} to evaluate it so"
        )
    return name, protocol


def _canonical(name: str) -> str:
    """Of a file of one's own the whole path, so that one file has one name."""
    prefix, _, path = name.partition(":")
    return f"{prefix}:{Path(path).resolve()}" if data.is_own(name) else name


def open_split(model: Model, flags: Evaluate, name: str, protocol: str) -> Split:
    """
    Raises:
        ValueError: the split cannot be made, or holds beats that the classifier does not fit; or it is of the records
            that the model was trained on, but its validation part is another than the one that was kept apart.
    """
    options = model.checkpoint.options
    seed = int(options.get("split_seed", model.checkpoint.seed)) if flags.seed is None else flags.seed
    split = data.load_split(name, protocol, flags.data_folder, seed)
    model.check_labels(split.validation)
    model.check(split.validation)
    if is_own(model, split) or not data.same_records(_canonical(model.made_from["data"]), _canonical(name)):
        return split
    if "validated_on" not in options:
        raise ValueError(f"{model.origin} does not say which beats validated it, as an older file: train it again")
    if seed != options.get("split_seed"):
        raise ValueError(
            f"--seed {seed} cuts a validation part with beats that {model.origin} was trained on: leave --seed out"
        )
    raise ValueError(
        f"the beats of {name} here are not those that {model.origin} was trained on: name their folder with --data-dir"
    )


def is_own(model: Model, split: Split) -> bool:
    """Whether its validation beats are those that the model's epoch was chosen on."""
    return split.validation.fingerprint == model.checkpoint.options.get("validated_on")


def fit(model: Model, split: Split, name: str, limits: Sequence[float], floor: float | None) -> Calibration:
    """Temperature, thresholds and promises from the validation part."""
    beats = split.validation
    logits, target = model.logits(beats).astype(np.float64), beats.labels.numpy()
    thresholds = model.thresholds
    found = thresholds.floor if thresholds else float(model.checkpoint.options.get("recall_floor", 0.95))
    temperature = fit_temperature(logits, target)
    said = f"the validation part of {name} ({len(beats):,} beats)"
    return calibrate(logits, target, temperature, found if floor is None else floor, limits, said)


def stored(model: Model, name: str) -> Calibration:
    """Temperature and thresholds as the model's file has them, and no promise of other data.

    Raises:
        ValueError: the file lacks them.
    """
    thresholds = model.thresholds
    if thresholds is None or "temperature" not in model.checkpoint.options:
        raise ValueError(
            f"{model.origin} has no {'thresholds' if thresholds is None else 'temperature'} to use on {name}: "
            "--recalibrate fits them on its validation part"
        )
    return Calibration(
        temperature=model.temperature,
        thresholds=thresholds,
        promises=None,
        validated=(),
        fitted_on=f"{model.made_from['data']}, as the file has it",
    )


def score(model: Model, split: Split, calibration: Calibration) -> Scored:
    """The one look at the test part."""
    beats = split.load_test()
    model.check(beats)
    return Scored(
        logits=model.logits(beats).astype(np.float64),
        target=beats.labels.numpy(),
        group=None if beats.group is None else beats.group.numpy(),
        classes=model.classes,
        calibration=calibration,
    )
