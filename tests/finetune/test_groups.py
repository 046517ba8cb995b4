import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

import models
from experiments.metrics import scores
from experiments.results import Part, RunResult
from finetune.groups import Group, Row, chosen, group_arms, make_rows, show
from finetune.recipe import Recipe
from finetune.train import Arm
from models.encoder import EncoderSpec, Option
from tests.samples import checkpoint_of

WIDTHS = {"a": 2, "b": 3}
FRACTION = 0.01


def make_arm(task: str, seed: int, arch: str = "a", source: str = "PTB", **options: Option) -> Arm:
    spec = EncoderSpec(name="resnet1d", options={"width": WIDTHS[arch], "kernel": 3})
    torch.manual_seed(hash((task, seed, arch, source, *options.values())) % 2**31)
    checkpoint = replace(
        checkpoint_of(spec, models.build(spec), source=source), task=task, seed=seed, options={**options, "seed": seed}
    )
    return Arm(name="transfer", spec=spec, checkpoint=checkpoint, origin=f"{task}{seed}.pt")


FOUR = [make_arm(task, seed) for task in ("masked", "contrastive") for seed in (0, 1)]


def results_of(group: Group, recalls: dict[tuple[int, int], float], fraction: float = FRACTION) -> list[RunResult]:
    """Validation and test results by (place of the arm in the group, seed); both parts score alike."""
    parts: tuple[Part, ...] = ("validation", "test")
    return [
        make_result(group, group.arms[place], seed, recall, part, fraction)
        for (place, seed), recall in recalls.items()
        for part in parts
    ]


def make_result(group: Group, arm: Arm, seed: int, recall: float, part: Part, fraction: float) -> RunResult:
    right = round(1000 * recall)
    confusion = [[right, 1000 - right], [1000 - right, right]]
    return RunResult(
        arm=group.arm,
        encoder=arm.encoder_hash,
        source=arm.source,
        dataset="arrhythmia",
        config={"arch": arm.spec.label, "label_fraction": fraction, "train_beats": 788},
        seed=seed,
        protocol="patient",
        badge="patient-disjoint",
        part=part,
        metrics=scores(confusion),
        confusion=confusion,
        classes=["N", "V"],
        cost={"seconds": 2.0},
        commit=None,
        created="2026-01-02T03:04:05+00:00",
    )


def test_pretraining_seeds_are_one_group_and_every_architecture_has_its_controls() -> None:
    groups = group_arms([*FOUR, make_arm("masked", 0, "b"), make_arm("masked", 1, "b")])
    assert [(group.arm, group.architecture[:16], len(group.arms)) for group in groups] == [
        *(("random-frozen", "resnet1d@width=2", 1), ("scratch", "resnet1d@width=2", 1)),
        *(("transfer", "resnet1d@width=2", 2), ("transfer", "resnet1d@width=2", 2)),
        *(("random-frozen", "resnet1d@width=3", 1), ("scratch", "resnet1d@width=3", 1)),
        ("transfer", "resnet1d@width=3", 2),
    ]
    assert [group.label.split(" ·")[0] for group in groups[2:4]] == ["masked", "contrastive"]
    assert all(arm.checkpoint is None for group in groups if group.arm != "transfer" for arm in group.arms)


@pytest.mark.parametrize(
    ("other", "labels"),
    [
        (make_arm("masked", 1, epochs=9), ["masked, epochs 5", "masked, epochs 9"]),
        (make_arm("masked", 1, source="PTB-XL", epochs=5), ["masked, source PTB", "masked, source PTB-XL"]),
    ],
    ids=["epochs", "source"],
)
def test_pretraining_that_differs_otherwise_is_another_group_and_says_how(other: Arm, labels: list[str]) -> None:
    groups = group_arms([make_arm("masked", 0, epochs=5), other])[2:]
    assert [len(group.arms) for group in groups] == [1, 1]
    assert all(group.label.startswith(label) for group, label in zip(groups, labels, strict=True))


def test_seeds_of_a_targets_own_training_beats_are_one_group() -> None:
    """Their beats differ, since the validation part is cut anew for each seed; other sources' beats must not."""
    for data, sizes in (("ptb,arrhythmia:train", [2]), ("ptb", [1, 1])):
        arms = [make_arm("masked", seed, data=data) for seed in (0, 1)]
        other = replace(arms[1].checkpoint, fingerprint="of other beats")  # pyright: ignore[reportArgumentType]
        groups = group_arms([arms[0], replace(arms[1], checkpoint=other)])
        assert [len(group.arms) for group in groups if group.arm == "transfer"] == sizes


def test_the_same_encoder_or_seed_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"masked0\.pt and masked0\.pt hold the same encoder"):
        group_arms([FOUR[0], FOUR[0]])
    other = replace(FOUR[1], checkpoint=replace(FOUR[1].checkpoint, seed=0, options={"seed": 0}))  # pyright: ignore
    with pytest.raises(ValueError, match=r"masked0\.pt and masked1\.pt say the same pretraining seed"):
        group_arms([FOUR[0], other])


def test_one_recipe_for_all_but_what_random_weights_cannot_use() -> None:
    frozen, scratch, transfer, _ = group_arms(FOUR)
    recipe = Recipe(schedule="gradual", ratio=0.1, l2_sp=0.1, batchnorm="still", head="mlp", lr=1e-3)
    assert transfer.adapt(recipe) == recipe
    assert scratch.adapt(recipe) == Recipe(head="mlp", lr=1e-3)
    assert frozen.adapt(recipe) == Recipe(schedule="frozen", head="mlp", lr=1e-3)


@pytest.fixture
def whole() -> tuple[list[Group], list[RunResult]]:
    groups = group_arms(FOUR)
    frozen, scratch, masked, contrastive = groups
    results = results_of(frozen, {(0, 0): 0.55, (0, 1): 0.57}) + results_of(scratch, {(0, 0): 0.6, (0, 1): 0.7})
    results += results_of(masked, {(0, 0): 0.7, (0, 1): 0.8, (1, 0): 0.5, (1, 1): 0.8})
    results += results_of(contrastive, {(0, 0): 0.9, (0, 1): 0.9, (1, 0): 0.9})
    return groups, results


def test_a_row_nests_pretraining_and_fine_tune_seeds(whole: tuple[list[Group], list[RunResult]]) -> None:
    rows = make_rows(whole[0], [FRACTION], whole[1])
    frozen, scratch, masked, _ = rows
    assert (masked.num_pretraining_seeds, masked.num_seeds, masked.num_runs) == (2, 2, 4)
    assert masked.macro_recall == pytest.approx(0.7)
    assert masked.recall == pytest.approx({"N": 0.7, "V": 0.7})
    assert masked.difference is not None
    assert masked.difference.mean == pytest.approx((0.1 + 0.1 - 0.1 + 0.1) / 4)
    assert (masked.difference.wins, masked.difference.num_pairs, masked.num_collapsed) == (3, 4, 1)
    assert (masked.verdict, masked.badge, masked.source) == ("too few pairs (4)", "patient-disjoint", "PTB")
    assert (scratch.difference, scratch.num_pretraining_seeds, scratch.source) == (None, 0, None)
    assert frozen.difference is not None and (frozen.difference.num_pairs, frozen.verdict) == (2, "")


def test_a_seed_that_an_encoder_lacks_is_left_out_of_the_difference_alone(
    whole: tuple[list[Group], list[RunResult]],
) -> None:
    contrastive = make_rows(whole[0], [FRACTION], whole[1])[3]
    assert (contrastive.num_pretraining_seeds, contrastive.num_seeds, contrastive.num_runs) == (2, 2, 3)
    assert contrastive.difference is not None
    assert (contrastive.difference.num_pairs, contrastive.difference.low) == (2, None)
    assert contrastive.difference.mean == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("num_encoders", "gain", "words"),
    [
        (1, 0.2, "transfer helps, for this checkpoint"),
        (2, 0.2, "too few pretraining seeds (2)"),
        (3, 0.2, "transfer helps"),
        (3, -0.2, "transfer hurts"),
        (3, 0.0, "no evidence either way"),
    ],
)
def test_the_verdict_speaks_of_pretraining_from_three_seeds_on(num_encoders: int, gain: float, words: str) -> None:
    groups = group_arms([make_arm("masked", seed) for seed in range(num_encoders)])
    seeds = range(8)
    results = results_of(groups[1], {(0, seed): 0.6 + 0.01 * seed for seed in seeds})
    noise = {(place, seed): 0.01 * ((3 * place + seed) % 5 - 2) for place in range(num_encoders) for seed in seeds}
    results += results_of(groups[2], {(p, k): 0.6 + 0.01 * k + gain + extra for (p, k), extra in noise.items()})
    assert make_rows(groups, [FRACTION], results)[-1].verdict == words


def test_without_scratch_there_is_no_difference(whole: tuple[list[Group], list[RunResult]]) -> None:
    groups, results = whole
    rows = make_rows(groups, [FRACTION], [result for result in results if result.arm != "scratch"])
    assert [row.difference for row in rows] == [None] * 3 and {row.verdict for row in rows} == {""}


def test_each_label_fraction_has_its_rows_and_its_choice_by_validation(
    whole: tuple[list[Group], list[RunResult]],
) -> None:
    groups, results = whole
    results = [*results, *results_of(groups[1], {(0, 0): 0.9}, 1.0), *results_of(groups[2], {(0, 0): 0.8}, 1.0)]
    worse = {("validation", "scratch"): 0.1}
    results = [
        replace(r, metrics=r.metrics | {"macro_recall": worse.get((r.part, r.arm), r.metrics["macro_recall"])})
        for r in results
    ]
    rows = make_rows(groups, [FRACTION, 1.0], results)
    assert [row.label_fraction for row in rows] == [FRACTION] * 4 + [1.0] * 2
    assert {fraction: row.label for fraction, row in chosen(rows).items()} == {
        FRACTION: groups[3].label,
        1.0: groups[2].label,
    }


def test_rows_are_json_and_hold_every_run(whole: tuple[list[Group], list[RunResult]]) -> None:
    rows = make_rows(whole[0], [FRACTION], whole[1])
    content = json.loads(json.dumps([row.to_json() for row in rows], allow_nan=False))
    assert [len(row["runs"]) for row in content] == [2, 2, 4, 3]
    assert content[2]["difference"]["num_pairs"] == 4
    assert {run["encoder"] for run in content[2]["runs"]} == {arm.encoder_hash for arm in FOUR[:2]}


def shown(rows: list[Row]) -> str:
    stream = io.StringIO()
    Console(file=stream, width=200, color_system=None).print(show(rows, "Pretrained against scratch"))
    return stream.getvalue()


def test_the_tables_show_groups_badges_sources_and_the_chosen_one(whole: tuple[list[Group], list[RunResult]]) -> None:
    text = shown(make_rows(whole[0], [FRACTION], whole[1]))
    assert [group.label.split(" ·")[0] for group in whole[0] if group.label.split(" ·")[0] not in text] == []
    assert text.count("patient-disjoint") == 4 and text.count("0.01 (788)") == 8 and "2 × 2" in text
    assert text.count("★") == 3 and "too few pairs (4)" in text and "PTB" in text


def test_unlabelled_target_beats_are_shown_where_the_checkpoint_says_so() -> None:
    groups = group_arms([make_arm("masked", 0, source="PTB + mitdb (unlabelled)")])
    assert "(unlabelled)" in shown(make_rows(groups, [FRACTION], results_of(groups[2], {(0, 0): 0.7})))
