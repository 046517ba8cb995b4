"""python -m data list | get | check. Imports nothing heavy at module level."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import tyro

from data import DATASETS, PARTS, load
from data.known import CLASSES, FILES, KNOWN_FILES
from experiments import cli
from experiments.files import sha256

if TYPE_CHECKING:
    from collections.abc import Sequence

    from data.beats import Beats


@dataclass(frozen=True, kw_only=True)
class List(cli.DataFlags, cli.Report):
    """List the data sets: their files, whether they are here, how many beats and which classes they hold."""

    def run(self) -> None:
        rows = [_describe_file(name, part, self.data_folder) for name in FILES for part in PARTS]
        rows += [_describe_synthetic(name) for name in DATASETS if name not in FILES]
        mitdb = self.data_folder / "mitdb"
        num_records = len(list(mitdb.glob("*.hea")))
        state = f"{num_records} records" if num_records else "missing (for ds1-ds2, patient)"
        rows.append(_row("arrhythmia", "ds1-ds2, patient", str(mitdb), state, None, CLASSES["arrhythmia"]))
        _print_list(f"data sets in {self.data_folder}", rows)
        self.write(rows)


@dataclass(frozen=True, kw_only=True)
class Get(cli.DataFlags):
    """Download the course's files of a data set, unless they are here already."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Data sets: ptb, arrhythmia."""

    def run(self) -> None:
        if not self.names:
            raise ValueError(f"name what to get: {', '.join(FILES)}")
        for name in self.names:
            if name not in FILES:
                without = ", which needs no files" if name in DATASETS else ""
                raise ValueError(f"nothing to download for {name}{without}; choose from {', '.join(FILES)}")
        for name in self.names:
            for filename in FILES[name].values():
                _get(filename, self.data_folder)


@dataclass(frozen=True, kw_only=True)
class Check(cli.DataFlags, cli.Report):
    """Read a data set, or one Parquet file, from end to end and say what is in it."""

    what: Annotated[str, tyro.conf.Positional]
    """Name of a data set, or a Parquet FILE."""
    classes: tuple[str, ...] | None = None
    """Class names of an unrecognised FILE, from label 0 on (default: by the file's name, else N S V F Q)."""

    def run(self) -> None:
        if self.what in DATASETS:
            found = {part: load(self.what, part, self.data_folder) for part in PARTS}
        else:
            found = {self.what: self._read_file(Path(self.what))}
        rows = [_describe_beats(part, beats) for part, beats in found.items()]
        _print_check(self.what, rows)
        self.write(rows)

    def _read_file(self, path: Path) -> Beats:
        if not path.exists():
            raise ValueError(f"{path} is neither a file nor a data set; data sets are {', '.join(DATASETS)}")
        from data.store import check_is_data, read_parquet

        check_is_data(path)
        return read_parquet(path, self.classes or CLASSES[_guess_dataset(path)])


COMMANDS: dict[str, type[cli.Command]] = {"list": List, "get": Get, "check": Check}


def main(args: Sequence[str] | None = None) -> NoReturn:
    cli.main("data", COMMANDS, args)


def _guess_dataset(path: Path) -> str:
    known = KNOWN_FILES.get(sha256(path))
    by_name = (name for name, files in FILES.items() if path.name in files.values())
    return known.dataset if known else next(by_name, "arrhythmia")


def _get(filename: str, folder: Path) -> None:
    path = folder / filename
    if path.is_file() and path.stat().st_size:
        from data.store import is_pointer

        if not is_pointer(path):
            known = KNOWN_FILES.get(sha256(path))
            print(f"{path} is here: {known.source if known else 'unrecognised; move it away to get the published one'}")
            return
    from data.download import download

    print(f"{download(filename, folder)} downloaded: {KNOWN_FILES[sha256(path)].source}")


def _row(name: str, part: str, file: str, state: str, num_beats: int | None, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "name": name,
        "part": part,
        "file": file,
        "state": state,
        "beats": num_beats,
        "classes": list(classes),
    }


def _describe_file(name: str, part: str, folder: Path) -> dict[str, Any]:
    path = folder / FILES[name][part]
    if not path.exists():
        return _row(name, part, str(path), "missing", None, CLASSES[name])
    import pyarrow as pa
    import pyarrow.parquet as pq

    from data.store import check_is_data

    try:
        check_is_data(path)
        num_beats = pq.read_metadata(path).num_rows
    except (ValueError, OSError, pa.ArrowException):
        return _row(name, part, str(path), f"unreadable: run `python -m data check {name}`", None, CLASSES[name])
    known = KNOWN_FILES.get(sha256(path))
    return _row(name, part, str(path), known.source if known else "unrecognised", num_beats, CLASSES[name])


def _describe_synthetic(name: str) -> dict[str, Any]:
    return _row(name, "train, test", "", "needs no files", None, CLASSES[name.removeprefix("synthetic-")])


def _describe_beats(part: str, beats: Beats) -> dict[str, Any]:
    length = beats.valid_length.double()
    return {
        "part": part,
        "source": beats.source,
        "beats": len(beats),
        "counts": beats.counts(),
        "num_samples": beats.signal.shape[2],
        "rate_hz": beats.rate_hz,
        "length_s": {
            "shortest": round(length.min().item() / beats.rate_hz, 3),
            "median": round(length.median().item() / beats.rate_hz, 3),
            "longest": round(length.max().item() / beats.rate_hz, 3),
        },
        "fingerprint": beats.fingerprint,
    }


def _print_list(title: str, rows: Sequence[dict[str, Any]]) -> None:
    from rich.table import Table

    from experiments.tables import console

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("name", "file", "state", "beats", "classes"):
        table.add_column(name, justify="right" if name == "beats" else "left", no_wrap=name != "state")
    for row in rows:
        beats = "" if row["beats"] is None else f"{row['beats']:,}"
        table.add_row(row["name"], Path(row["file"]).name, row["state"], beats, " ".join(row["classes"]))
    console().print(table)


def _print_check(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """One column for each part; the counts of a class stand under one another."""
    from rich.table import Table

    from experiments.tables import console

    table = Table("", title=title, title_justify="left", box=None)
    for row in rows:
        table.add_column(row["part"] if len(rows) > 1 else "", justify="right")
    table.add_row("source", *(row["source"] for row in rows))
    table.add_row("beats", *(f"{row['beats']:,}" for row in rows))
    for name in rows[0]["counts"]:
        shares = (f"{row['counts'][name]:,} ({row['counts'][name] / row['beats']:5.1%})" for row in rows)
        table.add_row(f"  {name}", *shares)
    for which in rows[0]["length_s"]:
        table.add_row(f"{which} beat", *(f"{row['length_s'][which]:.2f} s" for row in rows))
    table.add_row("samples", *(f"{row['num_samples']} at {row['rate_hz']:g} Hz" for row in rows))
    table.add_row("fingerprint", *(f"{row['fingerprint'][:12]}…" for row in rows))
    console().print(table)
