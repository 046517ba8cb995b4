"""CSV tables of beats, decoded a block at a time. A line that is too short is refused, not filled up."""

import csv
import re
from codecs import BOM_UTF8
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow.csv import ConvertOptions, ReadOptions, open_csv

BLOCK_BYTES = 1 << 22
"""Decoded at a time; a longer line is refused."""
_FAILURE = re.compile(
    r"(?:In CSV column #(?P<column>\d+): )?(?:CSV parse error: )?(?:Row #(?P<row>\d+): )?"
    r"(?:CSV conversion error to \w+: )?(?P<reason>Expected \d+ columns, got \d+|.*)",
    re.DOTALL,
)


def read_first_row(path: Path, stream: IO[bytes]) -> list[str]:
    """Cells of the first line that is not blank; `stream` stands behind it then.

    Raises:
        ValueError: there is none, or it is not text of one line.
    """
    lines = iter(partial(stream.readline, BLOCK_BYTES), b"")
    line = next((line for line in lines if line.removeprefix(BOM_UTF8).strip()), b"")
    if not line:
        raise ValueError(f"{path} has no rows")
    try:
        cells = next(csv.reader([line.decode("utf-8-sig").rstrip("\r\n")], skipinitialspace=True, strict=True))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} of the first line is not UTF-8 text") from error
    except csv.Error as error:
        raise ValueError(f"{path}: the first line is not comma-separated values: {error}") from error
    if len(cells) < 2:
        raise ValueError(f"{path}: the first line has no comma; commas must separate the values")
    return [cell.strip() for cell in cells]


def read_rows(
    path: Path,
    stream: IO[bytes],
    names: Sequence[str],
    texts: Collection[str] = (),
    dtype: type[np.floating] = np.float64,
) -> tuple[NDArray[Any], pa.Table]:
    """All lines from where `stream` stands on, blank ones passed over.

    Args:
        names: of the columns in order, no name twice.
        texts: names of those that are kept as text; the others are numbers.

    Returns:
        The numbers side by side, (num_rows, num_columns) of `dtype`, NaN where a value is missing; and the texts.

    Raises:
        ValueError: no rows, a line of another length, text for a number, not UTF-8; names row (from 0) and column.
    """
    blocks, kept = zip(*iterate_rows(path, stream, names, texts, dtype), strict=True)
    return np.concatenate(blocks), pa.Table.from_batches(kept)


def iterate_rows(
    path: Path,
    stream: IO[bytes],
    names: Sequence[str],
    texts: Collection[str] = (),
    dtype: type[np.floating] = np.float64,
) -> Iterator[tuple[NDArray[Any], pa.RecordBatch]]:
    """As `read_rows`, 4 MB of the file at a time."""
    numbers = [name for name in names if name not in texts]
    types = {name: pa.string() if name in texts else pa.float64() for name in names}
    num_rows = 0
    try:
        reader = open_csv(
            stream,
            ReadOptions(use_threads=False, column_names=list(names), block_size=BLOCK_BYTES),
            convert_options=ConvertOptions(column_types=types, strings_can_be_null=True),
        )
        for batch in reader:
            num_rows += len(batch)
            block = batch.select(numbers).to_tensor(null_to_nan=True, row_major=True).to_numpy()
            with np.errstate(over="ignore"):
                block = block.astype(dtype)
            yield block, batch.select(list(texts))
    except pa.ArrowException as error:
        raise ValueError(_refusal(path, names, str(error))) from error
    if not num_rows:
        raise ValueError(f"{path} has no rows")


def _refusal(path: Path, names: Sequence[str], said: str) -> str:
    """Arrow counts rows from 1 and columns from 0."""
    if said == "Empty CSV file":
        return f"{path} has no rows"
    found = _FAILURE.fullmatch(said)
    assert found is not None
    row = f": row {int(found['row']) - 1}" if found["row"] else ""
    column = f", column {names[int(found['column'])]}" if found["column"] else ""
    return f"{path}{row}{column}: {' '.join(found['reason'].split())[:200]}"
