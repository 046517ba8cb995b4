import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import data
import models
from data.synthetic import synthetic_arrhythmia
from experiments.thresholds import Thresholds
from finetune.evaluate import miss_rates
from models.checkpoint import Checkpoint, load, save
from models.encoder import EncoderSpec
from tests.samples import assert_refused, checkpoint_of, classifier_of

RunMany = Callable[..., list[tuple[int | str, str, str]]]

ARCH = "resnet1d@width=2,kernel=3"
SEED = 3


def write_beats(path: Path, num_beats: int, seed: int, classes: str = "NSVFQ") -> None:
    """Beats of the named classes, ten a patient, as a table of one's own."""
    beats = synthetic_arrhythmia(num_beats, seed)
    names = [beats.classes[label] for label in beats.labels.tolist()]
    rows = [
        (signal, name, row // 10)
        for row, (signal, name) in enumerate(zip(beats.signal[:, 0].tolist(), names, strict=True))
    ]
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*range(187), "label", "patient"])
        writer.writerows([*signal, name, patient] for signal, name, patient in rows if name in classes)


def classifier_file(path: Path, beats: Path, without: tuple[str, ...] = (), **more: Any) -> Checkpoint:
    """A classifier of `beats` by patient, whose validation part was cut by `SEED`; its options but those `without`."""
    name = f"csv:{beats}"
    split = data.load_split(name, "patient", beats.parent, SEED)
    options = {
        "data": name,
        "protocol": "patient",
        "badge": split.badge,
        "split_seed": SEED,
        "validated_on": split.validation.fingerprint,
        "temperature": 1.5,
        "thresholds": Thresholds(floor=0.8, values=(0.2,) * 5).to_json(),
    }
    kept = {name: value for name, value in options.items() if name not in without}
    checkpoint = replace(classifier_of(ARCH, **kept), classes=split.train.classes, **more)
    save(path, checkpoint)
    return checkpoint


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tables of beats, one of fewer classes, one that has changed; classifiers of the first, whole and lacking."""
    root = tmp_path_factory.mktemp("evaluate")
    write_beats(root / "beats.csv", 600, seed=0)
    write_beats(root / "others.csv", 400, seed=1)
    write_beats(root / "fewer.csv", 300, seed=2, classes="NSV")
    write_beats(root / "changed.csv", 300, seed=4)
    beats = root / "beats.csv"
    whole = classifier_file(root / "a.pt", beats)
    classifier_file(root / "bare.pt", beats, without=("temperature", "thresholds"))
    classifier_file(root / "uncalibrated.pt", beats, without=("temperature",))
    classifier_file(root / "old.pt", beats, without=("validated_on",))
    classifier_file(root / "untold.pt", beats, without=("data", "protocol"))
    classifier_file(root / "changed.pt", root / "changed.csv")
    write_beats(root / "changed.csv", 300, seed=5)
    about = dict(whole.preprocessing)
    save(root / "short.pt", replace(whole, preprocessing=about | {"num_samples": 110}))
    save(root / "fast.pt", replace(whole, preprocessing=about | {"rate_hz": 360.0}))
    reading = classifier_of(ARCH, intervals="causal")
    options = {**whole.options, "intervals": "causal"}
    save(root / "intervals.pt", replace(reading, classes=whole.classes, options=options))
    save(root / "odd.pt", replace(whole, options={**whole.options, "thresholds": {"floor": 2}}))
    encoder = models.build(EncoderSpec(name="resnet1d", options={"width": 2, "kernel": 3}))
    save(root / "encoder.pt", checkpoint_of(encoder.spec, encoder))
    (root / "file").write_text("")
    return root


PROLOGUE = """
from pathlib import Path
import experiments.results, finetune.evaluate

experiments.results.STORE = Path({store!r})

draw = finetune.evaluate.draw_evaluation
finetune.evaluate.draw_evaluation = lambda folder, *more: [] if folder.name == "undrawn" else draw(folder, *more)
"""
EVALUATE = "evaluate {root}/a.pt --threads 1 --out {root}/undrawn --json {root}/{case}.json"
TRAIN = f"""train --encoder scratch --arch {ARCH} --data csv:{{root}}/beats.csv --protocol patient --epochs 1 --seed 5
    --threads 1 --tracking none --label-fraction 0.5 --out {{root}}/trained.pt --json {{root}}/{{case}}.json"""
GOOD = {
    "train": TRAIN,
    "trained": EVALUATE.replace("a.pt", "trained.pt"),
    "own": EVALUATE.replace("undrawn", "pictures"),
    "by-another-name": f"{EVALUATE} --data csv:{{root}}/../{{name}}/beats.csv --protocol patient --seed {SEED}",
    "again": EVALUATE,
    "promised": f"{EVALUATE} --miss-rate 0.2 V=0.4 --recall-floor 0.6",
    "other": f"{EVALUATE} --data csv:{{root}}/others.csv",
    "recalibrated": f"{EVALUATE} --data csv:{{root}}/others.csv --recalibrate --miss-rate 0.25",
    "recalibrated-bare": f"{EVALUATE} --data csv:{{root}}/others.csv --recalibrate".replace("a.pt", "bare.pt"),
    "own-bare": EVALUATE.replace("a.pt", "bare.pt"),
}
BAD: dict[str, tuple[str, list[str]]] = {
    "no-model": ("evaluate", ["Classifier FILE", "required"]),
    "missing": ("evaluate {root}/absent.pt", ["{root}/absent.pt does not exist"]),
    "encoder": ("evaluate {root}/encoder.pt", ["{root}/encoder.pt holds an encoder without a head"]),
    "threads": ("evaluate {root}/a.pt --threads 0", ["--threads 0"]),
    "device": ("evaluate {root}/a.pt --device tpu", ["tpu", "auto, cpu, cuda"]),
    "out": ("evaluate {root}/a.pt --out {root}/file", ["--out {root}/file"]),
    "json": ("evaluate {root}/a.pt --json {root}", ["--json {root} is a folder"]),
    "floor": ("evaluate {root}/a.pt --recall-floor 0", ["--recall-floor 0"]),
    "rate": ("evaluate {root}/a.pt --miss-rate 1", ["--miss-rate 1", "above 0 and below 1"]),
    "rate-word": ("evaluate {root}/a.pt --miss-rate few", ["--miss-rate few", "V=0.05"]),
    "rate-class": ("evaluate {root}/a.pt --miss-rate X=0.1", ["--miss-rate X=0.1", "the classes are F, N, Q, S, V"]),
    "data": ("evaluate {root}/a.pt --data mnist", ["mnist", "arrhythmia"]),
    "no-data": ("evaluate {root}/a.pt --data csv:{root}/absent.csv", ["{root}/absent.csv"]),
    "protocol": ("evaluate {root}/a.pt --data synthetic-arrhythmia --protocol folds", ["beat-random, patient"]),
    "untold": ("evaluate {root}/untold.pt", ["{root}/untold.pt", "name --data and --protocol"]),
    "leak": (
        "evaluate {root}/a.pt --protocol beat-random",
        ["beats.csv by patient", "may hold test beats", "train one by beat-random"],
    ),
    "leak-by-another-name": (
        "evaluate {root}/a.pt --data csv:{root}/../{name}/beats.csv --protocol beat-random",
        ["may hold test beats"],
    ),
    "seed": ("evaluate {root}/a.pt --seed 1", ["--seed 1", "{root}/a.pt was trained on", "leave --seed out"]),
    "changed": ("evaluate {root}/changed.pt", ["changed.csv here are not those", "--data-dir"]),
    "old": ("evaluate {root}/old.pt", ["{root}/old.pt does not say which beats validated it", "train it again"]),
    "classes": ("evaluate {root}/a.pt --data csv:{root}/fewer.csv", ["tells F, N, Q, S, V apart", "N, S, V"]),
    "short": ("evaluate {root}/short.pt", ["{root}/short.pt takes beats", "110", "187"]),
    "fast": ("evaluate {root}/fast.pt", ["{root}/fast.pt takes beats at 360 Hz", "125"]),
    "intervals": ("evaluate {root}/intervals.pt", ["{root}/intervals.pt reads RR intervals (causal)"]),
    "odd": ("evaluate {root}/odd.pt", ["not recorded thresholds"]),
    "bare": ("evaluate {root}/bare.pt --data csv:{root}/others.csv", ["bare.pt has no thresholds", "--recalibrate"]),
    "uncalibrated": (
        "evaluate {root}/uncalibrated.pt --data csv:{root}/others.csv",
        ["uncalibrated.pt has no temperature", "--recalibrate"],
    ),
    "rate-of-others": (
        "evaluate {root}/a.pt --data csv:{root}/others.csv --miss-rate 0.1",
        ["--miss-rate", "others.csv", "--recalibrate"],
    ),
    "floor-of-others": (
        "evaluate {root}/a.pt --data csv:{root}/others.csv --recall-floor 0.9",
        ["--recall-floor", "others.csv", "--recalibrate"],
    ),
}


@pytest.fixture(scope="module")
def answers(root: Path, run_many: RunMany) -> dict[str, tuple[int | str, str, str]]:
    cases = GOOD | {case: args for case, (args, _) in BAD.items()}
    commands = [args.format(root=root, name=root.name, case=case).split() for case, args in cases.items()]
    prologue = PROLOGUE.format(store=str(root / "results.jsonl"))
    return dict(zip(cases, run_many("finetune", commands, prologue), strict=True))


@pytest.mark.parametrize("case", BAD)
def test_a_bad_input_is_one_line(case: str, root: Path, answers: dict[str, tuple[int | str, str, str]]) -> None:
    assert_refused(answers[case], [part.format(root=root) for part in BAD[case][1]])


@pytest.fixture(scope="module")
def reports(root: Path, answers: dict[str, tuple[int | str, str, str]]) -> dict[str, Any]:
    for case in GOOD:
        assert (answers[case][0], answers[case][2]) == (0, ""), (case, answers[case])
    return {case: json.loads((root / f"{case}.json").read_text()) for case in GOOD}


def test_a_classifier_is_evaluated_where_it_was_made(root: Path, reports: dict[str, Any]) -> None:
    own = reports["own"]
    assert (own["badge"], own["protocol"], own["seed"], own["drawn"]) == (
        "patient-disjoint",
        "patient",
        SEED,
        "patients",
    )
    assert own["num_beats"] == sum(map(sum, own["confusion"])) == sum(one["num_beats"] for one in own["patients"])
    assert own["calibration"]["thresholds"]["floor"] == 0.8
    assert own["calibration"]["promises"]["limits"] == [0.05] * 5
    assert sorted(own["outcomes"]) == list("FNQSV")
    names = ("reliability", "precision_recall", "confusion", "patients")
    assert own["pictures"] == [str(root / "pictures" / f"{name}.{end}") for name in names for end in ("png", "svg")]
    assert all(Path(file).exists() for file in own["pictures"])


def test_a_file_by_another_name_is_the_same_data(reports: dict[str, Any]) -> None:
    own, other = reports["own"], reports["by-another-name"]
    assert own["estimates"] == other["estimates"] and other["badge"] == "patient-disjoint"


def test_an_evaluation_is_the_same_each_time(reports: dict[str, Any]) -> None:
    own, again = ({**reports[case], "pictures": None} for case in ("own", "again"))
    assert own == again


def test_flags_set_promises_and_alarms(reports: dict[str, Any]) -> None:
    calibration = reports["promised"]["calibration"]
    assert calibration["promises"]["limits"] == [0.2, 0.2, 0.2, 0.2, 0.4]
    assert calibration["thresholds"]["floor"] == 0.6
    own = reports["own"]["calibration"]
    assert own["promises"]["num_beats"] == calibration["promises"]["num_beats"]
    assert own["temperature"] == calibration["temperature"]


def test_on_other_data_the_file_is_taken_as_it_is(
    reports: dict[str, Any], answers: dict[str, tuple[int | str, str, str]]
) -> None:
    other = reports["other"]
    assert (other["badge"], other["calibration"]["temperature"]) == ("unknown", 1.5)
    assert other["calibration"]["thresholds"] == {"floor": 0.8, "values": [0.2] * 5}
    assert other["calibration"]["promises"] is None and "outcomes" not in other
    stdout = answers["other"][1]
    assert "beats.csv, as the file has it" in stdout and "no promise" in stdout and "leakage unknown" in stdout


def test_other_data_calibrate_only_where_it_is_asked_for(
    reports: dict[str, Any], answers: dict[str, tuple[int | str, str, str]]
) -> None:
    recalibrated = reports["recalibrated"]
    assert recalibrated["badge"] == "unknown" and recalibrated["calibration"]["temperature"] != 1.5
    assert recalibrated["calibration"]["promises"]["limits"] == [0.25] * 5
    assert "the validation part of csv:" in answers["recalibrated"][1]
    assert reports["recalibrated-bare"]["calibration"]["temperature"] == recalibrated["calibration"]["temperature"]


def test_a_file_without_calibration_is_calibrated_on_its_own_validation_part(reports: dict[str, Any]) -> None:
    bare, own = reports["own-bare"], reports["own"]
    assert bare["calibration"]["temperature"] == own["calibration"]["temperature"]
    assert bare["calibration"]["thresholds"]["floor"] == 0.95
    assert bare["confusion"] == own["confusion"]


def test_what_train_writes_is_what_evaluate_finds(root: Path, reports: dict[str, Any]) -> None:
    """The same validation and test beats: the same temperature, thresholds and confusion matrix."""
    said, found, options = reports["train"], reports["trained"], load(root / "trained.pt").options
    assert found["confusion"] == said["test"]["confusion"] and found["seed"] == options["split_seed"] == 5
    assert found["estimates"]["macro_recall"]["value"] == pytest.approx(said["test"]["metrics"]["macro_recall"])
    assert found["calibration"]["temperature"] == pytest.approx(options["temperature"])
    values = options["thresholds"]["values"]
    for mine, its in zip(found["calibration"]["thresholds"]["values"], values, strict=True):
        assert mine is its is None or mine == pytest.approx(its)


@pytest.mark.parametrize(
    ("words", "limits"),
    [
        ((), [0.05, 0.05]),
        (("0.1",), [0.1, 0.1]),
        (("V=0.2",), [0.05, 0.2]),
        (("V=0.2", "0.1"), [0.1, 0.2]),
        (("N=0.3", "V=0.2"), [0.3, 0.2]),
    ],
)
def test_miss_rates(words: tuple[str, ...], limits: list[float]) -> None:
    assert miss_rates(words, ["N", "V"]) == limits


@pytest.mark.parametrize("word", ["0", "1", "-0.1", "nan", "", "V=", "V=2", "=0.1x", "Q=0.1"])
def test_what_is_no_miss_rate_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"^--miss-rate .*(needed|the classes are N, V)"):
        miss_rates([word], ["N", "V"])
