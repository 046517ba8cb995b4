"""Files in, Beats out. Knows nothing of models.

The registry holds `"module:function"` strings, so that listing the choices imports nothing heavy.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from data.split import FEW_DRAWS, VALIDATION, VALIDATION_OF_PATIENTS, Parts, Split, by_patient, stratified

if TYPE_CHECKING:
    from pathlib import Path

    from data.beats import Beats


class Source(NamedTuple):
    where: str
    """Function (data_dir, protocol) → Parts."""
    protocols: tuple[str, ...]
    """The first is that of `load`."""


DATASETS: dict[str, Source] = {
    "ptb": Source("data.published:ptb", ("beat-random",)),
    "arrhythmia": Source("data.published:arrhythmia", ("beat-random", "ds1-ds2", "patient")),
    "kaggle-ptb": Source("data.published:kaggle_ptb", ("beat-random",)),
    "kaggle-arrhythmia": Source("data.published:kaggle_arrhythmia", ("beat-random",)),
    "mitdb": Source("data.physionet:mitdb", ("beat-random", "ds1-ds2", "patient")),
    "ptbdb": Source("data.physionet:ptbdb", ("beat-random", "patient")),
    "ptbxl": Source("data.physionet:ptbxl", ("beat-random", "patient", "folds")),
    "synthetic-ptb": Source("data.synthetic:ptb", ("beat-random",)),
    "synthetic-arrhythmia": Source("data.synthetic:arrhythmia", ("beat-random", "patient")),
}
OWN = {
    "csv": Source("data.own:csv", ("beat-random", "patient", "ds1-ds2", "folds")),
    "parquet": Source("data.own:parquet", ("beat-random", "patient", "ds1-ds2", "folds")),
}
"""Beats of one's own, by `csv:PATH` and `parquet:PATH`; the function takes the path in place of the data folder."""
ENDINGS = {".csv": "csv", ".parq": "parquet", ".parquet": "parquet"}

RECORDS = {"arrhythmia": "mitdb", "kaggle-arrhythmia": "mitdb", "ptb": "ptbdb", "kaggle-ptb": "ptbdb"}
"""Data sets that were cut from another's records: the same hearts, otherwise split."""
OF_TRAINING = ":train"
"""After a data set's name, where an encoder is pretrained: the beats of its training part by a protocol, unlabelled."""
PARTS = ("train", "test")


def parts(name: str, protocol: str | None, data_dir: Path) -> Parts:
    """The parts of a data set, each read when it is asked for.

    beat-random: the files as they are published, or a stratified fifth for testing; the same patients on both sides.
    patient: a fifth of the patients for testing. ds1-ds2: de Chazal's records, classes N S V F. folds: PTB-XL's own.

    Args:
        name: a name of `DATASETS`, or csv:PATH or parquet:PATH for beats of one's own.
        protocol: None for the data set's first.

    Raises:
        ValueError: an unknown name, or a protocol that the data set does not support; one line.
    """
    from pathlib import Path

    prefix, _, path = name.partition(":")
    if is_own(name):
        source, place = OWN[prefix], Path(path)
    elif name in DATASETS:
        source, place = DATASETS[name], data_dir
    else:
        raise ValueError(f"unknown data set {name}; choose from {', '.join(DATASETS)}, csv:PATH, parquet:PATH")
    chosen = protocol or source.protocols[0]
    if chosen not in source.protocols:
        raise ValueError(f"data set {name} supports protocol {', '.join(source.protocols)}, not {chosen}")
    module, function = source.where.split(":")
    return getattr(import_module(module), function)(place, chosen)


def is_own(name: str) -> bool:
    """Whether it is csv:PATH or parquet:PATH."""
    prefix, _, path = name.partition(":")
    return bool(path) and prefix in OWN


def same_records(one: str, other: str) -> bool:
    """Whether two data sets are one, or cut from the same records."""
    return RECORDS.get(one, one) == RECORDS.get(other, other)


def may_hold_test_beats(source: str, protocol: str, target: str, by: str) -> bool:
    """Whether beats that an encoder was pretrained on may be test beats of a target.

    Args:
        source: what it was pretrained on: a data set, or with `OF_TRAINING` its training part by `protocol`.
        by: the protocol that splits the target. Those that hold records or patients apart are the same for every data
            set that was cut from the same records; a random split is not.
    """
    name = source.removesuffix(OF_TRAINING)
    if not same_records(name, target):
        return False
    if name == source:
        protocol = (OWN if is_own(name) else DATASETS)[name.partition(":")[0]].protocols[0]
    return protocol != by or (by == "beat-random" and name != target)


def own_name(text: str) -> str:
    """csv:PATH or parquet:PATH for the path of a table, with @RATE_HZ or without; anything else as it is."""
    from pathlib import Path

    kind = ENDINGS.get(Path(_without_rate(text)).suffix)
    return f"{kind}:{text}" if kind and not is_own(text) else text


def _without_rate(path: str) -> str:
    return re.sub(r"@[\d.]+$", "", path)


def short_name(name: str) -> str:
    """How a data set is called in file names: the stem of the path where it is the user's own."""
    from pathlib import Path

    return Path(_without_rate(name.partition(":")[2])).stem if is_own(name) else name


def load(name: str, part: str, data_dir: Path) -> Beats:
    """Read one part, train or test, of a data set.

    Raises:
        ValueError: an unknown name or part, or a file that is missing or not as it should be; one line.
    """
    if part not in PARTS:
        raise ValueError(f"unknown part {part}; choose from {', '.join(PARTS)}")
    found = parts(name, None, data_dir)
    return found.load_train() if part == "train" else found.load_test()


def load_split(name: str, protocol: str, data_dir: Path, seed: int = 0) -> Split:
    """Split a data set into training, validation and test by a protocol (see `parts`).

    Where the source has no validation part of its own, it is a tenth of the training part, stratified, or a fifth of
    its groups where the protocol holds groups apart, chosen by `seed`. The test part is the same for every seed.

    Raises:
        ValueError: an unknown name, a protocol that the data set does not support, or missing files; one line.
    """
    found = parts(name, protocol, data_dir)
    found.check()
    train = found.load_train()
    if found.load_validation is not None:
        validation = found.load_validation()
    else:
        if protocol == "beat-random":
            kept, held_out = stratified(train.labels, VALIDATION, seed)
        else:
            kept, held_out = by_patient(train, VALIDATION_OF_PATIENTS, seed, FEW_DRAWS)
        train, validation = train.select(kept), train.select(held_out)
    return Split(
        train=train,
        validation=validation,
        load_test=found.load_test,
        protocol=protocol,
        badge=found.badge(),
        seed=seed,
    )
