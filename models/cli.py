"""python -m models list | show. Imports nothing heavy at module level."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import tyro

import models
from experiments import cli

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class List(cli.Report):
    """List the architectures, our own and those of libraries: parameters, tokens, multiply-adds, options."""

    def run(self) -> None:
        from models import show

        rows = show.describe_all()
        show.print_list(rows)
        self.write(rows)


@dataclass(frozen=True, kw_only=True)
class Show(cli.Report):
    """Show one architecture: its stages, its options and their searched values, its speed on this machine."""

    name: Annotated[str, tyro.conf.Positional]
    """NAME, NAME@OPTION=VALUE,… or LIBRARY:MODEL, such as resnet1d@width=48 (see `python -m models list`)."""
    svg: Path | None = None
    """Draw the block scheme into this FILE (without it, none is drawn)."""
    threads: int | None = None
    """CPU threads of the measurement (default: all cores)."""

    def run(self) -> None:
        if self.svg is not None:
            cli.writable(self.svg, "--svg")
        from experiments.files import write_bytes
        from experiments.machine import Machine
        from models import show
        from models.scheme import scheme, svg

        machine = Machine.resolve("auto", "fp32", self.threads)
        encoder = models.build(models.parse(self.name))
        blocks = scheme(encoder)
        row = {**show.describe(encoder, blocks), "speed": show.measure(encoder, machine)}
        show.print_one(row)
        if self.svg is not None:
            write_bytes(self.svg, svg(blocks, encoder.spec.label).encode())
            print(f"block scheme: {self.svg}")
        self.write(row)


COMMANDS: dict[str, type[cli.Command]] = {"list": List, "show": Show}


def main(args: Sequence[str] | None = None) -> NoReturn:
    cli.main("models", COMMANDS, args)
