"""Files in, Beats out. Knows nothing of models.

The registries hold `"module:function"` strings, so that listing the choices imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from data.split import VALIDATION, Split, by_patient, stratified

if TYPE_CHECKING:
    from pathlib import Path

    from data.beats import Beats

DATASETS: dict[str, str] = {
    "ptb": "data.store:ptb",
    "arrhythmia": "data.store:arrhythmia",
    "synthetic-ptb": "data.synthetic:ptb",
    "synthetic-arrhythmia": "data.synthetic:arrhythmia",
}
"""Function (part, data_dir) → Beats of each data set."""

GROUPED: dict[str, dict[str, str]] = {
    "arrhythmia": {"ds1-ds2": "data.physionet:ds1_ds2", "patient": "data.physionet:patient"},
    "synthetic-arrhythmia": {"patient": "data.synthetic:patient"},
}
"""Function (data_dir) → (training Beats, function that reads the test Beats) of each protocol beside beat-random."""

PARTS = ("train", "test")
BADGES = {"beat-random": "beat-random", "ds1-ds2": "record-disjoint", "patient": "patient-disjoint"}
UNKNOWN_PATIENTS = ("ptb",)


def load(name: str, part: str, data_dir: Path) -> Beats:
    """Read one part, train or test, of a data set.

    Raises:
        ValueError: an unknown name or part, or a file that is missing or not as it should be; one line.
    """
    _check_choice("data set", name, DATASETS)
    _check_choice("part", part, PARTS)
    return _resolve(DATASETS[name])(part, data_dir)


def load_split(name: str, protocol: str, data_dir: Path, seed: int = 0) -> Split:
    """Split a data set into training, validation and test by a protocol.

    beat-random: the files as they are, the same patients on both sides; every data set.
    ds1-ds2: de Chazal's records, classes N S V F; `arrhythmia`, from PhysioNet's records.
    patient: no patient on two sides; `arrhythmia`, from PhysioNet's records, and `synthetic-arrhythmia`.

    A tenth of the training part is for validation, chosen by `seed`: stratified, or whole groups where the
    protocol holds groups apart. The test part is the same for every seed.

    Raises:
        ValueError: an unknown name, a protocol that the data set does not support, or missing files; one line.
    """
    _check_choice("data set", name, DATASETS)
    grouped = GROUPED.get(name, {})
    supported = ["beat-random", *grouped]
    if protocol not in supported:
        reason = "" if grouped else ": its beats do not name their patients"
        raise ValueError(f"data set {name} supports protocol {', '.join(supported)}, not {protocol}{reason}")
    if protocol == "beat-random":
        check_files(name, data_dir)
        train, load_test = load(name, "train", data_dir), partial(load, name, "test", data_dir)
        kept, held_out = stratified(train.labels, VALIDATION, seed)
    else:
        train, load_test = _resolve(grouped[protocol])(data_dir)
        kept, held_out = by_patient(train, VALIDATION, seed)
    return Split(
        train=train.select(kept),
        validation=train.select(held_out),
        load_test=load_test,
        protocol=protocol,
        badge="unknown" if name in UNKNOWN_PATIENTS or "unrecognised" in train.source else BADGES[protocol],
    )


def check_files(name: str, data_dir: Path) -> None:
    """See that every file of a data set is there and is no pointer, before hours are spent on one of them.

    Raises:
        ValueError: one is missing, empty, a folder or a Git LFS pointer.
    """
    from data.known import FILES

    if name in FILES:
        from data.store import check_is_data, find

        for part in PARTS:
            check_is_data(find(name, part, data_dir))


def _check_choice(what: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {what} {value}; choose from {', '.join(choices)}")


def _resolve(reference: str) -> Callable[..., Any]:
    module, function = reference.split(":")
    return getattr(import_module(module), function)
