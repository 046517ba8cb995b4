"""Beats whose records are known, and the ways to split them: for sources without a test part of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from data.split import Parts, by_patient, stratified

if TYPE_CHECKING:
    from data.beats import Beats

# de Chazal, O'Dwyer and Reilly 2004, IEEE TBME 51(7):1196–1206
# fmt: off
DS1 = (101, 106, 108, 109, 112, 114, 115, 116, 118, 119, 122, 124, 201, 203, 205, 207, 208, 209, 215, 220, 223, 230)
DS2 = (100, 103, 105, 111, 113, 117, 121, 123, 200, 202, 210, 212, 213, 214, 219, 221, 222, 228, 231, 232, 233, 234)
PACED = (102, 104, 107, 217)
# fmt: on
DS_CLASSES = ("N", "S", "V", "F")
VALIDATION_FOLD, TEST_FOLD = 9, 10
"""PTB-XL's own recommendation (Wagner et al. 2020, Scientific Data 7:154); its folds keep patients whole."""

TEST_SHARE = 0.2
TEST_SEED = 0
"""The test part is the same for every seed of a run."""


class Recorded(NamedTuple):
    """Beats and where each came from."""

    beats: Beats
    """`group` is the patient, where the source knows it."""
    origin: pa.Table
    """A row a beat: record, and where known patient, sample, lead, symbol, rr_before_s, rr_after_s, fold."""


Read = Callable[[Collection[str] | None], Recorded]
"""Read the named records, or all (None)."""


def parts(read: Read, protocol: str, what: str, check: Callable[[], object]) -> Parts:
    """The parts of a source by a protocol of `PROTOCOLS`; nothing is read before a part is asked for.

    Args:
        what: what messages call the source.
        check: see `Parts`.

    Raises:
        ValueError: the source does not know what the protocol needs (as late as a part is asked for).
    """
    return replace(PROTOCOLS[protocol](read, what), check=check)


def _beat_random(read: Read, what: str) -> Parts:
    whole = cache(lambda: read(None).beats)

    @cache
    def sides() -> tuple[Tensor, Tensor]:
        kept, held_out = stratified(_classes(whole()), TEST_SHARE, TEST_SEED)
        if not len(held_out):
            raise ValueError(f"{what} has no class of two beats or more: none can be held out for testing")
        return kept, held_out

    return Parts(
        load_train=lambda: whole().select(sides()[0]),
        load_test=lambda: whole().select(sides()[1]),
        badge=lambda: "unknown" if whole().group is None else "beat-random",
    )


def _classes(beats: Beats) -> Tensor:
    """Beats without labels are of one class: they can be split, and pretrained on."""
    return torch.zeros(len(beats), dtype=torch.int64) if beats.target is None else beats.target


def _patient(read: Read, what: str) -> Parts:
    def known() -> Beats:
        beats = read(None).beats
        if beats.group is None:
            raise ValueError(f"{what} does not name its patients: protocol patient cannot hold them apart")
        return beats

    whole = cache(known)
    sides = cache(lambda: by_patient(whole(), TEST_SHARE, TEST_SEED))
    return Parts(
        load_train=lambda: whole().select(sides()[0]),
        load_test=lambda: whole().select(sides()[1]),
        badge=lambda: "patient-disjoint",
    )


def _ds1_ds2(read: Read, what: str) -> Parts:
    """Records stay apart, and so are the groups. Q is left out: next to nothing is left of it without paced records."""

    def side(records: tuple[int, ...]) -> Beats:
        found = read([str(record) for record in records])
        record = _numbers(found.origin["record"])
        missing = sorted(set(records) - set(record.tolist()))
        if missing:
            raise ValueError(f"{what} lacks records {' '.join(map(str, missing[:5]))} of protocol ds1-ds2")
        return _of_classes(replace(found.beats, group=torch.from_numpy(record)), DS_CLASSES)

    return Parts(load_train=lambda: side(DS1), load_test=lambda: side(DS2), badge=lambda: "record-disjoint")


def _folds(read: Read, what: str) -> Parts:
    whole = cache(lambda: read(None))

    def side(wanted: Callable[[np.ndarray], np.ndarray]) -> Beats:
        beats, origin = whole()
        if "fold" not in origin.column_names:
            raise ValueError(f"{what} has no column fold, which protocol folds needs")
        chosen = wanted(_numbers(origin["fold"]))
        if not chosen.any():
            raise ValueError(
                f"{what} has no beats for a part: protocol folds needs folds {VALIDATION_FOLD} (validation), "
                f"{TEST_FOLD} (test) and others (training)"
            )
        return beats.select(torch.from_numpy(chosen))

    return Parts(
        load_train=lambda: side(lambda fold: (fold != VALIDATION_FOLD) & (fold != TEST_FOLD)),
        load_validation=lambda: side(lambda fold: fold == VALIDATION_FOLD),
        load_test=lambda: side(lambda fold: fold == TEST_FOLD),
        badge=lambda: "unknown" if whole().beats.group is None else "patient-disjoint",
    )


PROTOCOLS: dict[str, Callable[[Read, str], Parts]] = {
    "beat-random": _beat_random,
    "patient": _patient,
    "ds1-ds2": _ds1_ds2,
    "folds": _folds,
}


def group_codes(names: pa.ChunkedArray) -> Tensor | None:
    """int64 (num_beats,): each name's number where all names are numbers, else its place in their sorted order.

    None where a name is missing: who knows the patients of some beats only cannot hold patients apart.
    """
    if names.null_count:
        return None
    different = names.unique().to_pylist()
    numeric = all(name.isdecimal() and len(name) < 18 for name in different)
    code = {name: int(name) if numeric else place for place, name in enumerate(sorted(different))}
    encoded = names.combine_chunks().dictionary_encode()
    table = np.array([code[name] for name in encoded.dictionary.to_pylist()], np.int64)
    return torch.from_numpy(table[encoded.indices.to_numpy()])


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """int64 (num_beats,); −1 for what is no number."""
    if pa.types.is_integer(column.type):
        return column.to_numpy().astype(np.int64)
    return np.array([int(name) if name and name.isdecimal() else -1 for name in column.to_pylist()], np.int64)


def _of_classes(beats: Beats, names: tuple[str, ...]) -> Beats:
    """The beats of these classes, renumbered."""
    if missing := [name for name in names if name not in beats.classes]:
        raise ValueError(f"{beats.source} has classes {' '.join(beats.classes)}, not {missing[0]}")
    new = torch.tensor([names.index(name) if name in names else -1 for name in beats.classes])
    kept = beats.select(new[beats.labels] >= 0)
    others = {name: count for name, count in beats.counts().items() if count and name not in names}
    dropped = {f"of class {name}, which this protocol leaves out": count for name, count in others.items()}
    return replace(kept, target=new[kept.labels], classes=names, dropped={**beats.dropped, **dropped})
