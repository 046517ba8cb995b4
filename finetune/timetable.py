"""A recipe's schedule as a table: what learns in each epoch, how many parameters, and at which learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from experiments import loop
from finetune.recipe import Recipe
from finetune.schedules import Timeline
from finetune.train import Arm
from models.params import parameter_groups


@dataclass(frozen=True, kw_only=True)
class Row:
    """One epoch, in its middle."""

    epoch: int
    parameters: int
    """That learn."""
    rates: dict[str, float | None]
    """Stage → highest learning rate of what learns in it, None where nothing does."""
    kinds: dict[str, str]
    """Stage → "all" or the kinds that learn; only for stages in which something learns."""


def timetable(recipe: Recipe, arm: Arm, num_classes: int) -> list[Row]:
    """
    Raises:
        ValueError: a recipe that does not fit.
    """
    recipe.check()
    model = arm.build(recipe.head, num_classes, 0, adapter_rank=recipe.adapter_rank)
    groups = {(group["stage"], group["kind"]): group["params"] for group in parameter_groups(model, 0.0)}
    timeline = Timeline(recipe, list(model.encoder.stages))
    return [_row(epoch, recipe, timeline, list(model.stages), groups) for epoch in range(recipe.epochs)]


def _row(epoch: int, recipe: Recipe, timeline: Timeline, stages: Sequence[str], groups: dict) -> Row:
    progress = (epoch + 0.5) / recipe.epochs
    rate = recipe.lr * loop.warm_up_cosine(progress)
    rates: dict[str, float | None] = {}
    kinds, parameters = {}, 0
    for stage in stages:
        own = [kind for of_stage, kind in groups if of_stage == stage]
        scales = timeline.scales(progress).get(stage, {})
        learning = [kind for kind in own if kind in scales]
        parameters += sum(parameter.numel() for kind in learning for parameter in groups[stage, kind])
        rates[stage] = rate * max(scales[kind] for kind in learning) if learning else None
        if learning:
            kinds[stage] = "all" if learning == own else ", ".join(learning)
    return Row(epoch=epoch + 1, parameters=parameters, rates=rates, kinds=kinds)


def timetable_table(rows: Sequence[Row], recipe: Recipe) -> Table:
    table = Table(title=escape(f"Learning rates: {recipe}"), title_style="bold")
    table.caption = (
        "in the middle of each epoch; – frozen. Only the kinds of parameters named learn, or all of a stage."
    )
    table.add_column("epoch", justify="right")
    for stage in rows[0].rates:
        table.add_column(stage, justify="right")
    table.add_column("parameters", justify="right")
    for row in rows:
        cells = [
            "–" if rate is None else f"{rate:.2e}" + ("" if row.kinds[stage] == "all" else f" ({row.kinds[stage]})")
            for stage, rate in row.rates.items()
        ]
        table.add_row(str(row.epoch), *cells, f"{row.parameters:,}")
    return table
