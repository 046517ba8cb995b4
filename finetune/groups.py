"""What `compare` runs side by side: groups of pretraining seeds, each with its recipe, and their controls. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data import OF_TRAINING
from experiments.results import RunResult
from finetune.controls import Control
from finetune.recipe import Recipe, in_words, recipe_of
from finetune.train import Arm

Cell = tuple[str, str, str | None, Recipe | None, float, int]
"""Arm, architecture, encoder's hash, recipe, label fraction, seed: which of its comparison's runs a result is of."""


def cell_of(result: RunResult) -> Cell:
    config = result.config
    recipe = varied(recipe_of(result)) if "schedule" in config else None
    fraction = float(config["label_fraction"] or 0)
    return result.arm, str(config["arch"]), result.encoder, recipe, fraction, result.seed


def varied(recipe: Recipe) -> Recipe:
    """Without what a comparison plans for each number of beats."""
    usual = Recipe()
    return replace(recipe, epochs=usual.epochs, batch_size=usual.batch_size, validate_every=usual.validate_every)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Arms that differ in nothing but the seed of their pretraining; a control is a group of one."""

    name: str
    """Of the pretraining, or of the control."""
    words: str = ""
    """What of its recipe, and architecture, differs from other groups."""
    arm: str
    """majority, linear, random-frozen, scratch or transfer."""
    architecture: str
    recipe: Recipe | None
    """None of a control without an encoder."""
    arms: tuple[Arm | Control, ...]

    @property
    def label(self) -> str:
        return " · ".join(filter(None, (self.name, self.words)))

    def cell(self, arm: Arm | Control, fraction: float, seed: int) -> Cell:
        recipe = None if self.recipe is None else varied(self.recipe)
        return self.arm, self.architecture, arm.encoder_hash, recipe, fraction, seed


def adapt(recipe: Recipe, arm: str) -> Recipe:
    """The comparison's recipe for an arm: there is nothing in random weights to spare, or everything."""
    if arm == "scratch":
        return recipe.untrained()
    return replace(recipe.untrained(), schedule="frozen") if arm == "random-frozen" else recipe


def group_arms(arms: Sequence[Arm], recipes: Sequence[Recipe], controls: Sequence[Control] = ()) -> list[Group]:
    """The controls; then for each architecture, in the order of `arms`, by each recipe: random-frozen, scratch, and
    the groups of checkpoints. Recipes that come to the same for an arm are one.

    Raises:
        ValueError: the same encoder twice, or two that differ in nothing that their files tell.
    """
    _check_different(arms)
    groups = [
        Group(name=control.name, arm=control.name, architecture=control.architecture, recipe=None, arms=(control,))
        for control in controls
    ]
    specs = {arm.spec.label: arm.spec for arm in arms}
    for spec in specs.values():
        untrained = Arm(name="scratch", spec=spec)
        nested: dict[str, list[Arm]] = {}
        for pretrained in (arm for arm in arms if arm.spec.label == spec.label):
            nested.setdefault(json.dumps(_made_by(pretrained), sort_keys=True), []).append(pretrained)
        labels = _labels([_made_by(members[0]) for members in nested.values()])
        sides = [
            ("random-frozen", "random-frozen", (replace(untrained, name="random-frozen"),)),
            ("scratch", "scratch", (untrained,)),
            *(("transfer", *of) for of in zip(labels, map(tuple, nested.values()), strict=True)),
        ]
        for arm, name, members in sides:
            adapted = list(dict.fromkeys(adapt(recipe, arm) for recipe in recipes))
            groups += [
                Group(
                    name=name,
                    words=" · ".join(filter(None, (words, spec.label if len(specs) > 1 else ""))),
                    arm=arm,
                    architecture=spec.label,
                    recipe=recipe,
                    arms=members,
                )
                for recipe, words in zip(adapted, in_words(adapted), strict=True)
            ]
    return groups


def _made_by(arm: Arm) -> dict[str, Any]:
    """Whatever its file tells of a checkpoint's making but the seed."""
    assert arm.checkpoint is not None
    options = {name: value for name, value in arm.checkpoint.options.items() if name != "seed"}
    made_by = {**options, "task": arm.checkpoint.task, "source": arm.source}
    # A target's training part is cut anew for each seed; any other source is the same file for all.
    return made_by if OF_TRAINING in str(options.get("data")) else made_by | {"beats": arm.checkpoint.fingerprint}


def _labels(made_by: Sequence[Mapping[str, Any]]) -> list[str]:
    """The task of each, and where that is not all the difference, what else differs."""
    names = dict.fromkeys(name for made in made_by for name in made)
    different = [name for name in names if len({str(made.get(name)) for made in made_by}) > 1]
    more = [name for name in different if name not in ("task", "beats")] or different
    tasks = [made["task"] for made in made_by]
    return [
        task
        if tasks.count(task) == 1
        else ", ".join([task, *(f"{name} {made.get(name)}" for name in more if name != "task")])
        for task, made in zip(tasks, made_by, strict=True)
    ]


def _check_different(arms: Sequence[Arm]) -> None:
    seen: dict[str, Arm] = {}
    for arm in arms:
        assert arm.checkpoint is not None
        seed = json.dumps([_made_by(arm), arm.spec.to_json(), arm.checkpoint.seed], sort_keys=True)
        for key, what in (
            (arm.checkpoint.weights_hash, "hold the same encoder"),
            (seed, "say the same pretraining seed"),
        ):
            if key in seen:
                raise ValueError(f"{seen[key].origin} and {arm.origin} {what}: name each pretraining once")
            seen[key] = arm
