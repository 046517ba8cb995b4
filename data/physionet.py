"""PhysioNet's databases as published (WFDB records) in, Beats with records and patients out.

mitdb: labels from beat annotations, AAMI classes. ptbdb: the diagnosis in a header's "Reason for admission". ptbxl: the
diagnostic superclass of `scp_codes`. One lead of each record; R peaks from annotations where there are any, else found.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from data.beats import RATE_HZ, Beats, derive, measure_length
from data.known import CLASSES, MissingFile, database_by_hand
from data.parquet import check_is_data
from data.record import Record, read_annotations
from data.recorded import DS1, DS2, PACED, Recorded, group_codes, parts
from data.segment import TOO_SHORT, Rhythm, cut, find_r_peaks, resample
from data.split import Parts
from data.store import ORIGIN, Writer, read_recorded

RECORDS = tuple(str(record) for record in sorted(DS1 + DS2 + PACED))
SAME_PATIENT = {"202": "201"}
AAMI = {"N": "NLRej", "S": "AaJS", "V": "VE", "F": "F", "Q": "/fQ"}
"""ANSI/AAMI EC57: annotation symbols of each class."""
CLASS_OF = {symbol: label for label, name in enumerate(CLASSES["arrhythmia"]) for symbol in AAMI[name]}
DIAGNOSES = {"Healthy control": 0, "Myocardial infarction": 1}
"""Of ptbdb, as in Kachuee et al. 2018; its other diagnoses are few."""
SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
IMITATION = "Synthetic, by data.imitate"
"""Comment in the header of a synthetic record."""
TOO_FEW = "in records with fewer than two beats"


class Recording(NamedTuple):
    """One record to read."""

    stem: Path
    """Path without suffix."""
    record: str
    leads: tuple[str, ...]
    """The first of these that it has is read, else its first channel."""
    patient: str | None = None
    label: int | None = None
    """Of all its beats; None where each has its own annotation."""
    fold: int | None = None


class Listing(NamedTuple):
    recordings: list[Recording]
    left_out: dict[str, int]
    """Records that are not read, by reason."""

    @property
    def remarks(self) -> tuple[str, ...]:
        return tuple(f"{count:,} records left out: {reason}" for reason, count in self.left_out.items())


class Database(NamedTuple):
    source: str
    classes: tuple[str, ...]
    list_records: Callable[[Path], Listing]
    suffixes: tuple[str, ...]


def list_mitdb(folder: Path) -> Listing:
    """Its 48 records; 201 and 202 are one patient.

    Raises:
        ValueError: some are missing.
    """
    missing = [record for record in RECORDS if not _is_whole(folder / record, DATABASES["mitdb"].suffixes)]
    if missing:
        raise ValueError(_lacks(folder, "mitdb", missing, len(RECORDS)))
    leads = ("MLII",)
    return Listing([Recording(folder / name, name, leads, SAME_PATIENT.get(name, name)) for name in RECORDS], {})


def list_ptbdb(folder: Path) -> Listing:
    """Records of healthy controls and of infarctions; the patient is the folder's name, unknown in a flat copy.

    Raises:
        ValueError: no record at all, or a header without its samples.
    """
    recordings: list[Recording] = []
    left_out: Counter[str] = Counter()
    headers = sorted(folder.rglob("*.hea"))
    missing = [path.stem for path in headers if not _is_whole(path.with_suffix(""), DATABASES["ptbdb"].suffixes)]
    if not headers:
        raise ValueError(f"{folder} has no records: {_how_to_get('ptbdb', folder)}")
    if missing:
        raise ValueError(_lacks(folder, "ptbdb", missing, len(headers)))
    for path in headers:
        found = re.search(r"^# *Reason for admission: *(.*?) *$", path.read_text(errors="replace"), re.MULTILINE)
        diagnosis = found[1] if found else "none"
        if diagnosis not in DIAGNOSES:
            left_out[f"diagnosis {diagnosis}, neither healthy control nor myocardial infarction"] += 1
            continue
        name = path.parent.name
        patient = name if re.fullmatch(r"patient\d+", name) else None
        recordings.append(Recording(path.with_suffix(""), path.stem, ("ii", "II"), patient, DIAGNOSES[diagnosis]))
    return Listing(recordings, dict(left_out))


def list_ptbxl(folder: Path) -> Listing:
    """Records of exactly one diagnostic superclass, whatever its likelihood, with patient and official fold.

    Raises:
        ValueError: its tables are missing or of another form, or some records are missing.
    """
    try:
        statements = _read_csv(folder / "scp_statements.csv")
        superclass = {row[""]: row["diagnostic_class"] for row in statements if row["diagnostic"] == "1.0"}
        rows = [
            (
                row["ecg_id"],
                str(int(float(row["patient_id"]))),
                row["scp_codes"],
                int(row["strat_fold"]),
                row["filename_lr"],
            )
            for row in _read_csv(folder / "ptbxl_database.csv")
        ]
    except (OSError, csv.Error, KeyError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder} lacks a readable ptbxl_database.csv or scp_statements.csv: {said}") from error
    recordings: list[Recording] = []
    left_out: Counter[str] = Counter()
    for ecg, patient, codes, fold, filename in rows:
        found = {superclass[code] for code in re.findall(r"'([^']+)':", codes) if code in superclass}
        if len(found) != 1:
            left_out["of several diagnostic superclasses" if found else "without a diagnostic statement"] += 1
            continue
        label = SUPERCLASSES.index(found.pop())
        recordings.append(Recording(folder / filename, ecg, ("II",), patient, label, fold))
    missing = [one.record for one in recordings if not _is_whole(one.stem, DATABASES["ptbxl"].suffixes)]
    if missing:
        raise ValueError(_lacks(folder, "ptbxl", missing, len(recordings)))
    return Listing(recordings, dict(left_out))


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def read_database(name: str, folder: Path, records: Collection[str] | None = None) -> Recorded:
    """All beats of the database, or of the named records.

    Raises:
        ValueError: the folder or a record in it cannot be read, or there is not one beat; one line.
    """
    listing = _list(name, folder)
    database = _as_found(DATABASES[name], listing)
    wanted = (recording for recording in listing.recordings if records is None or recording.record in records)
    pieces = [_read(recording, database) for recording in wanted]
    if not any(len(piece.beats) for piece in pieces):
        raise ValueError(f"{folder} has no beats of {name}")
    origin = pa.concat_tables([piece.origin for piece in pieces])
    dropped: Counter[str] = Counter()
    for piece in pieces:
        dropped.update(piece.beats.dropped)
    signal = torch.cat([piece.beats.signal for piece in pieces])
    target = torch.cat([piece.beats.labels for piece in pieces])
    intervals = torch.cat([piece.beats.intervals for piece in pieces if piece.beats.intervals is not None])
    beats = Beats(
        signal=signal,
        target=target,
        valid_length=measure_length(signal),
        classes=database.classes,
        rate_hz=RATE_HZ,
        source=database.source,
        fingerprint=derive(name, signal.numpy(), target.numpy(), intervals.numpy()),
        group=group_codes(origin["patient"]) if "patient" in origin.column_names else None,
        intervals=intervals,
        dropped=dict(dropped),
        remarks=listing.remarks + _silent(sum(not len(piece.beats) for piece in pieces)),
    )
    return Recorded(beats, origin)


def build(name: str, folder: Path, out: Path, progress: Callable[[int, int], None]) -> None:
    """Write the beats of a database to one Parquet file, record by record.

    Args:
        progress: called with the records done and all of them.

    Raises:
        ValueError: as `read_database`.
    """
    listing = _list(name, folder)
    database, num_silent = _as_found(DATABASES[name], listing), 0
    with Writer(out) as writer:
        for done, recording in enumerate(listing.recordings, start=1):
            piece = _read(recording, database)
            writer.append(piece)
            num_silent += not len(piece.beats)
            progress(done, len(listing.recordings))
        writer.remark(*listing.remarks, *_silent(num_silent))


def _as_found(database: Database, listing: Listing) -> Database:
    """Records of `data.imitate` must not pass for those of patients."""
    first = next((one.stem.with_name(f"{one.stem.name}.hea") for one in listing.recordings), None)
    imitated = first is not None and IMITATION in first.read_text(errors="replace")
    return database._replace(source=f"synthetic, in the layout of {database.source}") if imitated else database


def _silent(num_records: int) -> tuple[str, ...]:
    return (f"{num_records:,} records in which no beat was found",) if num_records else ()


def _list(name: str, folder: Path) -> Listing:
    if not folder.is_dir():
        raise MissingFile(f"{folder} is missing: the records of {name} are needed; {_how_to_get(name, folder)}")
    return DATABASES[name].list_records(folder)


def _how_to_get(name: str, folder: Path) -> str:
    return f"run `python -m data get {name}`, or {database_by_hand(name, folder.parent)}"


def _lacks(folder: Path, name: str, missing: list[str], total: int) -> str:
    named = f"{' '.join(missing[:5])}{' …' if len(missing) > 5 else ''}"
    suffixes = ", ".join(DATABASES[name].suffixes)
    return (
        f"{folder} lacks {len(missing)} of {total} records ({named}; {suffixes} of each): {_how_to_get(name, folder)}"
    )


def _is_whole(stem: Path, suffixes: Collection[str]) -> bool:
    return all(stem.with_name(stem.name + suffix).is_file() for suffix in suffixes)


def _read(recording: Recording, database: Database) -> Recorded:
    record = Record.open(recording.stem, recording.leads)
    signal, rate_hz = record.read(), record.rate_hz
    if recording.label is not None:
        sample = find_r_peaks(signal, rate_hz)
        label, symbol = np.full(len(sample), recording.label), None
    else:
        sample, symbols = read_annotations(recording.stem, "atr")
        symbol = np.array(symbols, np.str_)
        label = np.array([CLASS_OF.get(name, -1) for name in symbols], np.int64)
        sample, symbol, label = sample[label >= 0], symbol[label >= 0], label[label >= 0]
    dropped = {TOO_FEW: 1} if len(sample) == 1 else {}
    if dropped:
        sample, label, symbol = sample[:0], label[:0], None if symbol is None else symbol[:0]
    rhythm = record.measure(sample)
    beats = cut(resample(signal, rate_hz, RATE_HZ), rhythm.start, rhythm.length)
    return _piece(recording, database, sample, label, symbol, record.lead, rhythm, beats, dropped)


def _piece(
    recording: Recording,
    database: Database,
    sample: NDArray[np.int64],
    label: NDArray[np.int64],
    symbol: NDArray[np.str_] | None,
    lead: str,
    rhythm: Rhythm,
    cut_out: NDArray[np.float32],
    dropped: dict[str, int],
) -> Recorded:
    kept, number = rhythm.kept, len(cut_out)
    known: dict[str, Any] = {
        "patient": [recording.patient] * number,
        "record": [recording.record] * number,
        "sample": sample[kept],
        "lead": [lead] * number,
        "symbol": None if symbol is None else symbol[kept],
        "rr_before_s": rhythm.rr_before_s,
        "rr_after_s": rhythm.rr_after_s,
        "fold": None if recording.fold is None else [recording.fold] * number,
    }
    origin = pa.table({name: pa.array(known[name], kind) for name, kind in ORIGIN.items() if known[name] is not None})
    signal, target = torch.from_numpy(cut_out).unsqueeze(1), torch.from_numpy(label[kept])
    beats = Beats(
        signal=signal,
        target=target,
        valid_length=measure_length(signal),
        classes=database.classes,
        rate_hz=RATE_HZ,
        source=database.source,
        fingerprint=derive(recording.record, cut_out, label),
        group=group_codes(origin["patient"]),
        intervals=torch.from_numpy(rhythm.intervals),
        dropped=dropped | ({TOO_SHORT: int((~kept).sum())} if not kept.all() else {}),
    )
    return Recorded(beats, origin)


DATABASES: dict[str, Database] = {
    "mitdb": Database("MIT-BIH Arrhythmia (records)", CLASSES["arrhythmia"], list_mitdb, (".hea", ".dat", ".atr")),
    "ptbdb": Database("PTB Diagnostic (records)", CLASSES["ptb"], list_ptbdb, (".hea", ".dat")),
    "ptbxl": Database("PTB-XL (records)", SUPERCLASSES, list_ptbxl, (".hea", ".dat")),
}


def _parts(name: str, data_dir: Path, protocol: str) -> Parts:
    """From DATA_DIR/NAME.parq, which `python -m data build` writes, or else from the records in DATA_DIR/NAME."""
    built, folder = data_dir / f"{name}.parq", data_dir / name
    if built.exists():
        return parts(partial(read_recorded, built), protocol, str(built), partial(check_is_data, built))
    return parts(partial(read_database, name, folder), protocol, str(folder), partial(_list, name, folder))


mitdb, ptbdb, ptbxl = (partial(_parts, name) for name in DATABASES)
