"""python -m data list | get | build | check | split | explore | imitate. Imports nothing heavy at module level."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import tyro

import data
from data.explore import Explore
from data.known import CLASSES, DATABASES, FILES, KAGGLE_FILES, KNOWN_FILES, kaggle_by_hand
from experiments import cli
from experiments.files import sha256

if TYPE_CHECKING:
    from collections.abc import Sequence

    from data.beats import Beats


@dataclass(frozen=True, kw_only=True)
class List(cli.DataFlags, cli.Report):
    """List the data sets: their files, whether they are here, how many beats and which classes and protocols."""

    def run(self) -> None:
        from data import show

        rows = show.describe_all(self.data_folder)
        show.print_list(f"data sets in {self.data_folder}", rows)
        self.write(rows)


@dataclass(frozen=True, kw_only=True)
class Get(cli.DataFlags):
    """Download data sets from their official addresses, unless they are here already; run again after a cut."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional]
    """ptb, arrhythmia (the course's files), mitdb, ptbdb, ptbxl (PhysioNet's records)."""

    def run(self) -> None:
        choices = ", ".join([*FILES, *DATABASES])
        if not self.names:
            raise ValueError(f"name what to get: {choices}")
        for name in self.names:
            if name in KAGGLE_FILES:
                raise ValueError(kaggle_by_hand(name, self.data_folder))
            if name not in FILES and name not in DATABASES:
                without = ", which needs no files" if name in data.DATASETS else ""
                raise ValueError(f"nothing to download for {name}{without}; choose from {choices}")
        for name in self.names:
            for filename in FILES.get(name, {}).values():
                _get_file(filename, self.data_folder)
            if name in DATABASES:
                _get_database(name, self.data_folder)


@dataclass(frozen=True, kw_only=True)
class Build(cli.DataFlags, cli.Report):
    """Cut the records of a PhysioNet database into beats and write them to one Parquet file.

    Put where the data files are, as NAME.parq, it is read in place of the records; anywhere else, it is
    parquet:FILE to every command.
    """

    name: Annotated[str, tyro.conf.Positional]
    """mitdb, ptbdb or ptbxl."""
    folder: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """FOLDER of the records (default: NAME/ where the data files are)."""
    out: Path | None = None
    """FILE to write (default: NAME.parq where the data files are)."""

    def run(self) -> None:
        if self.name not in DATABASES:
            raise ValueError(f"nothing to build for {self.name}; choose from {', '.join(DATABASES)}")
        out = self.out or self.data_folder / f"{self.name}.parq"
        cli.writable(out)
        from data import show
        from data.physionet import build
        from data.store import read_recorded

        with show.progress(f"cutting {self.name}") as progress:
            build(self.name, self.folder or self.data_folder / self.name, out, progress)
        rows = [show.describe_recorded("", read_recorded(out))]
        show.print_check(str(out), rows)
        self.write(rows)


@dataclass(frozen=True, kw_only=True)
class Check(cli.DataFlags, cli.Report):
    """Read a data set, or one file, from end to end and say what is in it and what reading left out or changed."""

    what: Annotated[str, tyro.conf.Positional]
    """Name of a data set, a FILE of beats, or csv:FILE or parquet:FILE."""

    def run(self) -> None:
        from data import show

        if self.what in data.DATASETS:
            found = {part: data.load(self.what, part, self.data_folder) for part in data.PARTS}
            rows = [show.describe_beats(part, beats) for part, beats in found.items()]
        elif beats := _read_known(Path(self.what)):
            rows = [show.describe_beats("", beats)]
        else:
            from data.own import read_own

            kind, place = _kind_and_place(self.what)
            rows = [show.describe_recorded("", read_own(kind, place))]
        show.print_check(self.what, rows)
        self.write(rows)


@dataclass(frozen=True, kw_only=True)
class Split(cli.DataFlags, cli.Report):
    """Show a split: beats, classes and patients of each part, what may leak, near-duplicates across parts."""

    name: Annotated[str, tyro.conf.Positional] = "arrhythmia"
    """Name of a data set, or csv:FILE or parquet:FILE."""
    protocol: cli.Protocols = "beat-random"
    """beat-random, ds1-ds2 (de Chazal's records), patient, or folds (PTB-XL's own)."""
    seed: int = 0
    """Seed of the validation part; the test part is the same for every seed."""
    label_fraction: float = 1.0
    """Share of the training part to keep."""
    label_draw: int = 0
    """Which of several draws of that share."""

    def run(self) -> None:
        from data import show
        from data.split import with_fewer_labels

        split = data.load_split(self.name, self.protocol, self.data_folder, self.seed)
        split = with_fewer_labels(split, self.label_fraction, self.label_draw)
        with show.progress("looking for near-duplicates"):
            rows = show.describe_split(split)
        show.print_split(self.name, split, rows)
        self.write({"protocol": split.protocol, "badge": split.badge, "parts": rows})


@dataclass(frozen=True, kw_only=True)
class Imitate:
    """Write synthetic records in the layout of a PhysioNet database, to try the way from raw records to beats."""

    layout: Annotated[str, tyro.conf.Positional]
    """mitdb, ptbdb or ptbxl."""
    folder: Annotated[Path, tyro.conf.Positional]
    """FOLDER to write the records into."""
    seed: int = 0
    """Seed of everything random."""

    def run(self) -> None:
        from data.imitate import write_records

        num_beats = write_records(self.layout, self.folder, seed=self.seed)
        print(f"{num_beats:,} synthetic beats in the layout of {self.layout}: {self.folder}")


COMMANDS: dict[str, type[cli.Command]] = {
    "list": List,
    "get": Get,
    "build": Build,
    "check": Check,
    "split": Split,
    "explore": Explore,
    "imitate": Imitate,
}


def main(args: Sequence[str] | None = None) -> NoReturn:
    cli.main("data", COMMANDS, args)


def _kind_and_place(what: str) -> tuple[str, Path]:
    """Of csv:FILE and parquet:FILE, and of a FILE, whose ending says what it is."""
    if data.is_own(what):
        kind, _, place = what.partition(":")
        return kind, Path(place)
    if not Path(what.rpartition("@")[0] or what).exists() and not Path(what).exists():
        choices = ", ".join([*data.DATASETS, *(f"{kind}:FILE" for kind in data.OWN)])
        raise ValueError(f"{what} is neither a file nor a data set; choose from {choices}")
    return "csv" if ".csv" in Path(what).name.lower() else "parquet", Path(what)


def _read_known(path: Path) -> Beats | None:
    """Beats of a file that is, or is called like, one of the course's; None for any other."""
    by_name = {file: name for name, files in FILES.items() for file in files.values()}
    if not path.is_file():
        return None
    known = KNOWN_FILES.get(sha256(path))
    name = known.dataset if known else by_name.get(path.name)
    if name is None:
        return None
    from data.published import read_course

    return read_course(path, CLASSES[name])


def _get_file(filename: str, folder: Path) -> None:
    path = folder / filename
    if path.is_file() and path.stat().st_size:
        from data.parquet import is_pointer

        if not is_pointer(path):
            known = KNOWN_FILES.get(sha256(path))
            print(f"{path} is here: {known.source if known else 'unrecognised; move it away to get the published one'}")
            return
    from data.download import download

    print(f"{download(filename, folder)} downloaded: {KNOWN_FILES[sha256(path)].source}")


def _get_database(name: str, folder: Path) -> None:
    from data.download import download_database

    fetched = download_database(name, folder)
    print(f"{fetched.folder} is whole: {fetched.num_files:,} files, {fetched.num_downloaded:,} downloaded now")
