"""The commands of `python -m experiments`."""

from dataclasses import dataclass

import tyro

from experiments import cli


@dataclass(frozen=True, kw_only=True)
class Spaces(cli.Report):
    """List the search spaces, or show one."""

    name: tyro.conf.Positional[str | None] = None
    """Of a file in experiments/spaces/, or the path of a .toml FILE."""

    def run(self) -> None:
        from rich.markup import escape
        from rich.table import Table

        from experiments import tables
        from experiments.space import Space, space_names, space_table

        if self.name is not None:
            space = Space.load(self.name)
            tables.console().print(space_table(space))
            self.write(space.to_json())
            return
        spaces = [Space.load(name) for name in space_names()]
        table = Table(title="Search spaces", title_style="bold")
        table.add_column("name")
        table.add_column("dimensions", justify="right")
        table.add_column("what")
        for space in spaces:
            table.add_row(space.name, str(len(space.dimensions)), escape(space.about))
        tables.console().print(table)
        self.write([space.to_json() for space in spaces])


COMMANDS: dict[str, type[cli.Command]] = {"spaces": Spaces}
