"""WFDB records of the MIT-BIH Arrhythmia Database in, segmented, labelled and record-tagged Beats out."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import median
from scipy.signal import resample_poly

from data.beats import NUM_SAMPLES, RATE_HZ, Beats, derive, measure_length, scale_and_pad
from data.intervals import log_ratios, rr_before_after
from data.known import CLASSES

# de Chazal, O'Dwyer and Reilly 2004, IEEE TBME 51(7):1196–1206
# fmt: off
DS1 = (101, 106, 108, 109, 112, 114, 115, 116, 118, 119, 122, 124, 201, 203, 205, 207, 208, 209, 215, 220, 223, 230)
DS2 = (100, 103, 105, 111, 113, 117, 121, 123, 200, 202, 210, 212, 213, 214, 219, 221, 222, 228, 231, 232, 233, 234)
PACED = (102, 104, 107, 217)
# fmt: on
RECORDS = tuple(sorted(DS1 + DS2 + PACED))
SAME_PATIENT = {202: 201}
PATIENT_TEST = (113, 209, 212, 217, 220, 223, 230, 233)
"""Records of the patients held out by `protocol patient`: `by_patient(…, 0.2, seed=0)`, whatever the run's seed."""
DS_CLASSES = ("N", "S", "V", "F")

AAMI = {"N": "NLRej", "S": "AaJS", "V": "VE", "F": "F", "Q": "/fQ"}
"""ANSI/AAMI EC57: annotation symbols of each class."""
CLASS_OF = {symbol: label for label, name in enumerate(CLASSES["arrhythmia"]) for symbol in AAMI[name]}

UP, DOWN = 25, 72  # 360 Hz × 25 / 72 = 125 Hz
WINDOW_S = 10
BEAT_PER_RR = 1.2
MIN_SAMPLES = 40


class Record(NamedTuple):
    signal: NDArray[np.float32]
    label: NDArray[np.int64]
    intervals: NDArray[np.float32]


def ds1_ds2(data_dir: Path) -> tuple[Beats, Callable[[], Beats]]:
    """DS1 and how to read DS2. Q is left out: it has next to no beats once the paced records are gone."""
    folder = _folder(data_dir, "ds1-ds2")
    return read_mitdb(folder, DS1, classes=DS_CLASSES), partial(read_mitdb, folder, DS2, classes=DS_CLASSES)


def patient(data_dir: Path) -> tuple[Beats, Callable[[], Beats]]:
    """The training patients and how to read the others; `group` is the patient, not the record."""
    folder = _folder(data_dir, "patient")
    train = tuple(record for record in RECORDS if record not in PATIENT_TEST)
    return _read_patients(folder, train), partial(_read_patients, folder, PATIENT_TEST)


def read_mitdb(
    folder: Path, records: Sequence[int] = RECORDS, *, classes: Sequence[str] = CLASSES["arrhythmia"]
) -> Beats:
    """Read records into beats of 187 samples at 125 Hz; `group` is the record's number.

    The lead is MLII where the record has it, else its first channel. A beat runs from its annotation for 1.2 × the
    median RR interval of its 10-second window; the last beats of a record with fewer than 40 samples left are dropped.

    Args:
        folder: PhysioNet's `mitdb` folder (`.hea`, `.dat` and `.atr` of each record).
        classes: beats of other AAMI classes are left out.

    Raises:
        ValueError: records are missing or cannot be read.
    """
    missing = [str(record) for record in records if not _is_whole(folder / str(record))]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {len(records)} records ({' '.join(missing[:5])}"
            f"{' …' if len(missing) > 5 else ''}; .hea, .dat and .atr of each): "
            f"get them from https://physionet.org/files/mitdb/1.0.0/"
        )
    parts = [_read_record(folder / str(record)) for record in records]
    label = np.concatenate([part.label for part in parts])
    wanted = np.isin(label, [CLASSES["arrhythmia"].index(name) for name in classes])
    renumber = np.array([classes.index(name) if name in classes else -1 for name in CLASSES["arrhythmia"]])
    signal = np.concatenate([part.signal for part in parts])[wanted]
    target = renumber[label[wanted]]
    group = np.repeat(records, [len(part.label) for part in parts])[wanted]
    intervals = np.concatenate([part.intervals for part in parts])[wanted]
    tensor = torch.from_numpy(signal).unsqueeze(1)
    return Beats(
        signal=tensor,
        target=torch.from_numpy(target),
        valid_length=measure_length(tensor),
        classes=tuple(classes),
        rate_hz=RATE_HZ,
        source="MIT-BIH Arrhythmia (records)",
        fingerprint=derive("mitdb", signal, target, group, intervals),
        group=torch.from_numpy(group),
        intervals=torch.from_numpy(intervals),
    )


def _folder(data_dir: Path, protocol: str) -> Path:
    folder = data_dir / "mitdb"
    if not folder.is_dir():
        raise ValueError(
            f"protocol {protocol} needs records with patients; put PhysioNet's mitdb folder at {folder} "
            f"(https://physionet.org/files/mitdb/1.0.0/)"
        )
    return folder


def _read_patients(folder: Path, records: Sequence[int]) -> Beats:
    beats = read_mitdb(folder, records)
    assert beats.group is not None
    group = beats.group.clone()
    for record, same in SAME_PATIENT.items():
        group[group == record] = same
    return replace(beats, group=group)


def _is_whole(stem: Path) -> bool:
    return all(stem.with_suffix(suffix).is_file() for suffix in (".hea", ".dat", ".atr"))


def _read_record(stem: Path) -> Record:
    try:
        signal, annotation = _read_wfdb(str(stem))
    except Exception as error:  # the reader raises whatever its parsing trips over
        raise ValueError(f"{stem}: not a readable WFDB record ({' '.join(str(error).split())})") from error
    if not np.isfinite(signal).all():
        raise ValueError(f"{stem}: sample {int(np.isfinite(signal).argmin())} of its signal is not a number")
    label = np.array([CLASS_OF.get(symbol, -1) for symbol in annotation.symbol])
    if np.sum(label >= 0) < 2:
        raise ValueError(f"{stem}: fewer than two annotated beats")
    start = np.round(annotation.sample[label >= 0] * UP / DOWN).astype(np.int64)
    return cut(resample_poly(signal, UP, DOWN), start, label[label >= 0])


def _read_wfdb(stem: str) -> tuple[NDArray[np.float64], Any]:
    """The signal in mV, at 360 Hz, and the annotation."""
    with warnings.catch_warnings():  # the package uses pandas in ways that pandas is giving up
        warnings.simplefilter("ignore", DeprecationWarning)
        import wfdb

        header: Any = wfdb.rdheader(stem)
        lead = header.sig_name.index("MLII") if "MLII" in header.sig_name else 0
        record: Any = wfdb.rdrecord(stem, channels=[lead])
        return record.p_signal[:, 0], wfdb.rdann(stem, "atr")


def cut(signal: NDArray[np.floating], start: NDArray[np.int64], label: NDArray[np.int64]) -> Record:
    """Cut a record (num_samples,) at 125 Hz into the beats that start at `start`, in ascending order."""
    rr = local_rr(start)
    length = np.minimum(np.round(BEAT_PER_RR * rr), len(signal) - start).astype(np.int64)
    reach = np.minimum(start[:, None] + np.arange(NUM_SAMPLES), len(signal) - 1)
    intervals = log_ratios(*rr_before_after(start))
    keep = len(signal) - start >= MIN_SAMPLES
    return Record(scale_and_pad(signal[reach[keep]], length[keep]), label[keep], intervals[keep])


def local_rr(start: NDArray[np.int64]) -> NDArray[np.float64]:
    """Median RR interval, in samples, of each beat's 10-second window; the record's where a window has no pair."""
    window = start // int(WINDOW_S * RATE_HZ)
    gaps = np.diff(start)
    within = window[1:] == window[:-1]
    numbers = np.arange(window[-1] + 1)
    medians = np.full(len(numbers), np.median(gaps))
    present = np.isin(numbers, window[1:][within])
    medians[present] = median(gaps[within], window[1:][within], numbers[present])
    return medians[window]
