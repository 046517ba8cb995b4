from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from finetune.controls import Control
from finetune.groups import Group, cell_of, group_arms
from finetune.recipe import Recipe
from finetune.train import Arm, Context
from tests.samples import pretrained_arm

FOUR = [pretrained_arm(task, seed) for task in ("masked", "contrastive") for seed in (0, 1)]
USUAL = (Recipe(),)


def test_pretraining_seeds_are_one_group_and_every_architecture_has_its_controls() -> None:
    groups = group_arms([*FOUR, pretrained_arm("masked", 0, "b"), pretrained_arm("masked", 1, "b")], USUAL)
    assert [(group.arm, group.architecture[:16], len(group.arms)) for group in groups] == [
        *(("random-frozen", "resnet1d@width=2", 1), ("scratch", "resnet1d@width=2", 1)),
        *(("transfer", "resnet1d@width=2", 2), ("transfer", "resnet1d@width=2", 2)),
        *(("random-frozen", "resnet1d@width=3", 1), ("scratch", "resnet1d@width=3", 1)),
        ("transfer", "resnet1d@width=3", 2),
    ]
    assert [group.label.split(" ·")[0] for group in groups[2:4]] == ["masked", "contrastive"]
    assert all(arm.encoder_hash is None for group in groups if group.arm != "transfer" for arm in group.arms)


@pytest.mark.parametrize(
    ("other", "labels"),
    [
        (pretrained_arm("masked", 1, epochs=9), ["masked, epochs 5", "masked, epochs 9"]),
        (pretrained_arm("masked", 1, source="PTB-XL", epochs=5), ["masked, source PTB", "masked, source PTB-XL"]),
    ],
    ids=["epochs", "source"],
)
def test_pretraining_that_differs_otherwise_is_another_group_and_says_how(other: Arm, labels: list[str]) -> None:
    groups = group_arms([pretrained_arm("masked", 0, epochs=5), other], USUAL)[2:]
    assert [len(group.arms) for group in groups] == [1, 1]
    assert all(group.label.startswith(label) for group, label in zip(groups, labels, strict=True))


def test_seeds_of_a_targets_own_training_beats_are_one_group() -> None:
    """Their beats differ, since the validation part is cut anew for each seed; other sources' beats must not."""
    for data, sizes in (("ptb,arrhythmia:train", [2]), ("ptb", [1, 1])):
        arms = [pretrained_arm("masked", seed, data=data) for seed in (0, 1)]
        other = replace(arms[1].checkpoint, fingerprint="of other beats")  # pyright: ignore[reportArgumentType]
        groups = group_arms([arms[0], replace(arms[1], checkpoint=other)], USUAL)
        assert [len(group.arms) for group in groups if group.arm == "transfer"] == sizes


def test_the_same_encoder_or_seed_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"masked0\.pt and masked0\.pt hold the same encoder"):
        group_arms([FOUR[0], FOUR[0]], USUAL)
    other = replace(FOUR[1], checkpoint=replace(FOUR[1].checkpoint, seed=0, options={"seed": 0}))  # pyright: ignore
    with pytest.raises(ValueError, match=r"masked0\.pt and masked1\.pt say the same pretraining seed"):
        group_arms([FOUR[0], other], USUAL)


def test_one_recipe_for_all_but_what_random_weights_cannot_use() -> None:
    recipe = Recipe(schedule="gradual", ratio=0.1, l2_sp=0.1, batchnorm="still", head="mlp", lr=1e-3)
    frozen, scratch, transfer, _ = group_arms(FOUR, [recipe])
    assert transfer.recipe == recipe
    assert scratch.recipe == Recipe(head="mlp", lr=1e-3)
    assert frozen.recipe == Recipe(schedule="frozen", head="mlp", lr=1e-3)


SCHEDULES = [Recipe(schedule="frozen"), Recipe(ratio=0.1), Recipe()]
INTERVALS = [Recipe(ratio=0.1), Recipe(ratio=0.1, intervals="all")]


@pytest.mark.parametrize(
    ("recipes", "labels"),
    [
        (USUAL, {"random-frozen": [""], "scratch": [""], "masked": [""]}),
        (SCHEDULES, {"random-frozen": [""], "scratch": [""], "masked": ["frozen", "full, ratio 0.1", "full, ratio 1"]}),
        (INTERVALS, {name: ["intervals none", "intervals all"] for name in ("random-frozen", "scratch", "masked")}),
    ],
    ids=["one", "schedules", "intervals"],
)
def test_a_control_has_each_recipe_once_that_says_anything_of_it(
    recipes: Sequence[Recipe], labels: dict[str, list[str]]
) -> None:
    groups = group_arms(FOUR[:2], recipes)
    assert {name: [group.words for group in groups if group.name == name] for name in labels} == labels
    assert len(groups) == sum(map(len, labels.values()))


def test_controls_without_an_encoder_come_first_and_know_no_recipe() -> None:
    groups = group_arms(FOUR, SCHEDULES, [Control(name="majority"), Control(name="linear")])
    assert [(group.label, group.recipe, group.architecture) for group in groups[:2]] == [
        ("majority", None, "none"),
        ("linear", None, "none"),
    ]


@pytest.mark.parametrize(
    "group", group_arms(FOUR, SCHEDULES, [Control(name="majority")]), ids=lambda group: group.label
)
def test_a_recorded_result_is_found_again_whatever_few_labels_made_of_its_recipe(group: Group) -> None:
    arm = group.arms[-1]
    recipe = group.recipe and replace(group.recipe, epochs=77, batch_size=3, validate_every=9)
    context = Context(
        dataset="d", protocol="p", badge="b", classes=("N", "V"), labels={"label_fraction": 0.01, "train_beats": 9}
    )
    result = context.result(arm, recipe, 4, "test", confusion=np.eye(2, dtype=int), cost={})
    assert cell_of(result) == group.cell(arm, 0.01, 4)


def test_no_two_runs_of_a_comparison_are_taken_for_each_other() -> None:
    groups = group_arms([*FOUR, pretrained_arm("masked", 0, "b")], [*SCHEDULES, *INTERVALS], [Control(name="linear")])
    cells = [group.cell(arm, 0.01, 4) for group in groups for arm in group.arms]
    assert len(set(cells)) == len(cells)
