"""What an encoder is pretrained on: one source, or several at once, the target's own unlabelled beats among them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import data
from data import OF_TRAINING

if TYPE_CHECKING:
    from pathlib import Path

    from data.batches import Feed
    from data.beats import Beats
    from pretrain.cli import Pretrain, PretrainFlags

SOURCES = ("ptb", "kaggle-ptb", "ptbdb", "ptbxl", "synthetic-ptb")
"""Data sets to pretrain on, beside csv:PATH and parquet:PATH."""


def check(text: str) -> None:
    """
    Raises:
        ValueError: a name that is no source; the message lists the choices.
    """
    targets = tuple(name for name in data.DATASETS if name not in SOURCES)
    for name in text.split(","):
        of_target = name.endswith(OF_TRAINING) and name.removesuffix(OF_TRAINING) in targets
        if not (name in SOURCES or of_target or data.is_own(name)):
            own = (f"{prefix}:FILE" for prefix in data.OWN)
            choices = ", ".join([*SOURCES, *own, *(f"{target}{OF_TRAINING}" for target in targets)])
            raise ValueError(
                f"unknown data set to pretrain on, {name!r}; choose from {choices}, or several with commas"
            )


def short_name(text: str) -> str:
    """How the sources are called in file names."""
    return "+".join(data.short_name(name).replace(OF_TRAINING, "") for name in text.split(","))


def probed_on(text: str) -> str:
    """The labelled target whose validation part probes an encoder of these sources."""
    names = text.split(",")
    of_target = [name.removesuffix(OF_TRAINING) for name in names if name.endswith(OF_TRAINING)]
    synthetic = any(name.startswith("synthetic-") for name in names)
    return [*of_target, "synthetic-arrhythmia" if synthetic else "arrhythmia"][0]


def load(flags: PretrainFlags) -> Beats:
    """The training beats of every source, as one.

    Raises:
        ValueError: a file that is missing or not as it should be, or sources that do not fit together.
    """
    from data.beats import concatenate

    return concatenate([_load(name, flags) for name in flags.data.split(",")])


def _load(name: str, flags: PretrainFlags) -> Beats:
    if not name.endswith(OF_TRAINING) or data.is_own(name):
        return data.load(name, "train", flags.data_folder)
    beats = data.load_split(name.removesuffix(OF_TRAINING), flags.protocol, flags.data_folder, flags.seed).train
    return replace(
        beats, target=None, classes=(), source=f"{beats.source} (unlabelled training beats of {flags.protocol})"
    )


def open_feed(flags: Pretrain, device: str) -> Feed:
    """The sources' training beats: in memory, or with `stream` from their file.

    Raises:
        ValueError: beats that cannot be read, or that are in no file to stream from.
    """
    from data.batches import Resident

    if not flags.stream:
        return Resident(load(flags), device)
    return _stream(flags.data, flags.data_folder)


def _stream(name: str, folder: Path) -> Feed:
    from pathlib import Path

    from data.known import CLASSES, FILES
    from data.published import find
    from data.stream import Stream

    if name in FILES:
        return Stream(find(name, "train", folder), whole=True, classes=CLASSES[name])
    prefix, _, path = name.partition(":")
    if prefix != "parquet" or "," in name:
        raise ValueError(f"--stream reads one of {', '.join(FILES)} or parquet:FILE, not {name}")
    return Stream(Path(path), whole=False)
