import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from experiments.results import RunResult
from finetune.controls import Control
from finetune.groups import Group, group_arms
from finetune.recipe import Recipe
from finetune.rows import Row, chosen, make_rows, show
from tests.samples import pretrained_arm, results_of

FRACTION = 0.01
FOUR = [pretrained_arm(task, seed) for task in ("masked", "contrastive") for seed in (0, 1)]
USUAL = (Recipe(),)


@pytest.fixture
def whole() -> tuple[list[Group], list[RunResult]]:
    groups = group_arms(FOUR, USUAL)
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
    groups = group_arms([pretrained_arm("masked", seed) for seed in range(num_encoders)], USUAL)
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
    groups = group_arms([pretrained_arm("masked", 0, source="PTB + mitdb (unlabelled)")], USUAL)
    assert "(unlabelled)" in shown(make_rows(groups, [FRACTION], results_of(groups[2], {(0, 0): 0.7})))


def test_a_recipe_is_compared_with_scratch_by_what_of_it_concerns_scratch() -> None:
    recipes = [
        Recipe(schedule=schedule, ratio=ratio, intervals=intervals)
        for intervals in ("none", "all")
        for schedule, ratio in (("frozen", 1.0), ("full", 0.1))
    ]
    groups = group_arms(FOUR[:1], recipes, [Control(name="majority"), Control(name="linear")])
    recall = {"majority": 0.5, "linear": 0.7, "random-frozen": 0.6, "scratch": 0.8, "transfer": 0.9}
    results = []
    for group in groups:
        better = 0.05 if group.recipe and group.recipe.intervals == "all" else 0.0
        results += results_of(group, {(0, seed): recall[group.arm] + better for seed in (0, 1)})
    rows = {row.label: row for row in make_rows(groups, [FRACTION], results)}
    assert len(rows) == len(groups) == 10
    for row in rows.values():
        expected = {"random-frozen": -0.2, "transfer": 0.1}.get(row.arm)
        assert (row.difference.mean if row.difference else None) == (expected and pytest.approx(expected)), row.label
        gap = None if row.arm == "linear" else pytest.approx(row.macro_recall - 0.7)
        assert (row.over_linear.mean if row.over_linear else None) == gap
    text = shown(list(rows.values()))
    assert "− linear" in text and "full, ratio 0.1, intervals all" in text


def test_with_many_rows_a_verdict_needs_more() -> None:
    """Eight wins of eight are p = .0078: enough for one row, not among seven."""
    for num_recipes, words in ((1, "transfer helps, for this checkpoint"), (7, "no evidence either way, for this")):
        recipes = [Recipe(ratio=1 / 2**number) for number in range(num_recipes)]
        groups = group_arms(FOUR[:1], recipes)
        results = results_of(groups[1], {(0, seed): 0.6 for seed in range(8)})
        for group in groups[2:]:
            results += results_of(group, {(0, seed): 0.7 + 0.002 * seed for seed in range(8)})
        row = make_rows(groups, [FRACTION], results)[-1]
        assert row.verdict.startswith(words)
        assert row.p_holm == pytest.approx(min(1, num_recipes * 2 / 2**8))
