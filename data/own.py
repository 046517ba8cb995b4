"""Beats of the user's own: a CSV or Parquet table of one beat a row, made to fit.

Columns are known by name: label (target, label, class or y), patient (patient, patient_id, group or subject), and what
`data.store.ORIGIN` names. All others are signal, in order of time, zero or missing after a beat's end.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from data.beats import NUM_SAMPLES, RATE_HZ, Beats, derive, measure_length, scale_and_pad
from data.csv import read_first_row, read_rows
from data.parquet import TOLERANCE, check_is_data, check_names, check_numeric, index_columns, opened, read_columns
from data.recorded import Recorded, group_codes, parts
from data.segment import resample
from data.split import Parts
from data.store import ORIGIN, is_own, read_recorded
from experiments.files import sha256

LABEL, PATIENT = "label", "patient"
ROLES = {
    **{name: name for name in ORIGIN},
    **dict.fromkeys(("target", "label", "class", "y"), LABEL),
    **dict.fromkeys(("patient", "patient_id", "group", "subject"), PATIENT),
}
UNNAMED = ("", "Unnamed: 0")
"""How pandas writes and reads back the name of an index."""
MAX_CLASSES = 100
RATES_HZ = (10, 100_000)
LARGEST = float(np.finfo(np.float32).max)
SILENT = "without any signal"
BLOCK = 8192
"""Beats that are worked on at once."""


class Rows(NamedTuple):
    """A table as it was read."""

    names: list[str]
    """Of the signal columns."""
    values: NDArray[np.floating]
    """(num_rows, num_columns); NaN where a value is missing."""
    others: pa.Table
    roles: dict[str, str]
    """Name of the column of `others` for each role."""
    headed: bool
    first: int = 0
    """The row of the file where they start."""


class Layout(NamedTuple):
    """What the columns of a table are."""

    names: list[str]
    """Of those that may be signal: the first of them may count the rows."""
    roles: dict[str, str]
    headed: bool


def csv(path: Path, protocol: str) -> Parts:
    """Beats of `PATH.csv` or `PATH.csv@RATE_HZ`."""
    return _parts("csv", path, protocol)


def parquet(path: Path, protocol: str) -> Parts:
    """Beats of `PATH.parq` or `PATH.parq@RATE_HZ`; what `data.store.Writer` wrote is read as such."""
    return _parts("parquet", path, protocol)


def read_own(kind: str, place: Path, records: Collection[str] | None = None) -> Recorded:
    """Read a table of beats, or its beats of the named records.

    Args:
        kind: csv or parquet.
        place: the file's path, with @ and its sampling rate in Hz behind it if that is not 125.

    Raises:
        ValueError: no such table, or something in it that is no beat; one line with file, row (from 0) and column.
    """
    path, rate_hz = path_and_rate(place)
    check_is_data(path)
    if kind == "csv":
        return _of_records(path, _fit(path, _read_csv(path), rate_hz), records)
    with opened(path) as file:
        rows = None if is_own(file) else _read_parquet(path, file)
    if rows is None:
        check_no_rate(path, rate_hz)
        return read_recorded(path, records)
    return _of_records(path, _fit(path, rows, rate_hz), records)


def check_no_rate(path: Path, rate_hz: float | None) -> None:
    if rate_hz is not None:
        raise ValueError(f"{path} was written by `python -m data build`, which knows its sampling rate: leave out @")


def _parts(kind: str, place: Path, protocol: str) -> Parts:
    path, _ = path_and_rate(place)
    return parts(partial(read_own, kind, place), protocol, str(path), partial(check_is_data, path))


def path_and_rate(place: Path) -> tuple[Path, float | None]:
    """What follows the last @ is a sampling rate, unless the file is called so."""
    head, at, tail = str(place).rpartition("@")
    try:
        rate_hz = float(tail)
    except ValueError:
        return place, None
    if not at or (place.exists() and not Path(head).exists()):
        return place, None
    low, high = RATES_HZ
    if not low <= rate_hz <= high:
        raise ValueError(f"{place}: sampling rate {tail} Hz is not within {low}…{high}")
    return Path(head), rate_hz


def _of_records(path: Path, whole: Recorded, records: Collection[str] | None) -> Recorded:
    if records is None:
        return whole
    if "record" not in whole.origin.column_names:
        raise ValueError(f"{path} has no column record")
    wanted = np.array([record in records for record in whole.origin["record"].to_pylist()])
    return Recorded(whole.beats.select(torch.from_numpy(wanted)), whole.origin.filter(pa.array(wanted)))


def _read_csv(path: Path) -> Rows:
    with path.open("rb") as stream:
        layout, names = csv_layout(path, stream)
        values, others = read_rows(path, stream, names, texts=list(layout.roles.values()))
    return _without_index(path, Rows(layout.names, values, others, layout.roles, layout.headed))


def csv_layout(path: Path, stream: IO[bytes]) -> tuple[Layout, list[str]]:
    """What the columns are, and the names of all; `stream` stands before the first row then."""
    names = read_first_row(path, stream)
    headed = _is_header(names)
    if not headed:
        names = [str(place) for place in range(len(names))]
        stream.seek(0)
    roles = _roles(path, names) if headed else {LABEL: names[-1]}
    signal = [name for name in names if name not in roles.values()]
    _check_signal_names(path, [name for name in signal if name not in UNNAMED])
    return Layout(signal, roles, headed), names


def _is_header(cells: Sequence[str]) -> bool:
    """Numbers, be the last cell a word, are a beat, unless they are whole, all different and close: column numbers."""
    if any(cell.lower() in ROLES for cell in cells):
        return True
    numbers = [_number(cell) for cell in (cells if cells[-1].isdecimal() else cells[:-1]) if cell]
    places = {number for number in numbers if isinstance(number, int)}
    counts = len(places) == len(numbers) and all(0 <= place < 2 * len(places) for place in places)
    return counts or None in numbers


def _read_parquet(path: Path, file: pq.ParquetFile) -> Rows:
    layout, dtype = parquet_layout(path, file.schema_arrow)
    values = read_columns(path, file, layout.names, dtype=dtype)
    others = file.read(columns=list(layout.roles.values()))
    others.validate(full=True)  # that text is UTF-8
    return _without_index(path, Rows(layout.names, values, others, layout.roles, layout.headed))


def parquet_layout(path: Path, schema: pa.Schema) -> tuple[Layout, type[np.floating]]:
    """What the columns are, and the type that holds all of the signal."""
    index = {name for name in index_columns(schema) if name.lower() not in ROLES}
    names = [name for name in schema.names if name not in index]
    roles = _roles(path, names)
    signal = [name for name in names if name not in roles.values()]
    _check_signal_names(path, [name for name in signal if name not in UNNAMED])
    for name in signal:
        check_numeric(path, schema.field(name))
    single = all(pa.types.is_float32(schema.field(name).type) for name in signal)
    return Layout(signal, roles, headed=True), np.float32 if single else np.float64


def _without_index(path: Path, rows: Rows) -> Rows:
    """A first column without a name that counts the rows is no signal."""
    start = rows.values[0, 0] if rows.headed else 0
    few = not rows.headed and len(rows.values) <= 2  # two beats may start so by chance
    return without_first(path, rows) if counts_rows(rows, start) and not few else check_signal(path, rows)


def counts_rows(rows: Rows, start: float) -> bool:
    """Whether the first column has no name and counts the rows, the file's first row being `start`."""
    first = rows.values[:, 0]
    nameless = not rows.headed or rows.names[0] in UNNAMED
    return nameless and np.array_equal(first, start + (rows.first + np.arange(len(first))))


def without_first(path: Path, rows: Rows) -> Rows:
    return check_signal(path, rows._replace(names=rows.names[1:], values=rows.values[:, 1:]))


def check_signal(path: Path, rows: Rows) -> Rows:
    _check_signal_names(path, rows.names)
    return rows


def _roles(path: Path, names: Sequence[str]) -> dict[str, str]:
    check_names(path, names)
    roles: dict[str, str] = {}
    for name in names:
        role = ROLES.get(name.lower())
        if role in roles:
            raise ValueError(f"{path}: columns {roles[role]} and {name} are both the {role}: keep one")
        if role is not None:
            roles[role] = name
    return roles


def _check_signal_names(path: Path, names: Sequence[str]) -> None:
    """Where most are numbered, all must be, in order: their place is the time, and what has another name no signal."""
    choices = ", ".join(ROLES)
    if len(names) < 2:
        raise ValueError(f"{path} has {len(names)} signal columns; two at least are needed, beside {choices}")
    if set(names) & set(UNNAMED):
        raise ValueError(f"{path}: a column has no name and does not count the rows: leave it out, or name it")
    found = [re.fullmatch(r"(.*?)(\d+(?:\.\d+)?)", name) for name in names]
    [(stem, count)] = Counter(match and match[1] for match in found).most_common(1)
    if stem is None or 2 * count <= len(names):
        return
    before = -1.0
    for name, match in zip(names, found, strict=True):
        if match is None or match[1] != stem:
            raise ValueError(f"{path}: column {name} is neither numbered, as signal is, nor one of {choices}")
        if float(match[2]) <= before:
            raise ValueError(f"{path}: column {name} is out of order; samples must be in order of time")
        before = float(match[2])


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return None


def _fit(path: Path, rows: Rows, rate_hz: float | None) -> Recorded:
    """Resample, crop or pad, drop what is silent, scale."""
    target, classes = _labels(path, rows)
    origin = origin_of(path, rows)
    values, remarks = to_layout(path, rows, rate_hz)
    sounding = (values != 0).any(axis=1)
    num_silent = int((~sounding).sum())
    if num_silent == len(sounding):
        raise ValueError(f"{path} has {num_silent} rows {SILENT} and no other")
    values = values[sounding] if num_silent else values
    scaled = is_scaled(values.min(), values.max())
    signal = scale(values, scaled)
    remarks += scaling_remarks(scaled, int((signal == 0).all(axis=1).sum()))
    tensor, origin = torch.from_numpy(signal).unsqueeze(1), origin.filter(pa.array(sounding))
    beats = Beats(
        signal=tensor,
        target=None if target is None else torch.from_numpy(target[sounding]),
        valid_length=measure_length(tensor),
        classes=classes,
        rate_hz=RATE_HZ,
        source=path.name,
        fingerprint=derive(sha256(path), *remarks),
        group=group_codes(origin[PATIENT]) if PATIENT in origin.column_names else None,
        dropped={SILENT: num_silent} if num_silent else {},
        remarks=tuple(remarks),
    )
    return Recorded(beats, origin)


def to_layout(path: Path, rows: Rows, rate_hz: float | None) -> tuple[NDArray[np.floating], list[str]]:
    """The beats at 125 Hz and 187 samples long, and what was done."""
    values, remarks = _at_rate(rows.values, _end(path, rows), rate_hz)
    width = values.shape[1]
    if width != NUM_SAMPLES:
        remarks.append(f"{'cropped' if width > NUM_SAMPLES else 'padded'} from {width} to {NUM_SAMPLES} samples")
        values = np.pad(values[:, :NUM_SAMPLES], ((0, 0), (0, max(0, NUM_SAMPLES - width))))
    return values, remarks


def _labels(path: Path, rows: Rows) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Each row's place among the sorted distinct labels, and these: as numbers where all are numbers, else as text."""
    if LABEL not in rows.roles:
        return None, ()
    name = rows.roles[LABEL]
    kind = _plain(rows.others[name]).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_string(kind)):
        raise ValueError(f"{path}: column {name} holds {' '.join(str(kind).split())}, not whole numbers or text")
    column = column_of(path, rows, LABEL, pa.string())
    _refuse(path, rows, LABEL, column.is_null().to_numpy(), "the label is missing")
    encoded = column.combine_chunks().dictionary_encode()
    texts, place = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    numbers = [_number(text) for text in texts]
    keys: list[Any] = texts if None in numbers else numbers
    fractional = np.array([isinstance(key, float) and not key.is_integer() for key in keys])
    _refuse(path, rows, LABEL, fractional[place], "the label is not a whole number")
    distinct = sorted(set(keys))
    if len(distinct) > min(MAX_CLASSES, len(place) / 2):
        raise ValueError(
            f"{path}: column {name} has {len(distinct)} different labels in {len(place)} rows: "
            f"it looks like a measurement, not a class"
        )
    table = np.array([distinct.index(key) for key in keys], np.int64)
    return table[place], tuple(str(int(key) if isinstance(key, float) else key) for key in distinct)


def origin_of(path: Path, rows: Rows) -> pa.Table:
    """Where the beats came from, in the types of `ORIGIN`."""
    table = rows.others.select([])  # keeps the number of rows
    for role, kind in ORIGIN.items():
        if role in rows.roles:
            table = table.append_column(role, column_of(path, rows, role, kind))
    if "fold" in rows.roles:
        _refuse(path, rows, "fold", table["fold"].is_null().to_numpy(), "the fold is missing")
    return table


def column_of(path: Path, rows: Rows, role: str, kind: pa.DataType) -> pa.ChunkedArray:
    """The column of a role; in text, nothing and NaN are missing."""
    try:
        column = _plain(rows.others[rows.roles[role]]).cast(kind)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: column {rows.roles[role]}: {' '.join(str(error).split())[:200]}") from error
    if not pa.types.is_string(kind):
        return column
    encoded = column.combine_chunks().dictionary_encode()
    texts = [text.strip() for text in encoded.dictionary.to_pylist()]
    place = encoded.indices.fill_null(-1).to_numpy()
    unclear = np.array([not text.isprintable() for text in texts] + [False])
    _refuse(path, rows, role, unclear[place], "not one line of text; is a quote left open?")
    known = pa.array([None if text in ("", "nan") else text for text in texts], pa.string())
    return pa.chunked_array([known.take(encoded.indices)])


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without a dictionary, and text in Arrow's usual form."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    large = pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type)
    return column.cast(pa.string()) if large else column


def _refuse(path: Path, rows: Rows, role: str, wrong: NDArray[np.bool_], why: str) -> None:
    if wrong.any():
        raise ValueError(f"{path}: row {rows.first + int(wrong.argmax())}, column {rows.roles[role]}: {why}")


def _blocks(num_rows: int) -> Iterator[slice]:
    return (slice(first, first + BLOCK) for first in range(0, num_rows, BLOCK))


def _end(path: Path, rows: Rows) -> NDArray[np.int64]:
    """Samples of each beat before its padding; what is missing in the padding becomes zero, in place."""
    ends = []
    for block in _blocks(len(rows.values)):
        values = rows.values[block]
        sounding = (values != 0) & ~np.isnan(values)
        end = np.where(sounding.any(axis=1), sounding.shape[1] - sounding[:, ::-1].argmax(axis=1), 0)
        padding = np.arange(values.shape[1]) >= end[:, None]
        wrong = ~padding & ~(np.abs(values) <= LARGEST)
        if wrong.any():
            row, column = divmod(int(wrong.argmax()), values.shape[1])
            where = f"{path}: row {rows.first + block.start + row}, column {rows.names[column]}"
            value = values[row, column]
            raise ValueError(
                f"{where}: a value is missing before the beat's end"
                if np.isnan(value)
                else f"{where}: signal {value:g} is beyond ±{LARGEST:.2g}"
            )
        values[padding] = 0
        ends.append(end)
    return np.concatenate(ends)


def _at_rate(
    values: NDArray[np.floating], end: NDArray[np.int64], rate_hz: float | None
) -> tuple[NDArray[np.floating], list[str]]:
    """The beats at 125 Hz, and what was done. Each is resampled up to its end: its padding stays zero."""
    if rate_hz is None:
        return values, [f"taken to be at {RATE_HZ:g} Hz"]
    if rate_hz == RATE_HZ:
        return values, []
    width = len(resample(values[0], rate_hz, RATE_HZ))
    changed = np.zeros((len(values), width))
    for length in np.unique(end[end > 0]):
        which = end == length
        beats = _resample(values[which, :length], rate_hz)
        changed[which, : beats.shape[1]] = beats
    return changed, [f"resampled from {rate_hz:g} to {RATE_HZ:g} Hz"]


def _resample(beats: NDArray[np.floating], rate_hz: float) -> NDArray[np.float64]:
    """The filter takes what lies around a beat for zero: it is given what is left above the line from start to end."""
    start, span = beats[:, :1].astype(np.float64), beats[:, -1:] - beats[:, :1].astype(np.float64)
    last = max(1, beats.shape[1] - 1)
    bent = resample(beats - start - span * (np.arange(beats.shape[1]) / last), rate_hz, RATE_HZ)
    return bent + start + span * (np.arange(bent.shape[1]) * (rate_hz / RATE_HZ) / last)


def is_scaled(low: float, high: float) -> bool:
    """Whether beats between these are within 0…1 as they should be. Volts are not, though a hair from zero: they go
    below it."""
    return bool(high <= 1 + TOLERANCE and low >= -TOLERANCE * high)


def scale(values: NDArray[np.floating], scaled: bool) -> NDArray[np.float32]:
    """Scale each beat to 0…1, unless all are within that."""
    signal = np.empty(values.shape, np.float32)
    for block in _blocks(len(values)):
        beats = values[block].astype(np.float64)
        end = measure_length(torch.from_numpy(beats).unsqueeze(1)).numpy()
        signal[block] = beats.clip(0, 1) if scaled else scale_and_pad(beats, end)
    return signal


def scaling_remarks(scaled: bool, num_flat: int) -> list[str]:
    remarks = [] if scaled else ["each beat scaled to 0…1"]
    return [*remarks, f"{num_flat} flat beats became zero"] if num_flat else remarks
