"""What people read in the terminal: tables, sparklines, progress."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from experiments.loop import History

BARS = "▁▂▃▄▅▆▇█"
PLAIN_LINE_EVERY_S = 10.0


def console() -> Console:
    """The terminal, or 160 columns where the output goes to a file, so that no table is squeezed there."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=160)


def say(line: str) -> None:
    """One plain line, however long."""
    console().print(line, highlight=False, soft_wrap=True, markup=False)


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """At most `width` bars from the lowest value to the highest; a longer series is thinned evenly."""
    if not values:
        return ""
    if len(values) > width:
        values = [values[round(place * (len(values) - 1) / (width - 1))] for place in range(width)]
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in values)


def duration(seconds: float) -> str:
    """4.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.3f}"


def interval(low: float | None, high: float | None, sign: bool = False) -> str:
    if low is None or high is None:
        return ""
    return f"[{low:+.3f}, {high:+.3f}]" if sign else f"[{low:.3f}, {high:.3f}]"


def confusion_table(confusion: Sequence[Sequence[float]], classes: Sequence[str], title: str) -> Table:
    """Row-normalised: each row says where the beats of one true class went, in percent; the diagonal is recall."""
    table = Table(title=title, title_style="bold", caption="rows: true class, columns: predicted, % of the row")
    table.add_column("true \\ predicted")
    for name in (*classes, "beats"):
        table.add_column(name, justify="right")
    for number, (name, row) in enumerate(zip(classes, confusion, strict=True)):
        total = sum(row)
        shares = [f"{100 * count / total:.1f}" if total else "–" for count in row]
        shares[number] = f"[bold]{shares[number]}[/bold]"
        table.add_row(name, *shares, f"{total:,.0f}")
    return table


class ProgressLine:
    """Loss, beats per second and time left: a live line in a terminal, a plain one now and then in a file."""

    def __init__(self, title: str, num_epochs: int) -> None:
        self.title, self.num_epochs = title, num_epochs
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:,.0f} beats/s"),
            TimeRemainingColumn(),
            console=console(),
            transient=True,
        )
        self.task = self.bar.add_task(title, total=None, loss=math.nan, speed=0.0)
        self.first: tuple[float, int] | None = None
        self.printed = time.monotonic()

    def __enter__(self) -> Self:
        if self.bar.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar.console.is_terminal:
            self.bar.stop()

    def resumed(self, step: int) -> None:
        what = f"continuing from step {step}" if step else "nothing to continue, starting at step 0"
        self.bar.console.print(f"{self.title}: {what}", highlight=False)

    def update(self, history: History, total_steps: int, loss: float) -> None:
        now = time.monotonic()
        self.first = self.first or (now, history.beats)
        elapsed = now - self.first[0]
        speed = (history.beats - self.first[1]) / elapsed if elapsed else 0.0
        epoch = min(self.num_epochs, 1 + history.step * self.num_epochs // total_steps)
        title = f"{self.title} · epoch {epoch}/{self.num_epochs}"
        self.bar.update(self.task, description=title, completed=history.step, total=total_steps, loss=loss, speed=speed)
        if not self.bar.console.is_terminal and now - self.printed > PLAIN_LINE_EVERY_S and speed:
            self.printed = now
            left = (total_steps - history.step) * history.beats / history.step / speed
            self.bar.console.print(
                f"{title} · loss {loss:.4f} · {speed:,.0f} beats/s · {duration(left)} left", highlight=False
            )
