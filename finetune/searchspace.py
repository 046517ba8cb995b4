"""Search spaces as the rest of fine-tuning needs them: held against the recipe, drawn by Optuna, met in old results."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from experiments.results import RunResult
from experiments.space import Dimension, Scalar, Space
from finetune.recipe import PLANNED, Recipe
from finetune.train import Arm, Context

NOT_SEARCHED = (*PLANNED, "recall_floor")
"""The plan decides, or the user."""
GRID_POINTS = 3
"""Of each range, in a grid."""


def checked(name: str, fixed: Mapping[str, Scalar], arm: Arm) -> Space:
    """The space of that name or file, without what is fixed.

    Raises:
        ValueError: it searches what a recipe does not have, or values that a recipe or the arm's encoder refuses.
    """
    space = Space.load(name)
    stages = arm.stages
    for dimension in space.dimensions:
        try:
            _check(dimension, stages)
        except ValueError as error:
            raise ValueError(f"space {space.name}, dimension {dimension.name}: {error}") from None
    named = {dimension.name for dimension in space.dimensions}
    return space.with_fixed(**{name: value for name, value in fixed.items() if name in named})


def _check(dimension: Dimension, stages: Sequence[str]) -> None:
    usual = asdict(Recipe())
    if dimension.name not in usual or dimension.name in NOT_SEARCHED:
        choices = ", ".join(name for name in usual if name not in NOT_SEARCHED)
        raise ValueError(f"a recipe has no such choice; choose from {choices}")
    for value in dimension.choices or (dimension.low, dimension.high):
        default = usual[dimension.name]
        if isinstance(default, int) and not isinstance(value, int):
            raise ValueError(f"{value!r} is not a whole number")
        if isinstance(default, float) and isinstance(value, str | bool):
            raise ValueError(f"{value!r} is not a number")
        replace(Recipe(), **{dimension.name: value}).check()
        if dimension.name in ("num_stages", "which_stage") and isinstance(value, int) and value > len(stages):
            raise ValueError(f"{value} is more than the encoder's {len(stages)} stages ({', '.join(stages)})")


def earlier(
    recorded: Sequence[RunResult], arm: Arm, base: Context, recipe: Recipe, space: Space, seed: int, own: str
) -> list[RunResult]:
    """Trials of other studies that this one may learn from: same data, split, classes and encoder, within the space,
    and alike in what is not searched. They may have had more or fewer epochs.

    The control has random weights of the same architecture.

    Args:
        recipe: what is not searched.
        own: name of this study, whose own trials are no earlier ones.
    """
    searched = {dimension.name for dimension in space.dimensions}
    alike = {name: value for name, value in asdict(recipe).items() if name not in searched and name not in NOT_SEARCHED}
    of_task = (base.dataset, base.protocol, tuple(base.classes), seed, arm.spec.label)
    return [
        result
        for result in recorded
        if result.config.get("stage") == "search"
        and result.config["study"] != own
        and (result.dataset, result.protocol, tuple(result.classes), result.seed, result.config["arch"]) == of_task
        and result.encoder in (arm.encoder_hash, None)
        and alike.items() <= result.config.items()
        and space.accepts(result.config, {"pretrained": result.encoder is not None})
    ]
