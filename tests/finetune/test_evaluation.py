import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from sklearn import metrics as reference

from experiments import metrics
from experiments.resampling import Estimate
from experiments.thresholds import Alarms, Promises, alarms
from finetune import evaluation_tables
from finetune.evaluation import Calibration, Evaluation, Measure, Scored, calibrate, evaluate
from finetune.evaluation_pictures import draw_evaluation

CLASSES = ("N", "S", "V", "F")
SHARES = (0.6, 0.2, 0.15, 0.05)


def drawn(num_beats: int, seed: int, without: str = "") -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits that are right more often than not, and targets; none of the class `without`."""
    rng = np.random.default_rng(seed)
    shares = [0.0 if name == without else share for name, share in zip(CLASSES, SHARES, strict=True)]
    target = rng.choice(len(CLASSES), size=num_beats, p=np.array(shares) / sum(shares))
    return 2 * np.eye(len(CLASSES))[target] + 1.5 * rng.normal(size=(num_beats, len(CLASSES))), target


def calibration_of(num_beats: int = 400, **more: Any) -> Calibration:
    logits, target = drawn(num_beats, seed=1)
    limits = {"temperature": 1.3, "floor": 0.9, "limits": [0.1] * len(CLASSES), "fitted_on": "validation"}
    return calibrate(logits, target, **(limits | more))


def scored_of(num_beats: int = 500, *, patients: int = 12, without: str = "", **more: Any) -> Scored:
    logits, target = drawn(num_beats, seed=2, without=without)
    group = np.random.default_rng(3).integers(100, 100 + patients, num_beats) if patients else None
    usual = {"logits": logits, "target": target, "group": group, "classes": CLASSES, "calibration": calibration_of()}
    return Scored(**(usual | more))


def evaluation_of(scored: Scored, **more: str) -> Evaluation:
    usual = {"model": "a.pt", "data": "mitdb", "protocol": "patient", "badge": "patient-disjoint"}
    return evaluate(scored, seed=0, **(usual | more))


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluation_of(scored_of())


def test_every_figure_is_that_of_its_definition(evaluation: Evaluation) -> None:
    scored = scored_of()
    probability, answer = scored.probability, scored.logits.argmax(1)
    figures = {name: estimate.value for name, estimate in evaluation.estimates.items()}
    options: dict[str, Any] = {"average": None, "zero_division": 0}
    precision, recall, f1, _ = reference.precision_recall_fscore_support(scored.target, answer, **options)
    area = [reference.average_precision_score(scored.target == label, probability[:, label]) for label in range(4)]
    expected = {"recall": recall, "precision": precision, "f1": f1, "auprc": np.array(area)}
    raised = alarms(scored.calibration.thresholds, probability, scored.target)
    for name, values in expected.items():
        assert [figures[f"{name}_{label}"] for label in CLASSES] == pytest.approx(values), name
        assert figures[f"macro_{name}"] == pytest.approx(values.mean()), name
    for name, metric in (("macro_recall", metrics.macro_recall), ("accuracy", metrics.accuracy)):
        assert figures[name] == pytest.approx(float(metric(evaluation.confusion)))
    assert [figures[f"alarm_recall_{label}"] for label in CLASSES] == pytest.approx([one.recall for one in raised])
    assert [figures[f"alarm_precision_{label}"] for label in CLASSES] == pytest.approx(
        [one.precision for one in raised]
    )
    for label in CLASSES:
        assert figures[f"promise_miss_rate_{label}"] == pytest.approx(1 - figures[f"promise_recall_{label}"])
    bins = evaluation.reliability["calibrated"]
    error = sum(one.num_beats * abs(one.confidence - one.accuracy) for one in bins) / 500
    assert figures["ece"] == pytest.approx(error) and figures["ece_uncalibrated"] != figures["ece"]


def test_every_interval_holds_its_figure_and_has_a_width(evaluation: Evaluation) -> None:
    for name, estimate in evaluation.estimates.items():
        assert estimate.low < estimate.high, name
        if not name.startswith("ece"):  # whose resamples add noise to every bin
            assert estimate.low <= estimate.value <= estimate.high, name


def test_a_resample_is_measured_as_the_beats_that_it_draws() -> None:
    scored = scored_of(60)
    counts = np.bincount(np.random.default_rng(4).integers(0, 60, 60), minlength=60)
    beats = np.repeat(np.arange(60), counts)
    there = replace(scored, logits=scored.logits[beats], target=scored.target[beats], group=None)
    weighted, whole = Measure(scored)(counts[None].astype(float)), Measure(there)(np.ones((1, 60)))
    assert set(np.unique(there.target)) == {0, 1, 2, 3}
    assert {name: value[0] for name, value in weighted.items()} == pytest.approx(
        {name: value[0] for name, value in whole.items()}, nan_ok=True
    )


def test_a_class_without_test_beats_has_no_figures_and_does_not_count() -> None:
    evaluation = evaluation_of(scored_of(without="F"))
    estimates = evaluation.estimates
    assert all(math.isnan(estimates[f"{name}_F"].value) for name in ("recall", "f1", "precision", "auprc"))
    of_others = [estimates[f"recall_{name}"].value for name in "NSV"]
    assert estimates["macro_recall"].value == pytest.approx(np.mean(of_others))
    assert not math.isnan(estimates["macro_recall"].low)
    assert evaluation.outcome(3) == "no test beats"
    content = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert content["estimates"]["recall_F"] == {"value": None, "low": None, "high": None}


def test_a_resample_without_a_class_says_nothing_of_the_mean_over_classes() -> None:
    scored = scored_of(50)
    weights = (scored.target != 3).astype(float)[None]
    values = Measure(scored)(weights)
    assert math.isnan(values["macro_recall"][0]) and math.isnan(values["recall_F"][0])
    assert not math.isnan(values["recall_N"][0])


@pytest.mark.parametrize(
    ("patients", "protocol", "drawn_from", "number"),
    [
        (12, "patient", "patients", 12),
        (12, "ds1-ds2", "records", 12),
        (0, "beat-random", "beats", 500),
        (1, "patient", "beats", 500),
    ],
)
def test_intervals_are_drawn_from_patients_where_there_are_some(
    patients: int, protocol: str, drawn_from: str, number: int
) -> None:
    evaluation = evaluation_of(scored_of(patients=patients), protocol=protocol)
    assert (evaluation.drawn, evaluation.num_drawn) == (drawn_from, number)
    assert len(evaluation.patients) == (patients if drawn_from != "beats" else 0)
    assert ("optimistic" in evaluation_tables.intervals_said(evaluation)) == (drawn_from == "beats")


def test_a_beat_of_no_patient_leaves_patients_unknown() -> None:
    scored = scored_of()
    assert scored.group is not None
    evaluation = evaluation_of(replace(scored, group=np.where(np.arange(500) == 7, -1, scored.group)))
    assert (evaluation.drawn, evaluation.patients) == ("beats", [])


def test_patients_come_worst_first_and_hold_all_beats(evaluation: Evaluation) -> None:
    patients = evaluation.patients
    assert [one.macro_recall for one in patients] == sorted(one.macro_recall for one in patients)
    assert sum(one.num_beats for one in patients) == 500
    scored = scored_of()
    for one in patients:
        mine = scored.group == one.name
        right = scored.logits[mine].argmax(1) == scored.target[mine]
        for label, name in enumerate(CLASSES):
            of_class = scored.target[mine] == label
            assert one.support[name] == of_class.sum()
            assert one.recall[name] == pytest.approx(
                right[of_class].mean() if of_class.any() else math.nan, nan_ok=True
            )


@pytest.mark.parametrize(
    ("missed", "low", "outcome"),
    [
        (0.1, 0.05, "kept"),
        (0.3, 0.09, "exceeded, within chance"),
        (0.2, 0.12, "exceeded, within chance"),
        (0.3, 0.12, "exceeded"),
    ],
)
def test_a_promise_is_exceeded_where_neither_test_nor_validation_beats_explain_it(
    evaluation: Evaluation, missed: float, low: float, outcome: str
) -> None:
    """Of 39 validation beats 3 may be missed: 10 or more of 50 test beats then are in 9 % of the cases, 15 in .8 %."""
    promises = Promises(limits=(0.1,), values=(0.4,), num_beats=(39,))
    assert promises.chance(0, 10, 50) > 0.05 > promises.chance(0, 15, 50)
    calibration = replace(evaluation.calibration, promises=promises)
    estimates = {"promise_miss_rate_N": Estimate(value=missed, low=low, high=0.6)}
    promised = [Alarms(recall=1 - missed, precision=0.5, num_alarms=60, support=50)]
    made_up = replace(evaluation, calibration=calibration, estimates=estimates, promised=promised)
    assert made_up.outcome(0) == outcome


def test_a_class_of_few_validation_beats_has_no_promise() -> None:
    few = evaluation_of(scored_of(200, calibration=calibration_of(40)))
    promises = few.calibration.promises
    assert promises is not None and promises.num_beats[3] < 9
    assert few.outcome(3) == f"no promise: {promises.num_beats[3]} validation beats, 9 needed"
    assert math.isnan(few.estimates["promise_miss_rate_F"].value)


def test_promises_of_like_beats_are_seldom_called_exceeded() -> None:
    """The share of draws of validation and test in which one is, of four classes."""
    outcomes = []
    for seed in range(60):
        calibration = calibrate(*drawn(200, 1000 + seed), 1.0, 0.9, [0.1] * 4, "validation")
        logits, target = drawn(300, 5000 + seed)
        scored = Scored(logits=logits, target=target, group=None, classes=CLASSES, calibration=calibration)
        promises = calibration.promises
        assert promises is not None
        raised = alarms(promises, scored.probability, target)
        for label, one in enumerate(raised):
            if promises.values[label] is not None and one.support:
                missed = round((1 - one.recall) * one.support)
                outcomes.append(promises.chance(label, missed, one.support) <= 0.05)
    assert np.mean(outcomes) <= 0.08


def test_no_beats_are_refused() -> None:
    with pytest.raises(ValueError, match="mitdb has no test beats by patient"):
        evaluation_of(scored_of(0, logits=np.zeros((0, 4)), target=np.zeros(0, np.int64), group=None))


def printed(evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch) -> str:
    stream = io.StringIO()
    monkeypatch.setattr(evaluation_tables.tables, "console", lambda: Console(file=stream, width=200, color_system=None))
    evaluation_tables.show(evaluation)
    return stream.getvalue()


def test_every_table_wears_its_badge_and_holds_what_json_holds(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = printed(evaluation, monkeypatch)
    assert text.count("leakage patient-disjoint") == 4 and text.count("┏") == 4
    rows = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    assert [row for row in rows if row][:10] == [
        *("recall", "F1", "precision", "AUPRC", "alarms: threshold", "alarms: recall", "alarms: precision"),
        *("ECE before temperature", "ECE after temperature", "accuracy"),
    ]
    content = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    for name in ("macro_recall", "recall_S", "auprc_V", "alarm_precision_F", "ece", "accuracy"):
        assert f"{content['estimates'][name]['value']:.3f}" in text
    worst = content["patients"][0]
    assert f"{worst['name']} │ " in text and f"{worst['macro_recall']:.3f}" in text
    assert f"{len(content['patients'])} whole patients" in text and "the 10 worst of 12" in text


def test_without_promises_the_tables_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = replace(calibration_of(), promises=None, validated=())
    evaluation = evaluation_of(scored_of(patients=0, calibration=calibration), badge="unknown")
    text = printed(evaluation, monkeypatch)
    assert "no promise" in text and text.count("leakage unknown") == 2 and "Promised" not in text
    assert "outcomes" not in evaluation.to_json()
    assert not [name for name in evaluation.estimates if name.startswith("promise")]


def words(path: Path) -> str:
    return " ".join("".join(element.itertext()) for element in ElementTree.parse(path).getroot().iter())


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({}, ["reliability", "precision_recall", "confusion", "patients"]),
        ({"patients": 0, "without": "F"}, ["reliability", "precision_recall", "confusion"]),
        ({"patients": 45}, ["reliability", "precision_recall", "confusion", "patients"]),
    ],
    ids=["patients", "without", "many"],
)
def test_pictures_are_written_with_words_and_badges(tmp_path: Path, more: dict[str, Any], names: list[str]) -> None:
    scored = scored_of(**more)
    files = draw_evaluation(tmp_path, evaluation_of(scored), scored)
    assert files == [tmp_path / f"{name}.{end}" for name in names for end in ("png", "svg")]
    for name in names:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "leakage patient-disjoint" in words(tmp_path / f"{name}.svg"), name
    text = words(tmp_path / "precision_recall.svg")
    assert ("F: no beats" in text) == ("without" in more) and "promise, misses ≤ 10 %" in text
    if "patients" in names:
        assert ("the 40 worst of 45" in words(tmp_path / "patients.svg")) == (more.get("patients") == 45)
