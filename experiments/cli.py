"""What every command shares: common flags, one-line errors with exit code 2, and `--json`.

Imports nothing heavy, so that `--help` stays fast: a command imports torch, Ray and the like inside its `run`.
"""

import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

import tyro

from experiments.files import write_json

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "experiments" / "runs"
"""Where studies and the results store live."""

Protocols = Literal["beat-random", "ds1-ds2", "patient", "folds"]
Precision = Literal["auto", "bf16", "fp32"]


class Command(Protocol):
    """A frozen dataclass of flags that knows how to run itself."""

    def run(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Report:
    """Flag of every command that prints a table."""

    json: Path | None = None
    """Also write what the table prints to this FILE."""

    def write(self, content: Any) -> None:
        if self.json is not None:
            write_json(self.json, content)


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """Where the files of a data set lie."""

    data_dir: Path | None = None
    """Folder of the data files (default: $HEART_DATA_DIR, else data/)."""

    @property
    def data_folder(self) -> Path:
        return (self.data_dir or Path(os.environ.get("HEART_DATA_DIR") or ROOT / "data")).resolve()


@dataclass(frozen=True, kw_only=True)
class RunFlags(DataFlags, Report):
    """Flags of every command that trains."""

    seed: int = 0
    """Seed of everything random: split, initial weights, batch order, augmentation."""
    threads: int | None = None
    """CPU threads (default: all cores; recorded, since other counts round otherwise)."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    resume: bool = False
    """Continue a run of the same settings that was interrupted."""
    tracking: str = "experiments/mlflow.db"
    """MLflow: an SQLite file, a tracking server's address, or none."""


Commands = Mapping[str, type[Command]] | type[Command]


def main(prog: str, commands: Commands, args: Sequence[str] | None = None) -> NoReturn:
    """Parse the flags, run the command, exit: 0 done, 2 the user's mistake (one line on stderr), 130 interrupted."""
    command = _parse(f"python -m {prog}", commands, args)
    try:
        if isinstance(command, Report) and command.json is not None:
            writable(command.json, "--json")
        command.run()
    except (ValueError, OSError) as error:
        if os.environ.get("HEART_TRACEBACK"):
            raise
        fail(str(error))
    except KeyboardInterrupt:
        how = f"; to continue: {continuing(prog)}" if isinstance(command, RunFlags) else ""
        print(f"interrupted{how}", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def at_least_one(**flags: int) -> None:
    """
    Raises:
        ValueError: a count below one; named as its flag.
    """
    for name, value in flags.items():
        if value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: at least 1 is needed")


def writable(path: Path, flag: str = "--out") -> None:
    """Find out before the work starts, not after, whether its result can be written.

    Raises:
        ValueError: a folder, or a place where no file can be made.
    """
    if path.is_dir():
        raise ValueError(f"{flag} {path} is a folder; a file is needed")
    folder = next(parent for parent in path.resolve().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{flag} {path}: {folder} cannot be written to")


def continuing(prog: str) -> str:
    """The command that continues this one."""
    args = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return f"python -m {prog.split()[0]} {shlex.join(args)} --resume"


def fail(message: str) -> NoReturn:
    """Print one line and exit with code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _parse(prog: str, commands: Commands, args: Sequence[str] | None) -> Command:
    refusal = io.StringIO()
    try:
        with contextlib.redirect_stderr(refusal):
            if isinstance(commands, Mapping):
                return tyro.extras.subcommand_cli_from_dict(dict(commands), prog=prog, args=args)
            return tyro.cli(commands, prog=prog, args=args)
    except SystemExit as stop:
        if stop.code == 2:
            fail(f"{_one_line(refusal.getvalue())} (see {prog} --help)")
        raise


def _one_line(box: str) -> str:
    """The message in the parser's framed error text, without the frame and without what follows its first rule."""
    lines = [re.sub(r"^│ ?| ?│$", "", line).strip() for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    rules = [number for number, line in enumerate(lines) if line.startswith("──")]
    return " ".join(lines[: rules[0]] if rules else lines)
