"""`predict` from end to end: files of beats and records in; tables, files, annotations and pictures out."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import models
from data.imitate import write_records
from data.own import read_own
from data.physionet import read_database
from data.record import Record, read_annotations
from data.recorded import Recorded
from data.store import Writer
from data.synthetic import synthetic_arrhythmia
from finetune.model import Model
from models.checkpoint import save
from models.encoder import EncoderSpec
from models.heads import Classifier
from tests.data.test_record import wrsamp
from tests.samples import assert_refused, checkpoint_of, classifier_of

Answer = tuple[int | str, str, str]
Run = Callable[..., list[Answer]]
CLASSES = ("N", "S", "V", "F", "Q")
ARCH = "resnet1d@width=4"
THRESHOLDS = {"floor": 0.9, "values": [0.3, 0.2, 0.25, None, 0.1]}
NUM_BEATS = 60
SMALL = "import data.pieces, finetune.predict\ndata.pieces.AT_ONCE = finetune.predict.AT_ONCE = 16"
"""Beats at a time."""
INTERRUPTED = f"""{SMALL}
import os, signal
from finetune.predictions import Tally
add = Tally.add
def interrupting(self, answers):
    add(self, answers)
    if self.num_beats == 32:
        os.kill(os.getpid(), signal.SIGINT)
Tally.add = interrupting
"""


def save_models(folder: Path) -> None:
    plain = classifier_of(ARCH, temperature=1.7, thresholds=THRESHOLDS)
    save(folder / "plain.pt", plain)
    save(folder / "quiet.pt", classifier_of(ARCH))
    for intervals in ("causal", "all"):
        save(folder / f"{intervals}.pt", classifier_of(ARCH, intervals=intervals, thresholds=THRESHOLDS))
    save(folder / "other.pt", replace(plain, classes=("normal", "MI", "V", "x", "y")))
    save(folder / "few.pt", replace(plain, options={**plain.options, "thresholds": {"floor": 0.9, "values": [0.5]}}))
    encoder = models.build(models.parse(ARCH))
    save(folder / "encoder.pt", checkpoint_of(encoder.spec, encoder))
    two = models.build(EncoderSpec(name="resnet1d", num_leads=2, options={"width": 4}))
    two_leads = checkpoint_of(two.spec, Classifier(two, "linear", 5), "linear")
    about = {**plain.preprocessing, "num_leads": 2}
    save(folder / "two_leads.pt", replace(two_leads, preprocessing=about, options={"intervals": "none"}))


def records_to_refuse(folder: Path) -> None:
    wrsamp(folder / "flat", np.full(5000, -0.3))
    wrsamp(folder / "short", np.random.default_rng(0).standard_normal(200))
    signal = np.random.default_rng(0).standard_normal(5000)
    signal[700] = np.nan
    wrsamp(folder / "gap", signal)
    wrsamp(folder / "lacking", signal[:600])
    (folder / "lacking.dat").unlink()
    beat = np.zeros(1000)
    beat[500:510] = 1
    wrsamp(folder / "single", beat)
    (folder / "none.parq").write_bytes(b"")
    (folder / "a.txt").write_text("a")
    (folder / "100.hea").write_text("100 0 360 0\n")
    wide = {str(place): np.full(4, 0.5) for place in range(150)}
    pq.write_table(pa.table(wide), folder / "wide.parq")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, files of beats, and records."""
    folder = tmp_path_factory.mktemp("predict")
    save_models(folder)
    beats = synthetic_arrhythmia(NUM_BEATS, 0)
    columns = [*beats.signal[:, 0].numpy().T, beats.labels.numpy()]
    table = pa.table([pa.array(column) for column in columns], names=[*map(str, range(187)), "target"])
    pq.write_table(table, folder / "beats.parquet", row_group_size=25)
    pl.from_arrow(table.drop_columns(["target"])).write_csv(folder / "beats.csv")  # pyright: ignore[reportAttributeAccessIssue]
    with Writer(folder / "built.parq") as writer:
        writer.append(Recorded(beats, pa.table({"record": ["100"] * NUM_BEATS})))
    write_records("mitdb", folder / "mitdb", num_records=2, seconds=61)
    write_records("ptbxl", folder / "ptbxl", num_records=1)
    with Writer(folder / "ptbxl.parq") as writer:
        writer.append(read_database("ptbxl", folder / "ptbxl"))
    damaged = shutil.copytree(folder / "mitdb", folder / "damaged")
    (damaged / "101.atr").write_bytes(b"\1")
    content = bytearray((folder / "built.parq").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "flipped.parq").write_bytes(content)
    records_to_refuse(folder / "bad")
    return folder


CASES: dict[str, Sequence[str]] = {
    "parquet": ("plain", "beats.parquet", "--out", "{out}/a.parquet"),
    "csv": ("plain", "beats.csv", "--out", "{out}/a.csv"),
    "built": ("causal", "built.parq", "--out", "{out}/a.parq"),
    "at 250 Hz": ("plain", "csv:{place}/beats.csv@250", "--out", "{out}/a.csv"),
    "no thresholds": ("quiet", "beats.parquet", "--out", "{out}/a.parquet"),
    **{
        f"record, {model}": (
            *(model, "mitdb/100.dat", "--out", "{out}/a.parquet", "--annotations", "{out}/new/a.ai"),
            *("--strip", "{out}/strip.png"),
        )
        for model in ("plain", "causal", "all")
    },
    "at 100 Hz": ("plain", "ptbxl/records100/00000/00001_lr", "--lead", "V5"),
    "ptbxl, built": ("all", "ptbxl.parq", "--out", "{out}/a.parquet"),
    "ptbxl, raw": ("all", "ptbxl/records100/00000/00001_lr", "--out", "{out}/a.parquet", "--annotations", "{out}/a"),
    "reference": ("plain", "mitdb/100", "--annotations", "{out}/a", "--reference", "atr"),
    "damaged reference, not asked for": ("plain", "damaged/101", "--annotations", "{out}/a"),
    "other classes": (
        *("other", "mitdb/100", "--annotations", "{out}/a", "--reference", "atr"),
        *("--strip", "{out}/s", "--strip-start", "3.5"),
    ),
}
"""Model, input, and more flags."""


class Done(NamedTuple):
    answer: Answer
    out: Path
    content: Any
    """What `--json` wrote."""

    @property
    def stdout(self) -> str:
        return self.answer[1]


def args_of(case: Sequence[str], place: Path, out: Path) -> list[str]:
    model, what, *more = (part.format(place=place, out=out) for part in case)
    return ["predict", f"{place}/{model}.pt", what if ":" in what else f"{place}/{what}", *more]


@pytest.fixture(scope="module")
def answers(run_many: Run, place: Path) -> dict[str, Answer]:
    """Of all cases, good and bad: one process loads torch once."""
    args = [[*args_of(case, place, place / name), "--json", f"{place / name}.json"] for name, case in CASES.items()]
    args += [args_of(case, place, place / "refused") for case, _ in REFUSALS.values()]
    runs = f"from pathlib import Path\nfrom experiments import cli\ncli.RUNS = Path({str(place / 'runs')!r})"
    return dict(zip([*CASES, *REFUSALS], run_many("finetune", args, f"{SMALL}\n{runs}"), strict=True))


@pytest.fixture(scope="module")
def done(answers: dict[str, Answer], place: Path) -> dict[str, Done]:
    assert {name: answers[name] for name in CASES if answers[name][0] != 0} == {}
    return {name: Done(answers[name], place / name, json.loads((place / f"{name}.json").read_text())) for name in CASES}


def expected(place: Path, model: str, what: str) -> np.ndarray:
    kind = "csv" if ".csv" in what else "parquet"
    return Model.load(str(place / f"{model}.pt")).probabilities(read_own(kind, place / what).beats)


def table_of(done: Done) -> pl.DataFrame:
    [path] = done.out.glob("a.*")
    return pl.read_csv(path) if path.suffix == ".csv" else pl.read_parquet(path)


def probabilities(table: pl.DataFrame, classes: Sequence[str] = CLASSES) -> np.ndarray:
    return table.select(f"p_{name}" for name in classes).to_numpy()


@pytest.mark.parametrize(
    ("case", "model", "what"),
    [
        ("parquet", "plain", "beats.parquet"),
        ("csv", "plain", "beats.csv"),
        ("built", "causal", "built.parq"),
        ("at 250 Hz", "plain", "beats.csv@250"),
    ],
)
def test_each_beat_of_a_file_gets_a_row(case: str, model: str, what: str, done: dict[str, Done], place: Path) -> None:
    table, wanted = table_of(done[case]), expected(place, model, what)
    np.testing.assert_allclose(probabilities(table), wanted, atol=1e-5)
    assert table["row"].to_list() == list(range(NUM_BEATS))
    assert table["class"].to_list() == [CLASSES[label] for label in wanted.argmax(axis=1)]
    limits = [np.inf if value is None else value for value in THRESHOLDS["values"]]
    np.testing.assert_array_equal(raised(table), probabilities(table) >= limits)
    assert ("target" in table.columns) == (what != "beats.csv" and case != "at 250 Hz")
    assert what != "built.parq" or table["record"].cast(pl.String).to_list() == ["100"] * NUM_BEATS
    assert len(list(done[case].out.iterdir())) == 1


def raised(table: pl.DataFrame) -> np.ndarray:
    return table.select(f"alarm_{name}" for name in CLASSES).to_numpy()


def test_the_table_is_the_sum_of_the_rows(done: dict[str, Done]) -> None:
    table, content = table_of(done["parquet"]), done["parquet"].content
    assert content["beats"] == len(table) == NUM_BEATS
    assert (content["temperature"], content["recall_floor"]) == (1.7, 0.9)
    confidence = probabilities(table).max(axis=1)
    for name in CLASSES:
        mine = (table["class"] == name).to_numpy()
        row = content["classes"][name]
        assert (row["beats"], row["share"]) == (mine.sum(), mine.mean())
        assert row["mean_confidence"] == (pytest.approx(confidence[mine].mean()) if mine.any() else None)
        assert row["alarms"] == table[f"alarm_{name}"].sum()
    assert content["beats_without_alarm"] == (~raised(table).any(axis=1)).sum()
    said = ("taken to be at 125 Hz", f"{NUM_BEATS} beats", "beats/s", "mean confidence", "alarms")
    assert [part for part in said if part not in done["parquet"].stdout] == []


def test_what_was_done_to_the_beats_is_said(done: dict[str, Done]) -> None:
    said = done["at 250 Hz"].stdout
    assert "resampled from 250 to 125 Hz" in said and "padded from 94 to 187 samples" in said
    assert "00001_lr: resampled from 100 to 125 Hz" in done["at 100 Hz"].stdout
    assert done["at 250 Hz"].content["notes"][0] == "beats.csv: resampled from 250 to 125 Hz"


@pytest.mark.parametrize("model", ["plain", "causal", "all"])
def test_a_record_from_end_to_end(model: str, done: dict[str, Done], place: Path) -> None:
    ran = done[f"record, {model}"]
    table, content = table_of(ran), ran.content
    record = Record.open(place / "mitdb/100")
    rhythm = record.measure(record.find_peaks())
    [beats] = record.beats(rhythm, 10_000)
    wanted = Model.load(str(place / f"{model}.pt")).probabilities(beats)
    np.testing.assert_allclose(probabilities(table), wanted, atol=1e-5)
    assert table["sample"].to_list() == record.find_peaks()[rhythm.kept].tolist()
    np.testing.assert_allclose(table["time_s"], table["sample"] / 360, atol=1e-4)
    sample, symbol = read_annotations(ran.out / "new/a", "ai")
    assert (sample.tolist(), symbol) == (table["sample"].to_list(), table["class"].to_list())
    assert (ran.out / "strip.png").stat().st_size > 10_000
    assert "<svg" in (ran.out / "strip.svg").read_text()[:500]
    assert "100: resampled from 360 to 125 Hz" in ran.stdout and "MLII" in ran.stdout
    assert (content["lead"], content["rate_hz"], content["beats"]) == ("MLII", 360, len(table))
    assert content["written"] == [str(ran.out / name) for name in ("a.parquet", "new/a.ai", "strip.png", "strip.svg")]
    assert "reference" not in content


def test_annotations_have_a_place_of_their_own(done: dict[str, Done], place: Path) -> None:
    assert done["at 100 Hz"].content["lead"] == "V5"
    sample, symbol = read_annotations(place / "runs/predict/00001_lr", "pred")
    assert len(sample) > 5 and set(symbol) <= set(CLASSES)


def test_a_record_is_classified_as_its_built_beats_are(done: dict[str, Done]) -> None:
    """The beats that `python -m data build` cuts at found peaks, and the same record raw."""
    built, raw = table_of(done["ptbxl, built"]), pl.read_parquet(done["ptbxl, raw"].out / "a.parquet")
    assert built["sample"].to_list() == raw["sample"].to_list()
    np.testing.assert_allclose(probabilities(built), probabilities(raw), atol=1e-6)


def test_the_reference_is_compared_with_where_it_is_asked_for(done: dict[str, Done], place: Path) -> None:
    content = done["reference"].content["reference"]
    sample, _ = read_annotations(place / "mitdb/100", "atr")
    assert content["reference_beats"] == len(sample) - 2  # a rhythm and a noise annotation
    assert content["sensitivity"] == content["matched_beats"] / content["reference_beats"] > 0.9
    assert content["positive_predictivity"] == content["matched_beats"] / content["found_beats"] > 0.9
    counted = np.sum(content["confusion"]) + sum(content["left_out"].values())
    assert counted == content["matched_beats"] and content["median_offset_ms"] < 10
    assert "sensitivity" in done["reference"].stdout and "Matched beats" in done["reference"].stdout
    assert "reference" not in done["damaged reference, not asked for"].content


def test_classes_that_are_not_aamis(done: dict[str, Done]) -> None:
    ran = done["other classes"]
    assert "are not the classes of its annotations" in ran.stdout
    assert "confusion" not in ran.content["reference"] and ran.content["reference"]["sensitivity"] > 0.9
    _, symbol = read_annotations(ran.out / "a", "pred")
    assert set(symbol) <= {"Q", "V"} and len(symbol) == ran.content["beats"]


def test_without_thresholds_there_are_no_alarms(done: dict[str, Done]) -> None:
    ran = done["no thresholds"]
    assert "has no thresholds: no alarms" in ran.stdout
    assert "alarms" not in ran.content["classes"]["N"] and ran.content["beats_without_alarm"] is None
    assert not any(name.startswith("alarm") for name in table_of(ran).columns)


def test_an_interruption_keeps_what_was_written(run_many: Run, place: Path, tmp_path: Path) -> None:
    names = ("a.parquet", "a.csv")
    for name in names:
        (tmp_path / name).write_text("of an earlier run")
    cases = [args_of(("plain", "beats.parquet", "--out", "{out}/" + name), place, tmp_path) for name in names]
    cases.append(args_of(("plain", "mitdb/100", "--annotations", "{out}/b.pred"), place, tmp_path))
    *of_files, of_record = run_many("finetune", cases, INTERRUPTED)
    for name, (code, stdout, stderr) in zip(names, of_files, strict=True):
        partial = tmp_path / name.replace("a.", "a.partial.")
        assert code == 130 and "interrupted" in stderr
        assert f"interrupted after 32 of {NUM_BEATS} beats: those are in {partial}" in stdout
        kept = pl.read_csv(partial) if name.endswith("csv") else pl.read_parquet(partial)
        np.testing.assert_allclose(probabilities(kept), expected(place, "plain", "beats.parquet")[:32], atol=1e-5)
        assert (tmp_path / name).read_text() == "of an earlier run"
    assert of_record[0] == 130 and "interrupted after 32 of" in of_record[1] and "nothing was kept" in of_record[1]
    assert len(list(tmp_path.iterdir())) == 4


REFUSALS: dict[str, tuple[Sequence[str], list[str]]] = {
    "no such record": (("plain", "mitdb/999"), ["mitdb/999 does not exist: predict takes", "WFDB record"]),
    "no such header": (("plain", "mitdb/999.hea"), ["mitdb/999 is no WFDB record: ", "999.hea does not exist"]),
    "no samples": (("plain", "bad/lacking"), ["lacks its samples", "lacking.dat does not exist"]),
    "no signal": (("plain", "bad/100"), ["bad/100 has no signal"]),
    "no lead": (("plain", "mitdb/100", "--lead", "V9"), ["has leads MLII, V5, not V9"]),
    "not a number": (("plain", "bad/gap"), ["gap: sample 700 of its signal is not a number"]),
    "flat": (("plain", "bad/flat"), ["flat: 0 R peaks found in the 20 s of II"]),
    "shorter than a second": (("plain", "bad/short"), ["short: 0 R peaks found in the 0.8 s"]),
    "one beat": (("plain", "bad/single"), ["single: 1 R peaks found in the 4 s of II", "need two"]),
    "empty file": (("plain", "bad/none.parq"), ["none.parq is empty (0 bytes)"]),
    "another kind of file": (("plain", "bad/a.txt"), ["a.txt is neither: predict takes"]),
    "no such file": (("plain", "beats.parq"), ["beats.parq does not exist"]),
    "another length": (("plain", "bad/wide.parq"), ["wide.parq has beats of 150 samples, not 187", "@RATE_HZ"]),
    "no intervals": (("causal", "beats.parquet"), ["reads RR intervals (causal), which the beats of beats.parquet do"]),
    "an encoder alone": (("encoder", "mitdb/100"), ["encoder.pt holds an encoder without a head"]),
    "no model": (("gone", "mitdb/100"), ["gone.pt does not exist"]),
    "several leads": (("two_leads", "mitdb/100"), ["two_leads.pt takes beats of 2 leads", "100 has 1 and 187"]),
    "thresholds of another model": (("few", "beats.parquet"), ["few.pt has 1 thresholds for 5 classes"]),
    "a record's flags": (
        ("plain", "beats.parquet", "--lead", "II", "--reference", "atr"),
        ["--lead, --reference: for WFDB records"],
    ),
    "no reference": (("plain", "mitdb/100", "--reference", "qrs"), ["100.qrs does not exist"]),
    "start without picture": (("plain", "mitdb/100", "--strip-start", "3"), ["--strip-start needs --strip FILE"]),
    "start outside": (
        ("plain", "mitdb/100", "--strip", "s.png", "--strip-start", "61"),
        ["--strip-start 61: 100 lasts from 0 to 61 s"],
    ),
    "damaged on the way": (("plain", "flipped.parq", "--out", "{out}/a.parquet"), ["flipped.parq"]),
    "a damaged reference": (
        ("plain", "damaged/101", "--reference", "atr"),
        ["damaged/101.atr: not readable WFDB annotations"],
    ),
    "the input itself": (("plain", "beats.csv", "--out", "{place}/beats.csv"), ["beats.csv is the input itself"]),
    "unknown ending": (("plain", "mitdb/100", "--out", "a.txt"), ["--out a.txt: the name must end in one of .parquet"]),
    "the reference itself": (("plain", "mitdb/100", "--annotations", "100.atr"), ["files of the record itself end so"]),
    "an extension of digits": (("plain", "mitdb/100", "--annotations", "100.p1"), ["the extension of letters"]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_classified_is_refused_in_one_line(case: str, answers: dict[str, Answer], place: Path) -> None:
    assert_refused(answers[case], REFUSALS[case][1])
    assert not list((place / "refused").glob("*"))


def test_the_input_is_never_written_over(answers: dict[str, Answer], place: Path) -> None:
    assert answers["the input itself"][0] == 2
    made = synthetic_arrhythmia(NUM_BEATS, 0).signal
    assert torch.allclose(read_own("csv", place / "beats.csv").beats.signal, made, atol=1e-6)


REAL = ("100", "109", "118", "213", "233")
"""Normal, left and right bundle branch block, fusion beats, ventricular beats."""


def test_real_records_from_end_to_end(run_many: Run, place: Path, tmp_path: Path, heart_data_dir: Path) -> None:
    """Nearly every annotated beat is found, classified, and where it should be."""
    cases: list[list[Any]] = []
    for name in REAL:
        more = ["--reference", "atr", "--json", tmp_path / f"{name}.json", "--annotations", tmp_path / f"{name}.pred"]
        cases.append(["predict", place / "all.pt", heart_data_dir / "mitdb" / name, *more])
    answers = run_many("finetune", cases)
    assert [code for code, *_ in answers] == [0] * len(REAL), answers
    for name in REAL:
        content: dict[str, Any] = json.loads((tmp_path / f"{name}.json").read_text())
        found = content["reference"]
        assert min(found["sensitivity"], found["positive_predictivity"]) >= 0.995, (name, found)
        assert found["median_offset_ms"] < 10
        sample, symbol = read_annotations(tmp_path / name, "pred")
        assert len(sample) == content["beats"] >= content["peaks"] - 1
        counts = {label: symbol.count(label) for label in CLASSES}
        assert counts == {label: row["beats"] for label, row in content["classes"].items()}
