"""Beats larger than memory: a Parquet file, read a window of its row groups at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.batches import Taken
from data.beats import NUM_SAMPLES, RATE_HZ, Beats, derive, measure_length
from data.known import KNOWN_FILES
from data.parquet import check_label, check_signal, opened, read_columns
from data.published import course_columns
from data.recorded import TEST_SEED, TEST_SHARE
from data.split import stratified
from data.store import description, is_own
from experiments.files import sha256

WINDOW = 65_536
"""Beats that are shuffled together: 49 MB of signal, or one row group where those are larger."""
MOST_HELD = 262_144
"""Beats in memory at most, 196 MB of signal: two windows, since a batch may lie across a border."""
NOWHERE = -1


class Stream:
    """The training beats of a file, on the CPU.

    Memory holds at most 262,144 beats (200 MB), and 17 bytes for each beat of the file (65 while it is opened).

    An epoch takes the row groups in a seeded order and shuffles all beats of a window of them together; a step's beats
    follow from (seed, step) alone, as they do from memory.

    Raises:
        ValueError: a file of another layout than the course's or our own, or row groups too large to hold two windows.
    """

    def __init__(self, path: Path, *, whole: bool, classes: tuple[str, ...] = ()) -> None:
        """
        Args:
            whole: the file is a training part; else a fifth is held out for testing, as from memory.
            classes: of a file in the course's layout.
        """
        self.path = path
        with opened(path) as file:
            about = description(path, file) if is_own(file) else None
            self.names = list(about["signal"]) if about else course_columns(path, file.schema_arrow, NUM_SAMPLES)
            self.digests = [group["beats"] for group in about["groups"]] if about else None
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            label = read_columns(path, file, ["target"], dtype=np.float64)[:, 0]
        fingerprint = sha256(path)
        known = KNOWN_FILES.get(fingerprint)
        self.about = Beats(
            signal=torch.zeros(0, 1, len(self.names)),
            target=torch.zeros(0, dtype=torch.int64),
            valid_length=torch.zeros(0, dtype=torch.int64),
            classes=tuple(about["classes"]) if about else classes,
            rate_hz=about["rate_hz"] if about else RATE_HZ,
            source=about["source"] if about else known.source if known else f"{path.name} (unrecognised)",
            fingerprint=fingerprint,
        )
        check_label(path, label, self.about.classes)
        self.target = torch.from_numpy(label.astype(np.int64))
        self.starts = np.cumsum([0, *sizes])
        self.groups_a_window = max(1, WINDOW // max(sizes))
        slots = 2 * self.groups_a_window
        if slots * max(sizes) > MOST_HELD:
            raise ValueError(
                f"{path} has row groups of {max(sizes):,} beats, too large to stream: write it again in smaller ones, "
                f"as `python -m data build` does, or polars' sink_parquet(FILE, row_group_size=8192)"
            )
        self.wanted = torch.ones(len(label), dtype=torch.bool)
        if not whole:
            self.wanted[stratified(self.target, TEST_SHARE, TEST_SEED)[1]] = False
        self.held = torch.zeros(slots, max(sizes), len(self.names))
        self.length = torch.zeros(slots, max(sizes), dtype=torch.int64)
        self.slot_of = np.full(len(sizes), NOWHERE)
        self.in_order_of_reading: list[int] = []

    def __len__(self) -> int:
        return int(self.wanted.sum())

    @property
    def labels(self) -> Tensor | None:
        return self.target[self.wanted]

    def batches(self, batch_size: int, seed: int) -> Sequence[Tensor]:
        if batch_size > WINDOW:
            raise ValueError(f"a batch of {batch_size:,} beats is larger than the {WINDOW:,} that are held")
        return _Epoch(self, batch_size, seed)

    def take(self, index: Tensor) -> Taken:
        groups = np.searchsorted(self.starts, index.numpy(), side="right") - 1
        self._hold(np.unique(groups))
        slot = torch.from_numpy(self.slot_of[groups])
        row = index - torch.from_numpy(self.starts[groups])
        return Taken(self.held[slot, row].unsqueeze(1), self.length[slot, row], self.target[index])

    def partners(self, index: Tensor) -> Tensor:
        del index
        raise ValueError(f"{self.path} is streamed: two beats of the same patient are drawn from memory only")

    def window(self, groups: Sequence[int]) -> Tensor:
        """The wanted rows of some row groups."""
        rows = [torch.arange(self.starts[group], self.starts[group + 1]) for group in groups]
        everything = torch.cat(rows)
        return everything[self.wanted[everything]]

    def _hold(self, groups: NDArray[np.int64]) -> None:
        """See that row groups are in memory, each new one in the place of one that was read long ago."""
        missing = groups[self.slot_of[groups] == NOWHERE].tolist()
        if not missing:
            return
        free = [slot for slot in range(len(self.held)) if slot not in self.slot_of]
        for group in [group for group in self.in_order_of_reading if group not in groups][: len(missing) - len(free)]:
            self.in_order_of_reading.remove(group)
            free.append(int(self.slot_of[group]))
            self.slot_of[group] = NOWHERE
        with opened(self.path) as file:
            for group, slot in zip(missing, free, strict=False):
                self._read(file, group, slot)

    def _read(self, file: pq.ParquetFile, group: int, slot: int) -> None:
        first, size = int(self.starts[group]), int(self.starts[group + 1] - self.starts[group])
        signal = read_columns(self.path, file, self.names, [group])
        check_signal(self.path, signal, self.names, first)
        target = self.target[first : first + size].numpy()
        if self.digests and derive("", signal, target) != self.digests[group]:
            raise ValueError(f"{self.path} is damaged: row group {group} differs from its SHA-256")
        self.held[slot, :size] = torch.from_numpy(signal)
        self.length[slot, :size] = measure_length(self.held[slot, :size].unsqueeze(1))
        self.slot_of[group] = slot
        self.in_order_of_reading.append(group)


class _Epoch(Sequence[Tensor]):
    """Batches of one epoch, each made when it is asked for."""

    def __init__(self, stream: Stream, batch_size: int, seed: int) -> None:
        self.stream, self.seed = stream, seed
        order = torch.randperm(len(stream.starts) - 1, generator=torch.Generator().manual_seed(seed)).tolist()
        size = stream.groups_a_window
        self.windows = [order[first : first + size] for first in range(0, len(order), size)]
        self.ends = np.cumsum([0, *(len(stream.window(groups)) for groups in self.windows)])
        self.num_batches = max(1, round(len(stream) / batch_size))
        self.cuts = np.linspace(0, len(stream), self.num_batches + 1).round().astype(np.int64)
        self.shuffled: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self.num_batches

    @overload
    def __getitem__(self, number: int) -> Tensor: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, number: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        first, last = int(self.cuts[number]), int(self.cuts[number + 1])
        inside = range(int(np.searchsorted(self.ends, first, "right")) - 1, int(np.searchsorted(self.ends, last)))
        return torch.cat(
            [self._rows(window)[max(0, first - self.ends[window]) : last - self.ends[window]] for window in inside]
        )

    def _rows(self, window: int) -> Tensor:
        """The rows of a window, shuffled; the last two windows are remembered."""
        if window not in self.shuffled:
            rows = self.stream.window(self.windows[window])
            generator = torch.Generator().manual_seed(self.seed + window + 1)
            self.shuffled = {window - 1: self.shuffled[window - 1]} if window - 1 in self.shuffled else {}
            self.shuffled[window] = rows[torch.randperm(len(rows), generator=generator)]
        return self.shuffled[window]
