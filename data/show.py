"""What `python -m data` prints: rows as data, and the tables made from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import data
from data.known import CLASSES, DATABASES, FILES, KAGGLE_FILES, KNOWN_FILES
from experiments.files import sha256

if TYPE_CHECKING:
    from data.beats import Beats
    from data.recorded import Recorded
    from data.split import Split

Row = dict[str, Any]
Progress = Callable[[int, int], None]
"""Called with what is done and what there is."""


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A line on stderr while something long goes on; nothing where stderr is a file."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def describe_all(folder: Path) -> list[Row]:
    rows = [_describe_file(name, part, folder) for name in FILES for part in data.PARTS]
    rows += [_describe_database(name, folder) for name in DATABASES]
    rows += [_describe_kaggle(name, folder) for name in KAGGLE_FILES]
    synthetic = [name for name in data.DATASETS if name.startswith("synthetic-")]
    rows += [
        _row(name, "train, test", "", "needs no files", None, CLASSES[name.removeprefix("synthetic-")])
        for name in synthetic
    ]
    rows += [_row(f"{own}:FILE", "train, test", "", "beats of your own", None, ()) for own in data.OWN]
    return rows


def _row(name: str, part: str, file: str, state: str, num_beats: int | None, classes: Sequence[str]) -> Row:
    source = data.DATASETS.get(name) or data.OWN[name.partition(":")[0]]
    return {
        "name": name,
        "part": part,
        "file": file,
        "state": state,
        "beats": num_beats,
        "classes": list(classes),
        "protocols": list(source.protocols),
    }


def _describe_file(name: str, part: str, folder: Path) -> Row:
    path = folder / FILES[name][part]
    if not path.exists():
        return _row(name, part, str(path), "missing", None, CLASSES[name])
    from data.parquet import opened

    try:
        with opened(path) as file:
            num_beats = file.metadata.num_rows
    except (ValueError, OSError):
        return _row(name, part, str(path), f"unreadable: run `python -m data check {name}`", None, CLASSES[name])
    known = KNOWN_FILES.get(sha256(path))
    return _row(name, part, str(path), known.source if known else "unrecognised", num_beats, CLASSES[name])


def _describe_database(name: str, folder: Path) -> Row:
    from data.parquet import opened
    from data.physionet import DATABASES as READERS
    from data.store import description

    built, classes = folder / f"{name}.parq", READERS[name].classes
    if built.exists():
        try:
            with opened(built) as file:
                about = description(built, file)
            return _row(name, "train, test", str(built), about["source"], about["num_beats"], classes)
        except (ValueError, OSError):
            return _row(name, "train, test", str(built), f"unreadable: build {name} again", None, classes)
    num_records = sum(1 for _ in (folder / name).rglob("*.hea"))
    state = f"{num_records:,} records" if num_records else "missing"
    return _row(name, "train, test", str(folder / name), state, None, classes)


def _describe_kaggle(name: str, folder: Path) -> Row:
    here = all((folder / file).exists() for file in KAGGLE_FILES[name])
    files, classes = ", ".join(KAGGLE_FILES[name]), CLASSES[name.removeprefix("kaggle-")]
    return _row(name, "train, test", files, "here" if here else "missing", None, classes)


def describe_beats(part: str, beats: Beats) -> Row:
    length = beats.valid_length.double()
    return {
        "part": part,
        "source": beats.source,
        "beats": len(beats),
        "dropped": dict(beats.dropped),
        "remarks": list(beats.remarks),
        "notes": list(beats.notes),
        "counts": {} if beats.target is None else beats.counts(),
        "patients": None if beats.group is None else len(beats.group.unique()),
        "rr_ratios": beats.intervals is not None,
        "num_samples": beats.signal.shape[2],
        "rate_hz": beats.rate_hz,
        "length_s": {
            "shortest": round(length.min().item() / beats.rate_hz, 3),
            "median": round(length.median().item() / beats.rate_hz, 3),
            "longest": round(length.max().item() / beats.rate_hz, 3),
        },
        "fingerprint": beats.fingerprint,
    }


def describe_recorded(part: str, recorded: Recorded) -> Row:
    columns = recorded.origin.column_names
    records = recorded.origin["record"].unique() if "record" in columns else ()
    return {**describe_beats(part, recorded.beats), "records": len(records), "columns": columns}


def describe_split(split: Split) -> list[Row]:
    """A row a part. Near-duplicates: beats of the part whose shape is that of a training beat (correlation > .995)."""
    from data.duplicates import near_duplicates

    rows = []
    for part, beats in (("train", split.train), ("validation", split.validation), ("test", split.load_test())):
        row = describe_beats(part, beats)
        row["near_duplicates"] = None if part == "train" else int(near_duplicates(beats, split.train).sum())
        rows.append(row)
    return rows


def print_list(title: str, rows: Sequence[Row]) -> None:
    from rich.table import Table

    from experiments.tables import console

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("name", "file", "state", "beats", "classes", "protocols"):
        table.add_column(name, justify="right" if name == "beats" else "left", no_wrap=name in ("name", "beats"))
    for row in rows:
        beats = "" if row["beats"] is None else f"{row['beats']:,}"
        files = ", ".join(Path(file).name for file in row["file"].split(", "))
        table.add_row(row["name"], files, row["state"], beats, " ".join(row["classes"]), ", ".join(row["protocols"]))
    console().print(table)


def print_check(title: str, rows: Sequence[Row]) -> None:
    """One column for each part; the counts of a class stand under one another."""
    from rich.table import Table

    from data.intervals import RATIOS
    from experiments.tables import console, say

    table = Table("", title=title, title_justify="left", box=None, show_header=len(rows) > 1)
    for row in rows:
        table.add_column(row["part"], justify="right")
    table.add_row("source", *(row["source"] for row in rows))
    _add_counts(table, rows)
    for which in rows[0]["length_s"]:
        table.add_row(f"{which} beat", *(f"{row['length_s'][which]:.2f} s" for row in rows))
    table.add_row("samples", *(f"{row['num_samples']} at {row['rate_hz']:g} Hz" for row in rows))
    if any(row.get("records") for row in rows):
        table.add_row("records", *(f"{row['records']:,}" for row in rows))
    if columns := rows[0].get("columns"):
        table.add_row("also known", ", ".join(columns))
    table.add_row("fingerprint", *(f"{row['fingerprint'][:12]}…" for row in rows))
    console().print(table)
    for note in dict.fromkeys(note for row in rows for note in row["notes"]):
        say(note)
    if all(row["rr_ratios"] for row in rows):
        named = (
            f"{ratio.name}{f' (looks ahead: {ratio.looks_ahead})' if ratio.looks_ahead else ''}" for ratio in RATIOS
        )
        say(f"RR ratios: {', '.join(named)}")


def print_split(name: str, split: Split, rows: Sequence[Row]) -> None:
    from rich.table import Table

    from experiments.tables import console

    title = f"{name} by protocol {split.protocol}, leakage {split.badge}"
    caption = "near-duplicates: beats that correlate above .995 with a training beat, from R peak to the shorter's end"
    table = Table("", title=title, title_style="bold", caption=caption)
    for row in rows:
        table.add_column(row["part"], justify="right")
    _add_counts(table, rows, "records" if split.badge == "record-disjoint" else "patients")
    shares = (
        "" if row["near_duplicates"] is None else f"{row['near_duplicates']:,} ({_share(row, row['near_duplicates'])})"
        for row in rows
    )
    table.add_row("near-duplicates of training", *shares)
    console().print(table)


def _add_counts(table: Any, rows: Sequence[Row], groups: str = "patients") -> None:
    table.add_row("beats", *(f"{row['beats']:,}" for row in rows))
    for name in rows[0]["counts"]:
        table.add_row(f"  {name}", *(f"{row['counts'][name]:,} ({_share(row, row['counts'][name])})" for row in rows))
    known = ["unknown" if row["patients"] is None else f"{row['patients']:,}" for row in rows]
    table.add_row(groups, *known)


def _share(row: Row, count: int) -> str:
    return f"{count / row['beats']:5.1%}"
