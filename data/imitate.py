"""WFDB records of the ECG model of `data.synthetic`, laid out as PhysioNet publishes its databases.

They try the way from records to beats without a download: no figure measured on them says anything about hearts.
"""

import csv
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from data.known import CLASSES
from data.physionet import AAMI, DIAGNOSES, IMITATION, RECORDS, SAME_PATIENT
from data.recorded import PACED
from data.synthetic import WAVES, Q, R, S, Shape, T, draw_patients, draw_target, make_arrhythmic, make_infarcted, vary

LEADS = {
    "I": (0.6, 0.6),
    "II": (1.0, 1.0),
    "III": (0.4, 0.4),
    "AVR": (-0.8, -0.8),
    "AVL": (0.1, 0.1),
    "AVF": (0.7, 0.7),
    "V1": (-0.5, 0.2),
    "V2": (-0.6, 0.8),
    "V3": (0.3, 0.9),
    "V4": (1.1, 0.9),
    "V5": (1.1, 0.8),
    "V6": (0.8, 0.7),
}
"""Weights in each lead, in mV, of QRS (with the pacing spike) and of P, ST and T; limb leads obey Einthoven's law."""
IN_QRS = np.isin(WAVES, ["Q", "R", "S", "spike"])
REACH = 4
"""Widths from its centre at which a wave is cut off."""
LIMIT_MV = 5.0
SHORTEST_RR_S = 0.35
SHORTEST_S = 5.0
"""Of a record: a few beats, which the detector needs too."""

CHANNELS = {
    "100": ("MLII", "V5"),
    "102": ("V5", "V2"),
    "103": ("MLII", "V2"),
    "104": ("V5", "V2"),
    "114": ("V5", "MLII"),
    "117": ("MLII", "V2"),
    "123": ("MLII", "V5"),
    "124": ("MLII", "V4"),
}
"""Of those records of mitdb that have not MLII and V1."""
HEALTHY, MI = DIAGNOSES
SHARES = (0.868, 0.04, 0.08, 0.01, 0.002)
"""N S V F Q, before the normal beats of paced records become Q."""
VENTRICULAR_HEIGHT = 2.0
"""Beats scaled to 0…1 need none; in a record a wide QRS as low as the others is below the detector's threshold."""
ADMISSIONS = (HEALTHY, MI, MI, MI, HEALTHY, MI, MI, "Bundle branch block")
"""Reasons for admission to ptbdb, a patient each, over and over."""
SUPERCLASS_OF = {"NORM": "NORM", "IMI": "MI", "ASMI": "MI", "NDT": "STTC", "CLBBB": "CD", "LVH": "HYP"}
"""Of SCP codes."""
FINDINGS = (("NORM",), ("IMI",), ("NDT",), ("CLBBB",), ("LVH",), ("ASMI", "IMI"), ("IMI", "LVH"), ())
"""SCP codes of ptbxl: ten patients each, one of every fold, over and over."""
NUM_FOLDS = 10
FIRST_PATIENT = 10_001


class Rhythm(NamedTuple):
    """The beats of all records, one record after the other."""

    record: NDArray[np.int64]
    """(num_beats,): the record's place among the records."""
    patient: NDArray[np.int64]
    shape: Shape
    usual_s: NDArray[np.float64]
    """(num_beats,): the patient's usual RR interval."""


class Layout(NamedTuple):
    write: Callable[[Path, int, float, Generator], int]
    num_records: int
    seconds: float
    """Of each record."""


def write_records(
    layout: str, folder: Path, *, num_records: int | None = None, seconds: float | None = None, seed: int = 0
) -> int:
    """Write records, with annotations or tables where the database has them, to a new or empty folder.

    Args:
        layout: a name of `LAYOUTS`.
        num_records, seconds: of each record; None for as many and as long as `LAYOUTS` says.

    Returns:
        How many beats there are in them.

    Raises:
        ValueError: an unknown layout, a folder with files in it, more records than the database has names for, no
            record, or records too short for a beat of every class.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout}; choose from {', '.join(LAYOUTS)}")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: synthetic records do not go beside other files")
    write, own_num_records, own_seconds = LAYOUTS[layout]
    number = own_num_records if num_records is None else num_records
    length_s = own_seconds if seconds is None else seconds
    if number < 1 or length_s < SHORTEST_S:
        raise ValueError(f"{number} records of {length_s:g} s: at least 1 of {SHORTEST_S:g} s is needed")
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    with warnings.catch_warnings():  # the wfdb package uses pandas in ways that pandas is giving up
        warnings.simplefilter("ignore", DeprecationWarning)
        return write(folder, number, length_s, random)


def _write_mitdb(folder: Path, num_records: int, seconds: float, random: Generator) -> int:
    if num_records > len(RECORDS):
        raise ValueError(f"mitdb has {len(RECORDS)} records, not {num_records}")
    names = RECORDS[:num_records]
    rhythm = _draw([RECORDS.index(SAME_PATIENT.get(name, name)) for name in names], seconds, random)
    target = draw_target(len(rhythm.record), SHARES, random)
    paced = np.isin(names, list(map(str, PACED)))[rhythm.record]
    target[paced & (target == 0)] = CLASSES["arrhythmia"].index("Q")
    before, after = make_arrhythmic(target, rhythm.shape, deepcopy(rhythm.shape), random)
    for wave in (Q, R, S):
        rhythm.shape.amplitude[target == CLASSES["arrhythmia"].index("V"), wave] *= VENTRICULAR_HEIGHT
    interval_s = np.maximum(rhythm.usual_s * before * np.roll(after, 1), SHORTEST_RR_S)
    for place, name in enumerate(names):
        leads = CHANNELS.get(name, ("MLII", "V1"))
        peak_s, signal = _record(rhythm, interval_s, place, seconds, 360, leads, random)
        _write_signal(folder / name, signal, 360, leads, "212", 200, 1024)
        classes = [CLASSES["arrhythmia"][label] for label in target[rhythm.record == place]]
        symbols = [str(random.choice(list(AAMI[each]))) for each in classes]
        _write_annotations(folder / name, np.round(peak_s * 360).astype(np.int64), symbols)
    return len(target)


def _write_ptbdb(folder: Path, num_records: int, seconds: float, random: Generator) -> int:
    patients = _patients(num_records)
    rhythm = _draw(patients, seconds, random)
    admission = [ADMISSIONS[patient % len(ADMISSIONS)] for patient in patients]
    infarcted = np.array([reason == MI for reason in admission])[rhythm.record]
    make_infarcted(np.flatnonzero(infarcted), rhythm.shape, rhythm.patient, random)
    interval_s = rhythm.usual_s * random.normal(1.0, 0.04, len(rhythm.record))
    leads = [lead.lower() for lead in LEADS]
    for place, patient in enumerate(patients):
        _, signal = _record(rhythm, interval_s, place, seconds, 1000, leads, random)
        stem = folder / f"patient{patient + 1:03d}" / f"s{place + 1:04d}_re"
        _write_signal(stem, signal, 1000, leads, "16", 2000, 0, f"Reason for admission: {admission[place]}")
    return len(rhythm.record)


def _write_ptbxl(folder: Path, num_records: int, seconds: float, random: Generator) -> int:
    patients = _patients(num_records)
    rhythm = _draw(patients, seconds, random)
    findings = [FINDINGS[patient // NUM_FOLDS % len(FINDINGS)] for patient in patients]
    _make_found(findings, rhythm, random)
    interval_s = rhythm.usual_s * random.normal(1.0, 0.04, len(rhythm.record))
    rows: list[list[Any]] = []
    for place, patient in enumerate(patients):
        _, signal = _record(rhythm, interval_s, place, seconds, 100, list(LEADS), random)
        ecg = place + 1
        name = f"{ecg // 1000 * 1000:05d}/{ecg:05d}"
        _write_signal(folder / f"records100/{name}_lr", signal, 100, list(LEADS), "16", 1000, 0)
        codes = {**dict.fromkeys(findings[place], 100.0), "SR": 0.0}
        files = f"records100/{name}_lr", f"records500/{name}_hr"
        rows.append([ecg, float(FIRST_PATIENT + patient), codes, patient % NUM_FOLDS + 1, *files])
    names = ["ecg_id", "patient_id", "scp_codes", "strat_fold", "filename_lr", "filename_hr"]
    _write_csv(folder / "ptbxl_database.csv", [names, *rows])
    statements = [[code, "1.0", superclass] for code, superclass in SUPERCLASS_OF.items()]
    _write_csv(folder / "scp_statements.csv", [["", "diagnostic", "diagnostic_class"], *statements, ["SR", "", ""]])
    return len(rhythm.record)


def _patients(num_records: int) -> list[int]:
    """Of every three patients, the first has two records."""
    return [place * 3 // 4 for place in range(num_records)]


def _draw(patients: Sequence[int], seconds: float, random: Generator) -> Rhythm:
    """Beats of a record of each of these patients, as many as the patient's heart rate makes."""
    shapes, usual_s = draw_patients(max(patients) + 1, random)
    num_beats = np.maximum(2, seconds / usual_s[patients]).astype(np.int64)
    record, patient = np.repeat(np.arange(len(patients)), num_beats), np.repeat(patients, num_beats)
    return Rhythm(record, patient, vary(shapes, patient, random), usual_s[patient])


def _make_found(findings: Sequence[tuple[str, ...]], rhythm: Rhythm, random: Generator) -> None:
    """MI as in `data.synthetic`; CD widens QRS, HYP makes it high, STTC turns T over."""

    def beats(superclass: str) -> NDArray[np.int64]:
        found = [superclass in (SUPERCLASS_OF[code] for code in codes) for codes in findings]
        return np.flatnonzero(np.array(found)[rhythm.record])

    make_infarcted(beats("MI"), rhythm.shape, rhythm.patient, random)
    rhythm.shape.amplitude[beats("STTC"), T] *= -0.3
    for wave in (Q, R, S):
        rhythm.shape.width[beats("CD"), wave] *= 1.8
        rhythm.shape.amplitude[beats("HYP"), wave] *= 1.7


def _record(
    rhythm: Rhythm,
    interval_s: NDArray[np.float64],
    place: int,
    seconds: float,
    rate_hz: int,
    leads: Sequence[str],
    random: Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One record.

    Args:
        interval_s: (num_beats,) RR interval before each beat of all records.

    Returns:
        When its R waves peak, in seconds, and its signal (num_samples, num_leads) in mV.
    """
    here = rhythm.record == place
    usual_s, shape = rhythm.usual_s[here], rhythm.shape.select(here)
    time_s = _times(usual_s, interval_s[here], seconds, random)[:, None]
    # As in `data.synthetic`: waves shorten with the square root of RR, not with RR.
    scale_s = np.sqrt(usual_s)[:, None] / (2 * np.pi)
    centre, width = (time_s + shape.angle * scale_s) * rate_hz, shape.width * scale_s * rate_hz
    num_samples = round(seconds * rate_hz)
    parts = np.zeros((2, num_samples))
    for wave, in_qrs in enumerate(IN_QRS):
        parts[0 if in_qrs else 1] += _bells(shape.amplitude[:, wave], centre[:, wave], width[:, wave], num_samples)
    signal = np.array([LEADS[lead.upper().removeprefix("ML")] for lead in leads]) @ parts
    signal += _wander(len(leads), np.arange(num_samples) / rate_hz, random)
    signal += random.uniform(0.005, 0.04) * random.standard_normal(signal.shape)
    return centre[:, R] / rate_hz, signal.T.clip(-LIMIT_MV, LIMIT_MV)


def _times(
    usual_s: NDArray[np.float64], interval_s: NDArray[np.float64], seconds: float, random: Generator
) -> NDArray[np.float64]:
    """When the beats of one record come, in seconds; after the last there may be too little left for a beat."""
    first, last = usual_s[[0, -1]] * random.uniform(0.2, 0.9, 2)
    ends = np.cumsum([first, *interval_s[1:], last])
    return ends[:-1] * (seconds / ends[-1])


def _bells(
    amplitude: NDArray[np.floating], centre: NDArray[np.floating], width: NDArray[np.floating], num_samples: int
) -> NDArray[np.float64]:
    """Sum (num_samples,) of one Gaussian a beat; `centre` and `width` in samples."""
    reach = int(np.ceil(REACH * width.max()))
    sample = np.rint(centre).astype(np.int64)[:, None] + np.arange(-reach, reach + 1)
    height = amplitude[:, None] * np.exp(-0.5 * ((sample - centre[:, None]) / width[:, None]) ** 2)
    inside = (sample >= 0) & (sample < num_samples)
    return np.bincount(sample[inside], height[inside], num_samples).astype(np.float64)


def _wander(num_leads: int, time_s: NDArray[np.float64], random: Generator) -> NDArray[np.float64]:
    """Baseline (num_leads, num_samples) in mV: a sine of breathing's frequency."""
    height, rate_hz, phase = random.uniform([[0.0], [0.1], [0.0]], [[0.1], [0.4], [2 * np.pi]], (3, num_leads))
    return height[:, None] * np.sin(2 * np.pi * rate_hz[:, None] * time_s + phase[:, None])


def _write_signal(
    stem: Path,
    signal: NDArray[np.float64],
    rate_hz: int,
    leads: Sequence[str],
    form: str,
    gain: float,
    baseline: int,
    *comments: str,
) -> None:
    import wfdb

    number = len(leads)
    stem.parent.mkdir(parents=True, exist_ok=True)
    wfdb.wrsamp(
        stem.name,
        fs=rate_hz,
        units=["mV"] * number,
        sig_name=list(leads),
        p_signal=signal,
        fmt=[form] * number,
        adc_gain=[gain] * number,
        baseline=[baseline] * number,
        comments=[IMITATION, *comments],
        write_dir=str(stem.parent),
    )


def _write_annotations(stem: Path, sample: NDArray[np.int64], symbols: Sequence[str]) -> None:
    """Beats, and two annotations that are none: a change of rhythm before the first, noise after it."""
    import wfdb

    at = np.r_[sample[0] // 2, sample[0], sample[:2].mean().astype(np.int64), sample[1:]]
    notes = ["(N", *[""] * (len(at) - 1)]
    symbol = ["+", symbols[0], "~", *symbols[1:]]
    wfdb.wrann(stem.name, "atr", at, symbol=symbol, aux_note=notes, write_dir=str(stem.parent))


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(rows)


LAYOUTS: dict[str, Layout] = {
    "mitdb": Layout(_write_mitdb, 48, 60.0),
    "ptbdb": Layout(_write_ptbdb, 40, 30.0),
    "ptbxl": Layout(_write_ptbxl, 120, 10.0),
}
