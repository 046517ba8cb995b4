"""A WFDB record of any length: one lead, read an hour at a time, and the beats at the R peaks that are found in it."""

import gc
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from data.beats import RATE_HZ, Beats, derive, measure_length
from data.known import CLASSES
from data.segment import TOO_SHORT, Rhythm, cut, find_r_peaks, measure, quietly, ratio_of, resample

LEADS = ("MLII", "II", "ii")
"""The first of these that a record has is read, else its first channel."""
STRETCH_S = 3600
"""Read at once; the peaks of a record no longer than this are those of `find_r_peaks` over all of it."""
DETECTION_MARGIN_S = 10
"""Read beyond both ends of a stretch, for the detector's thresholds to settle."""
CLOSEST_S = 0.2
"""Of two peaks on either side of a border that lie closer, the later is the earlier one again."""
CUT_MARGIN_S = 2
"""The longest beat, and what the filter reaches."""
UNNAMED_CODE = "Q"
"""WFDB's code of an unclassifiable beat: for classes that are none of AAMI's, whose name is then beside it."""

Progress = Callable[[int, int], None]
"""Called with the samples done and all of them."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One lead of a WFDB record. Memory holds an hour of it, with all its leads while that is decoded."""

    stem: Path
    """Path without suffix."""
    lead: str
    channel: int
    rate_hz: float
    num_samples: int

    @classmethod
    def open(cls, path: Path, leads: Sequence[str] = LEADS, wanted: str | None = None) -> Self:
        """
        Args:
            path: with or without the suffix .hea or .dat.
            leads: the first of these that it has is read, else its first channel.
            wanted: the one lead to read in their place.

        Raises:
            ValueError: no such record, one without samples or without the lead, or what is no record; one line.
        """
        stem = path.with_suffix("") if path.suffix in (".hea", ".dat") else path
        header, names = _read_header(stem)
        if wanted is not None and wanted not in names:
            raise ValueError(f"{stem} has leads {', '.join(names) or 'none'}, not {wanted}")
        if not names:
            raise ValueError(f"{stem} has no signal")
        found = [lead for lead in ((wanted,) if wanted else leads) if lead in names]
        channel = names.index(found[0]) if found else 0
        _check_samples(stem, header, channel)
        num_samples = header.sig_len
        if num_samples is None:  # a header may leave it out; then the files tell
            with _reading(stem) as wfdb:
                num_samples = wfdb.rdrecord(str(stem), channels=[channel], physical=False, return_res=16).sig_len
        if not num_samples:
            raise ValueError(f"{stem} is empty: a record of 0 samples")
        return cls(
            stem=stem, lead=names[channel], channel=channel, rate_hz=float(header.fs), num_samples=int(num_samples)
        )

    @property
    def seconds(self) -> float:
        return self.num_samples / self.rate_hz

    def read(self, first: int = 0, last: int | None = None) -> NDArray[np.float64]:
        """Samples `first` to before `last` of the lead, in its physical unit.

        Raises:
            ValueError: samples that are missing, or are no numbers.
        """
        last = self.num_samples if last is None else last
        with _reading(self.stem) as wfdb:
            found = wfdb.rdrecord(str(self.stem), sampfrom=first, sampto=last, channels=[self.channel])
            signal = found.p_signal[:, 0]
        finite = np.isfinite(signal)
        if not finite.all():
            sample = first + int(finite.argmin())
            raise ValueError(f"{self.stem}: sample {sample} of its signal is not a number")
        return signal

    def find_peaks(self, progress: Progress = lambda done, total: None) -> NDArray[np.int64]:  # noqa: ARG005
        """The samples of its R peaks, ascending; see `find_r_peaks`."""
        margin, closest = (round(seconds * self.rate_hz) for seconds in (DETECTION_MARGIN_S, CLOSEST_S))
        found, before = [np.zeros(0, np.int64)], -closest
        for first, last in self._stretches():
            low, high = max(0, first - margin), min(self.num_samples, last + margin)
            peak = low + find_r_peaks(self.read(low, high), self.rate_hz)
            found.append(peak[(peak >= max(first, before + closest)) & (peak < last)])
            before = int(found[-1][-1]) if len(found[-1]) else before
            gc.collect()  # the detector leaves cycles behind, which hold all that it made of the stretch
            progress(last, self.num_samples)
        return np.concatenate(found)

    def measure(self, peak: NDArray[np.int64]) -> Rhythm:
        """What its R peaks say of its beats at 125 Hz.

        Raises:
            ValueError: a single beat, which has no RR interval.
        """
        step = ratio_of(self.rate_hz, RATE_HZ)
        num_samples = -(-self.num_samples * step.numerator // step.denominator)
        return measure(np.round(peak * (RATE_HZ / self.rate_hz)).astype(np.int64), num_samples)

    def beats(self, rhythm: Rhythm, at_once: int) -> Iterator[Beats]:
        """Its beats in order, without labels, at most `at_once` at a time."""
        of_stretch = np.searchsorted(rhythm.start, [last / self.rate_hz * RATE_HZ for _, last in self._stretches()])
        for first, last in zip([0, *of_stretch[:-1]], of_stretch, strict=True):
            if first < last:
                offset, signal = self._resampled(int(rhythm.start[first]), int(rhythm.start[last - 1]))
                for start in range(first, last, at_once):
                    some = slice(start, min(start + at_once, last))
                    yield self._beats(rhythm, some, cut(signal, rhythm.start[some] - offset, rhythm.length[some]))

    def _stretches(self) -> list[tuple[int, int]]:
        size = round(STRETCH_S * self.rate_hz)
        return [(first, min(first + size, self.num_samples)) for first in range(0, self.num_samples, size)]

    def _resampled(self, first: int, last: int) -> tuple[int, NDArray[np.float64]]:
        """The signal around the samples `first` to `last` at 125 Hz, at that rate; and the place where it starts."""
        step = ratio_of(self.rate_hz, RATE_HZ)
        margin = round(CUT_MARGIN_S * RATE_HZ)
        low = max(0, first - margin) // step.numerator * step.denominator  # where samples of both rates coincide
        high = min(self.num_samples, -(-(last + margin) * step.denominator // step.numerator))
        return low // step.denominator * step.numerator, resample(self.read(low, high), self.rate_hz, RATE_HZ)

    def _beats(self, rhythm: Rhythm, some: slice, cut_out: NDArray[np.float32]) -> Beats:
        signal = torch.from_numpy(cut_out).unsqueeze(1)
        return Beats(
            signal=signal,
            target=None,
            valid_length=measure_length(signal),
            classes=(),
            rate_hz=RATE_HZ,
            source=self.stem.name,
            fingerprint=derive(self.stem.name, cut_out),
            intervals=torch.from_numpy(rhythm.intervals[some]),
        )

    def notes(self, rhythm: Rhythm) -> tuple[str, ...]:
        """What reading changed and left out, a line each."""
        dropped = int((~rhythm.kept).sum())
        notes = [f"resampled from {self.rate_hz:g} to {RATE_HZ:g} Hz"] if self.rate_hz != RATE_HZ else []
        notes += [f"dropped {dropped:,} beats: {TOO_SHORT}"] if dropped else []
        return tuple(f"{self.stem.name}: {note}" for note in notes)


def is_record(path: Path) -> bool:
    """Whether it names a WFDB record, be it there or not: by its suffix, or by the header that belongs to it."""
    return path.suffix in (".hea", ".dat") or path.with_name(f"{path.name}.hea").is_file()


def read_annotations(stem: Path, extension: str) -> tuple[NDArray[np.int64], list[str]]:
    """Samples and symbols of the annotation file STEM.EXTENSION.

    Raises:
        ValueError: no such file, or one that cannot be read; one line.
    """
    path = stem.with_name(f"{stem.name}.{extension}")
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    with _reading(stem, f"{path}: not readable WFDB annotations") as wfdb:
        found = wfdb.rdann(str(stem), extension)
        return np.asarray(found.sample, np.int64), list(found.symbol)


def write_annotations(path: Path, sample: NDArray[np.int64], names: Sequence[str], rate_hz: float) -> None:
    """Write beats to a WFDB annotation file, whole or not at all.

    A class of AAMI's is written as its beat code (N S V F Q); any other as Q with its name as the note beside it.

    Args:
        path: RECORD.EXTENSION; an extension of letters.
        sample: (num_beats,), ascending.
        names: the class of each beat.
    """
    code = dict.fromkeys(names, UNNAMED_CODE) | {name: name for name in CLASSES["arrhythmia"]}
    note = dict.fromkeys(names, "") if set(names) <= set(CLASSES["arrhythmia"]) else {name: name for name in set(names)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder, quietly() as wfdb:
        wfdb.wrann(
            path.stem,
            path.suffix.removeprefix("."),
            sample,
            symbol=[code[name] for name in names],
            aux_note=[note[name] for name in names],
            fs=rate_hz,
            write_dir=folder,
        )
        shutil.move(Path(folder) / path.name, path)


def _read_header(stem: Path) -> tuple[Any, list[str]]:
    """The header, and the names of the leads."""
    header = stem.with_name(f"{stem.name}.hea")
    if not header.is_file():
        raise ValueError(f"{stem} is no WFDB record: {header} does not exist")
    with _reading(stem) as wfdb:
        found: Any = wfdb.rdheader(str(stem), rd_segments=True)
        return found, list(found.sig_name or ())


def _check_samples(stem: Path, header: Any, channel: int) -> None:
    """See that the file of the lead is there; a record of several segments has files of its own for each."""
    files = getattr(header, "file_name", None)
    if files and not (stem.parent / files[channel]).is_file():
        raise ValueError(f"{stem} lacks its samples: {stem.parent / files[channel]} does not exist")


@contextmanager
def _reading(stem: Path, what: str = "") -> Iterator[Any]:
    """The wfdb package, whose reader raises whatever its parsing trips over.

    Raises:
        ValueError: in its place.
    """
    try:
        with quietly() as wfdb:
            yield wfdb
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{what or f'{stem}: not a readable WFDB record'} ({said})") from error
