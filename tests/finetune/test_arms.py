import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from experiments.metrics import scores
from experiments.results import Part, RunResult
from finetune import arms
from finetune.arms import Row, chosen, majority_confusion

CLASSES = ["N", "V"]
MAJORITY = np.array([[50, 0], [50, 0]])


def make_result(arm: str, seed: int, recall: float, part: Part = "test", encoder: str = "ab") -> RunResult:
    right = round(50 * recall)
    confusion = [[right, 50 - right], [50 - right, right]]
    return RunResult(
        arm=arm,
        encoder=encoder if arm == "transfer" else None,
        source="PTB" if arm == "transfer" else None,
        dataset="arrhythmia",
        config={},
        seed=seed,
        protocol="patient",
        badge="patient-disjoint",
        part=part,
        metrics=scores(confusion),
        confusion=confusion,
        classes=CLASSES,
        cost={"seconds": 2.0 + seed, "beats": 10.0},
        commit=None,
        created="2026-01-02T03:04:05+00:00",
    )


def make_results(recalls: dict[str, list[float]], validation: dict[str, float] | None = None) -> list[RunResult]:
    """Test recalls of each arm's seeds 0, 1, …; a validation recall for all seeds of an arm."""
    results = []
    for arm, values in recalls.items():
        for seed, recall in enumerate(values):
            validated = (validation or {}).get(arm, recall)
            results += [make_result(arm, seed, validated, "validation"), make_result(arm, seed, recall, "test")]
    return results


def rows_of(results: list[RunResult]) -> dict[str, Row]:
    return {row.arm: row for row in arms.make_rows(results, MAJORITY)}


THREE = {
    "transfer": [0.9, 0.8, 0.9],
    "scratch+": [0.7, 0.75],
    "scratch": [0.7, 0.7, 0.8],
    "random-frozen": [0.6, 0.6, 0.6],
}


def test_rows_come_in_one_order_whatever_the_results() -> None:
    for results in (make_results(THREE), make_results(dict(reversed(THREE.items())))[::-1]):
        assert [row.arm for row in arms.make_rows(results, MAJORITY)] == list(arms.ARMS)
    without = make_results({"scratch": [0.7]})
    assert [row.arm for row in arms.make_rows(without, MAJORITY)] == ["majority", "scratch"]


def test_a_row_is_the_mean_of_its_seeds_on_the_test_part() -> None:
    row = rows_of(make_results(THREE, validation={"transfer": 0.2}))["transfer"]
    assert row.num_seeds == 3
    assert row.macro_recall == pytest.approx(np.mean(THREE["transfer"]))
    assert row.metrics["macro_recall"] == row.macro_recall
    assert row.interval[0] < row.macro_recall < row.interval[1]
    assert row.recall == pytest.approx(dict.fromkeys(CLASSES, row.macro_recall))
    assert row.confusion == [pytest.approx([130 / 3, 20 / 3]), pytest.approx([20 / 3, 130 / 3])]
    assert row.validation_macro_recall == pytest.approx(0.2)
    assert (row.seconds, row.badge, row.source) == (3.0, "patient-disjoint", "PTB")


def test_the_majority_row_has_no_training() -> None:
    row = rows_of(make_results(THREE))["majority"]
    assert (row.macro_recall, row.recall) == (0.5, {"N": 1.0, "V": 0.0})
    assert (row.validation_macro_recall, row.difference, row.verdict) == (None, None, "")
    assert (row.seconds, row.badge) == (0.0, "patient-disjoint")


def test_differences_are_of_the_same_seed() -> None:
    results = [make_result("transfer", seed, recall) for seed, recall in ((5, 0.9), (3, 0.5), (4, 0.7))]
    results += [make_result("scratch", seed, recall) for seed, recall in ((3, 0.4), (4, 0.8), (5, 0.6))]
    difference = rows_of(results)["transfer"].difference
    assert difference is not None
    assert (difference.num_pairs, difference.wins) == (3, 2)
    assert difference.mean == pytest.approx((0.1 - 0.1 + 0.3) / 3)
    assert rows_of(results)["scratch"].difference is None


@pytest.mark.parametrize("arm", ["transfer", "scratch"])
def test_a_seed_without_its_pair_is_left_out_of_the_difference_alone(arm: str) -> None:
    results = [result for result in make_results(THREE) if (result.arm, result.seed) != (arm, 1)]
    rows = rows_of(results)
    difference = rows["transfer"].difference
    assert difference is not None
    assert difference.num_pairs == 2
    assert difference.mean == pytest.approx((0.2 + 0.1) / 2)
    assert rows[arm].num_seeds == 2


def test_without_a_pair_there_is_no_difference() -> None:
    results = [make_result("transfer", 0, 0.9), make_result("scratch", 1, 0.5)]
    row = rows_of(results)["transfer"]
    assert (row.difference, row.verdict) == (None, "")


def test_few_pairs_allow_no_verdict() -> None:
    rows = rows_of(make_results(THREE))
    assert rows["transfer"].verdict == "too few pairs (3)"
    assert (rows["scratch"].verdict, rows["random-frozen"].verdict) == ("", "")


EIGHT = [0.60, 0.62, 0.64, 0.66, 0.60, 0.62, 0.64, 0.66]


@pytest.mark.parametrize(
    ("transfer", "words"),
    [
        ([recall + 0.2 for recall in EIGHT], "transfer helps, for this checkpoint"),
        ([recall - 0.2 for recall in EIGHT], "transfer hurts, for this checkpoint"),
        (EIGHT[::-1], "no evidence either way, for this checkpoint"),
    ],
)
def test_eight_pairs_allow_a_verdict(transfer: list[float], words: str) -> None:
    assert rows_of(make_results({"transfer": transfer, "scratch": EIGHT}))["transfer"].verdict == words


def test_several_checkpoints_allow_a_verdict_on_pretraining() -> None:
    results = make_results({"transfer": [recall + 0.2 for recall in EIGHT], "scratch": EIGHT})
    several = [replace(r, encoder=f"encoder {r.seed}") if r.arm == "transfer" else r for r in results]
    assert rows_of(several)["transfer"].verdict == "transfer helps"


def test_an_arm_is_chosen_by_validation_and_not_by_test() -> None:
    recalls = {"transfer": [0.6], "scratch": [0.9]}
    for best, other in (("transfer", "scratch"), ("scratch", "transfer")):
        rows = arms.make_rows(make_results(recalls, validation={best: 0.8, other: 0.7}), MAJORITY)
        assert chosen(rows).arm == best


def test_the_majority_is_never_chosen() -> None:
    rows = arms.make_rows(make_results({"scratch": [0.1]}), MAJORITY)
    assert chosen(rows).arm == "scratch"


def test_the_majority_answers_the_class_most_frequent_in_training() -> None:
    confusion = majority_confusion([5, 90, 5], np.array([0, 0, 0, 1, 2]))
    assert confusion.tolist() == [[0, 3, 0], [0, 1, 0], [0, 1, 0]]


def test_rows_are_json() -> None:
    for row in arms.make_rows(make_results(THREE), MAJORITY):
        content = json.loads(json.dumps(row.to_json(), allow_nan=False))
        assert content["arm"] == row.arm
        assert content["macro_recall"] == row.macro_recall
        assert content["interval"] == list(row.interval)
        assert (content["difference"] is None) == (row.difference is None)


def test_rows_are_json_where_the_test_part_lacks_a_class() -> None:
    confusion = [[40, 10, 0], [10, 40, 0], [0, 0, 0]]
    result = replace(make_result("scratch", 0, 0.8), confusion=confusion, classes=["N", "V", "F"])
    for row in arms.make_rows([result], np.array(confusion)):
        assert json.loads(json.dumps(row.to_json(), allow_nan=False))["recall"]["F"] is None


def test_the_table_shows_every_arm_its_badge_and_the_chosen_one() -> None:
    rows = arms.make_rows(make_results(THREE), MAJORITY)
    stream = io.StringIO()
    Console(file=stream, width=200, color_system=None).print(arms.show(rows, "Transfer against scratch"))
    shown = stream.getvalue()
    assert "Transfer against scratch" in shown
    assert [name for name in arms.ARMS if name not in shown] == []
    assert shown.count("patient-disjoint") == len(rows)
    assert f"{chosen(rows).arm} ★" in shown and "too few pairs (3)" in shown
