import json
import re
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models
from data.beats import Beats, measure_length, scale_and_pad
from data.synthetic import synthetic_arrhythmia
from experiments.calibration import probabilities
from finetune import export
from finetune.attribution import inside
from finetune.card import UNKNOWN, card
from finetune.export import Exported, Sample, prepared, unscaled, write
from finetune.intervals import COLUMNS, beside
from finetune.model import Model
from finetune.portable import FORMATS, Portable, batch_of, facts, run_module, run_onnx, scaled, to_onnx, trace
from models.adapters import adapt, merge
from models.checkpoint import Checkpoint, restore_classifier, save, weights_of
from models.encoder import EncoderSpec
from models.heads import HEADS, Classifier, Head
from models.imaging import IMAGES
from tests.conftest import ROOT
from tests.samples import assert_refused, checkpoint_of, classifier_of

RunMany = Callable[..., list[tuple[int | str, str, str]]]
Python = Callable[..., subprocess.CompletedProcess[str]]

TINY = {
    "resnet1d": "resnet1d@width=2,kernel=3",
    "inception1d": "inception1d@width=2,depth=1",
    "tcn1d": "tcn1d@width=2,depth=1",
    "transformer1d": "transformer1d@dim=8,depth=1,heads=2",
    "cnn_transformer1d": "cnn_transformer1d@width=2,dim=4,depth=1,heads=1",
    "gru": "gru@width=2,depth=1,patch=17",
    "lstm": "lstm@width=2,depth=1,patch=17",
    "cnn2d": "cnn2d@width=8,depth=1",
}
QUICK = TINY["tcn1d"]
THRESHOLDS = {"floor": 0.9, "values": [0.2, None, 0.1, 0.3, 0.25]}
FEW = "import finetune.export as e\ne.NUM_CHECKED, e.ROUNDS, e.ROUND_S = 64, 1, 0.001"


@pytest.fixture(scope="module")
def beats() -> Beats:
    return synthetic_arrhythmia(70, 3)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "ROUNDS", 1)
    monkeypatch.setattr(export, "ROUND_S", 0.0)


def model_of(checkpoint: Checkpoint) -> Model:
    return Model(classifier=restore_classifier(checkpoint, "c.pt").eval(), checkpoint=checkpoint, origin="c.pt")


def onnx_of(model: Model, scaling: bool = True) -> bytes:
    return to_onnx(trace(Portable.of(model, scaling), model), model, facts(model, scaling))


def asked(model: Model, beats: Beats) -> dict[str, Any]:
    return batch_of(beats.signal, beside(beats, model.intervals))


def test_every_own_encoder_has_a_tiny_form() -> None:
    assert TINY.keys() == models.ENCODERS.keys()


class EveryHead(nn.Module):
    """One graph in which every head reads one encoder, with no, causal and all RR ratios in turn: an export for each
    pair would take a minute."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = models.build(models.parse(arch))
        self.columns = [list(columns) for columns in COLUMNS.values()]
        self.classifiers = nn.ModuleList(
            Classifier(self.encoder, head, 5, len(columns)) for head, columns in zip(HEADS, self.columns, strict=True)
        )

    def forward(self, beats: Tensor, intervals: Tensor) -> tuple[Tensor, ...]:
        tokens, num_steps = self.encoder.tokens(scaled(beats)), len(self.encoder.steps)
        return tuple(
            classifier.above(num_steps, classifier.head.pool(tokens), ratios)
            for classifier, ratios in self.with_ratios(intervals)
        )

    def with_ratios(self, intervals: Tensor) -> list[tuple[Classifier, Tensor | None]]:
        chosen = (intervals[:, columns] if columns else None for columns in self.columns)
        return list(zip(self.classifiers, chosen, strict=True))  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("arch", [*TINY.values(), "tsai:FCNPlus", "timm:test_resnet@size=32"])
def test_every_encoder_answers_alike_from_onnx_through_every_head(arch: str, beats: Beats) -> None:
    whole, ratios = EveryHead(arch), beats.intervals
    assert ratios is not None and len(HEADS) == len(COLUMNS)
    for classifier, chosen in whole.with_ratios(ratios):
        for _ in range(3):
            classifier(beats.signal, chosen)  # moves BatchNorm's running statistics away from where they start
    model = model_of(classifier_of(QUICK, intervals="all", thresholds=THRESHOLDS))  # has as many outputs as heads
    run = run_onnx(to_onnx(trace(whole.eval(), model), model, {}), 1)
    other = unscaled(beats)
    for given, by_hand in ((beats.signal, beats.signal), (other, prepared(other))):
        with torch.no_grad():
            wanted = [classifier(by_hand, chosen).numpy() for classifier, chosen in whole.with_ratios(ratios)]
        for rows in (slice(0, 1), slice(1, None)):
            answers = run(batch_of(given[rows], ratios[rows]))
            for logits, answer in zip(wanted, answers.values(), strict=True):
                assert np.ptp(logits, axis=0).max() > 1e-3, "what hangs on no beat would agree with anything"
                np.testing.assert_allclose(answer, logits[rows], atol=1e-4, rtol=1e-4)


class EveryImage(nn.Module):
    """One graph in which a CNN reads each image of a beat."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        archs = [f"{TINY['cnn2d']},image={image}" for image in IMAGES]
        self.encoders = nn.ModuleList(models.build(models.parse(arch)) for arch in archs)

    def forward(self, beats: Tensor) -> tuple[Tensor, ...]:
        return tuple(encoder(scaled(beats)) for encoder in self.encoders)


def test_every_image_of_a_beat_gives_alike_features_from_onnx(beats: Beats) -> None:
    whole, model = EveryImage().eval(), model_of(classifier_of(QUICK))
    answers = run_onnx(to_onnx(trace(whole, model), model, {}), 1)({"beats": beats.signal.numpy()})
    with torch.no_grad():
        wanted = whole(beats.signal)
    for image, features, answer in zip(IMAGES, wanted, answers.values(), strict=True):
        np.testing.assert_allclose(answer, features, atol=1e-4, rtol=1e-4, err_msg=image)


def test_probabilities_logits_and_alarms_go_together(beats: Beats) -> None:
    model = model_of(classifier_of(QUICK, "attention", "all", temperature=0.7, thresholds=THRESHOLDS))
    answers = run_onnx(onnx_of(model), 1)(asked(model, beats))
    assert list(answers) == ["probabilities", "logits", "alarms"]
    np.testing.assert_allclose(answers["probabilities"], model.probabilities(beats), atol=1e-5)
    np.testing.assert_allclose(probabilities(answers["logits"], 0.7), answers["probabilities"], atol=1e-6)
    limits = np.array([0.2, np.inf, 0.1, 0.3, 0.25], np.float32)
    assert np.array_equal(answers["alarms"], answers["probabilities"] >= limits) and answers["alarms"].any()


def test_a_pt2_answers_alike_without_this_project(beats: Beats, tmp_path: Path, python: Python) -> None:
    checkpoint = classifier_of(QUICK, "mlp", "causal", thresholds=THRESHOLDS)
    model = model_of(checkpoint)
    made = write(model, "torch", tmp_path / "c.pt2", Sample(beats, "beats"))
    assert made.check.worst <= 1e-6
    with zipfile.ZipFile(made.file) as archive:
        assert [name for name in archive.namelist() if str(ROOT).encode() in archive.read(name)] == []
    save(tmp_path / "c.pt", checkpoint)
    np.savez(tmp_path / "beats.npz", **asked(model, beats))
    program = (
        f"import os, sys\nos.chdir({str(tmp_path)!r})\nsys.path.remove('')\n{six_lines(card(made, tmp_path / 'c.pt'))}"
        "import numpy as np\n"
        "answers = module(*(torch.from_numpy(part) for part in np.load('beats.npz').values()))\n"
        "assert not {'models', 'data', 'finetune'} & set(sys.modules)\n"
        "print(json.dumps([answers[0].tolist(), json.loads(about['metadata.json'])]))"
    )
    done = python("-W", "ignore", "-c", program)
    assert done.returncode == 0, done.stderr
    by_card, by_hand = done.stdout.splitlines()
    assert by_card[0] in "NSVFQ"
    answers, about = json.loads(by_hand)
    np.testing.assert_allclose(answers, model.probabilities(beats), atol=1e-6)
    assert about == facts(model, scaling=True)


def six_lines(text: str) -> str:
    """The code of a card."""
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert code.count("\n") == 6
    return code


def test_merged_adapters_leave_nothing_behind(beats: Beats) -> None:
    checkpoint = classifier_of(TINY["transformer1d"])
    classifier = restore_classifier(checkpoint, "c.pt").eval()
    adapt(classifier.encoder, 2)
    for name, parameter in classifier.named_parameters():
        if name.endswith(".up"):
            nn.init.normal_(parameter)
    merge(classifier.encoder)
    model = model_of(replace(checkpoint, weights=weights_of(classifier)))
    assert not np.allclose(model.logits(beats), model_of(checkpoint).logits(beats), atol=1e-3)
    answers = run_onnx(onnx_of(model), 1)(asked(model, beats))
    np.testing.assert_allclose(answers["logits"], classifier(beats.signal).detach(), atol=1e-4)


def test_beats_that_were_prepared_pass_bit_for_bit(beats: Beats) -> None:
    assert torch.equal(scaled(beats.signal), beats.signal)
    falls = torch.tensor([[[1.0, 0.5, 0.2, 0.0, 0.0]]])  # its lowest sample is its last: it looks as if it were padding
    assert torch.equal(scaled(falls), falls)


def test_other_amplitudes_are_scaled_as_the_data_are(beats: Beats) -> None:
    raw = unscaled(beats)
    assert raw.min() < -0.5 and raw.max() > 1.5
    length = measure_length(raw).numpy()
    assert np.array_equal(scaled(raw)[:, 0], scale_and_pad(raw[:, 0].numpy(), length))
    whole = beats.signal.where(inside(beats)[:, None], 1.0).amin((1, 2)) == 0  # the lowest sample is not the last
    assert 60 < whole.sum() < 70
    torch.testing.assert_close(scaled(raw)[whole], beats.signal[whole], atol=1e-5, rtol=0)


def test_each_lead_is_scaled_by_itself_up_to_the_end_that_all_share() -> None:
    raw = torch.tensor([[[4.0, 2.0, 0.0, 0.0], [-1.0, 3.0, 1.0, 0.0]]])
    wanted = [[[1.0, 0.5, 0.0, 0.0], [0.0, 1.0, 0.5, 0.0]]]
    assert scaled(raw).tolist() == prepared(raw).tolist() == wanted


@pytest.mark.parametrize("value", [0.0, 0.5, 3.0, -2.0])
def test_flat_and_silent_beats_become_zero(value: float) -> None:
    assert not scaled(torch.full((1, 1, 9), value)).any()


def test_what_is_not_finite_gets_no_answer_and_no_alarm(beats: Beats) -> None:
    model = model_of(classifier_of(QUICK, "linear", "causal", thresholds={"floor": 0.9, "values": [0.0] * 5}))
    in_torch = run_module(Portable.of(model, True), ["probabilities", "logits", "alarms"])
    for run in (in_torch, run_onnx(onnx_of(model), 1)):
        for where in ("beats", "intervals"):
            batch = {name: array.copy() for name, array in asked(model, beats).items()}
            for row, value in ((3, np.nan), (5, np.inf), (8, -np.inf)):
                batch[where][row].flat[1] = value
            answers = run(batch)
            unanswered = np.isnan(answers["probabilities"]).all(1)
            assert np.flatnonzero(unanswered).tolist() == [3, 5, 8]
            assert np.array_equal(answers["alarms"].any(1), ~unanswered)


def test_scaling_can_be_left_to_the_caller(beats: Beats, tmp_path: Path) -> None:
    half = replace(beats, signal=beats.signal / 2)
    model = model_of(classifier_of(QUICK))
    with pytest.raises(ValueError, match=r"70 of them do not reach 1, and the file scales them: --scaling outside"):
        write(model, "torch", tmp_path / "c.pt2", Sample(half, "beats"))
    assert list(tmp_path.iterdir()) == []
    outside, names = Portable.of(model, scaling=False), ["probabilities", "logits"]
    found = export.check(model, run_module(outside, names), Sample(half, "beats"), scaling=False)
    assert (found.unscaled, found.num_alarms) == (None, None) and found.worst < 1e-6
    assert facts(model, scaling=False)["amplitude"] == "each scaled to 0…1 by the caller"


@pytest.mark.parametrize(("to", "wrong"), [("onnx", float("nan")), ("torch", 2e-4)])
def test_a_file_that_answers_otherwise_is_not_written(
    to: str, wrong: float, beats: Beats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = FORMATS[to]

    def off(*args: Any) -> Callable[..., Any]:
        run = kind.open(*args)
        return lambda batch: {name: answer + np.float32(wrong) for name, answer in run(batch).items()}

    monkeypatch.setitem(FORMATS, to, replace(kind, open=off))
    with pytest.raises(
        ValueError, match=r"^c\.pt: a probability .* differs by (0\.0002|inf) .* on 70 beats; more than"
    ):
        write(model_of(classifier_of(QUICK)), to, tmp_path / "c", Sample(beats, "beats"))
    assert list(tmp_path.iterdir()) == []


class Untraceable(Head):
    """Takes one of two ways by what it is given."""

    def forward(self, tokens_BND: Tensor) -> Tensor:
        return tokens_BND[:, 0, :5] if tokens_BND.sum().item() > 0 else -tokens_BND[:, 0, :5]


def test_what_torch_cannot_trace_is_refused_in_one_line() -> None:
    model = model_of(classifier_of("resnet1d@width=2,kernel=3"))
    model.classifier.head = Untraceable()
    with pytest.raises(ValueError, match=r"^c\.pt: resnet1d@width=2,kernel=3 cannot be traced: .+") as refusal:
        trace(Portable.of(model, True), model)
    assert "\n" not in str(refusal.value)


@pytest.fixture(scope="module")
def made(beats: Beats, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An exported classifier of known facts, and its card."""
    folder = tmp_path_factory.mktemp("made")
    checkpoint = replace(
        classifier_of(
            QUICK, "linear", "all", data="mitdb", protocol="ds1-ds2", badge="record-disjoint", temperature=1.5
        ),
        metrics={"validation_macro_recall": 0.8125, "validation_recall_F": float("nan")},
        source="MIT-BIH",
        commit="abc1234",
    )
    save(folder / "c.pt", checkpoint)
    exported = write(model_of(checkpoint), "onnx", folder / "c.onnx", Sample(beats, "test beats of mitdb"))
    exported.card.write_text(card(exported, folder / "c.pt"))
    return exported


def test_the_file_tells_of_itself_and_nothing_of_this_machine(made: Exported) -> None:
    import onnx

    content = made.file.read_bytes()
    assert str(ROOT).encode() not in content and b"stack_trace" not in content
    written = onnx.load_from_string(content)
    about = {entry.key: json.loads(entry.value) for entry in written.metadata_props}
    assert about == made.facts
    assert (about["classes"], about["rate_hz"], about["temperature"]) == (["N", "S", "V", "F", "Q"], 125, 1.5)
    assert (about["badge"], about["thresholds"], about["metrics"]["validation_recall_F"]) == (
        "record-disjoint",
        None,
        None,
    )
    assert [entry.version for entry in written.opset_import] == [20]
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*written.graph.input, *written.graph.output)
    }
    assert shapes == {
        "beats": ["batch", 1, 187],
        "intervals": ["batch", 6],
        "probabilities": ["batch", 5],
        "logits": ["batch", 5],
    }


def test_the_card_says_what_is_recorded_and_no_more(made: Exported) -> None:
    text = made.card.read_text()
    assert made.card.name == "c.onnx.md"
    assert "**record-disjoint**: no record is in both, but records 201 and 202" in text
    assert "| validation | 0.812 | – | – | – | – | – | – | – | – |" in text
    assert f"| test |{f' {UNKNOWN} |' * 9}" in text
    assert f"Thresholds: {UNKNOWN}" in text and f"| share of the labels | {UNKNOWN} |" in text
    assert "no medical device" in text and "`log_after_over_record` needs the whole record" in text
    assert f"| SHA-256 of this file | {made.sha256} |" in text and "| commit of its training | abc1234 |" in text
    assert "| beats | 70 test beats of mitdb |" in text
    assert str(made.file.parent) not in text


def test_the_six_lines_of_the_card_run(made: Exported, python: Python) -> None:
    done = python("-c", f"import os\nos.chdir({str(made.file.parent)!r})\n{six_lines(made.card.read_text())}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout[0] in "NSVFQ"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, an encoder alone, and tables of beats."""
    folder = tmp_path_factory.mktemp("models")
    about = {"data": "synthetic-arrhythmia", "protocol": "beat-random", "badge": "beat-random"}
    save(folder / "c.pt", classifier_of(QUICK, thresholds=THRESHOLDS, **about))
    save(folder / "rr.pt", classifier_of(QUICK, "linear", "causal", **about))
    save(folder / "gone.pt", classifier_of(QUICK, data="csv:nowhere.csv"))
    save(
        folder / "long.pt",
        replace(classifier_of(QUICK), preprocessing={"rate_hz": 250.0, "num_leads": 1, "num_samples": 187}),
    )
    encoder = models.build(EncoderSpec(name="resnet1d", options={"width": 2, "kernel": 3}))
    save(folder / "encoder.pt", checkpoint_of(encoder.spec, encoder))
    rows = ["N," + ",".join(f"{value:.3f}" for value in np.linspace(1, 0, 187)) for _ in range(4)]
    header = "label," + ",".join(map(str, range(187)))
    (folder / "beats.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


REFUSED = {
    "no file": ("{f}/nothing.pt", ["nothing.pt does not exist"]),
    "an encoder": ("{f}/encoder.pt", ["encoder.pt holds an encoder without a head"]),
    "another rate": ("{f}/long.pt --data synthetic-arrhythmia", ["takes beats at 250 Hz", "125"]),
    "no intervals": ("{f}/rr.pt --data csv:{f}/beats.csv", ["reads RR intervals (causal)", "beats.csv do not carry"]),
    "unknown data": ("{f}/c.pt --data lead", ["unknown data set lead; choose from"]),
    "missing data": ("{f}/c.pt --data csv:{f}/no.csv", ["no.csv"]),
    "unknown format": ("{f}/c.pt --to tflite", ["tflite", "onnx", "torch"]),
    "a folder": ("{f}/c.pt --out {f}", ["is a folder; a file is needed"]),
    "itself": ("{f}/c.pt --out {f}/c.pt", ["c.pt is the classifier itself"]),
    "no threads": ("{f}/c.pt --threads 0", ["--threads 0: at least 1 is needed"]),
    "a pt2 in the registry": ("{f}/c.pt --to torch --register hearts", ["--register hearts: needs --to onnx"]),
    "no registry": ("{f}/c.pt --register hearts --tracking none", ["--register hearts: needs"]),
    "a bad name": ("{f}/c.pt --register a/b", ["--register a/b: a name without / and : is needed"]),
}


def test_the_command_line(folder: Path, run_many: RunMany) -> None:
    before = {path.name for path in folder.iterdir()}
    good = [
        f"export {folder}/c.pt --threads 1 --json {folder}/c.json --register hearts --tracking {folder}/mlflow.db",
        f"export {folder}/gone.pt --threads 1 --to torch",
    ]
    bad = [f"export {args.format(f=folder)}" for args, _ in REFUSED.values()]
    answers = run_many("finetune", [line.split() for line in (*good, *bad)], FEW)
    assert [(code, err) for code, _, err in answers[: len(good)]] == [(0, "")] * len(good)
    first, gone = (out for _, out, _ in answers[: len(good)])
    assert "64 test beats of synthetic-arrhythmia: probabilities within" in first and "onnxruntime" in first
    assert f"registered: hearts version 1 in {folder}/mlflow.db" in first
    assert "csv:nowhere.csv" not in first and "checking on synthetic beats" in gone
    for answer, (_, said) in zip(answers[len(good) :], REFUSED.values(), strict=True):
        assert_refused(answer, said)
    made, extra = {"c.onnx", "gone.pt2"}, {"c.json", "mlflow.db", "mlruns"}
    assert {path.name for path in folder.iterdir()} - before == made | {f"{name}.md" for name in made} | extra
    said = json.loads((folder / "c.json").read_text())
    assert (said["file"], said["registered"]) == (f"{folder}/c.onnx", {"name": "hearts", "version": "1"})
    assert said["sha256"] in (folder / "c.onnx.md").read_text() and said["facts"]["thresholds"] == THRESHOLDS
    assert [speed["batch_size"] for speed in said["speed"]] == [1, 1024]
    assert said["check"]["num_beats"] == 64 and said["check"]["prepared"] <= 1e-4


def test_the_registered_model_answers_by_name_and_refuses_another_shape(
    folder: Path, beats: Beats, python: Python
) -> None:
    np.save(folder / "beats.npy", beats.signal.numpy())
    program = (
        "import sys, json, numpy as np, mlflow\n"
        "mlflow.set_tracking_uri('sqlite:///' + sys.argv[1] + '/mlflow.db')\n"
        "model = mlflow.pyfunc.load_model('models:/hearts/1')\n"
        "beats = np.load(sys.argv[1] + '/beats.npy')\n"
        "try:\n    model.predict({'beats': beats[..., 1:]})\n    refused = False\n"
        "except mlflow.exceptions.MlflowException:\n    refused = True\n"
        "print(json.dumps([refused, model.predict({'beats': beats})['probabilities'].tolist()]))"
    )
    done = python("-W", "ignore", "-c", program, folder)
    assert done.returncode == 0, done.stderr
    refused, answers = json.loads(done.stdout.splitlines()[-1])
    assert refused
    np.testing.assert_allclose(answers, Model.load(f"{folder}/c.pt").probabilities(beats), atol=1e-5)


def test_real_beats(heart_data_dir: Path, tmp_path: Path) -> None:
    model = model_of(classifier_of(QUICK, data="arrhythmia", protocol="beat-random"))
    sample = export.beats_to_check(model, None, heart_data_dir)
    assert (len(sample.beats), sample.said) == (10_000, "test beats of arrhythmia")
    assert torch.equal(scaled(sample.beats.signal), sample.beats.signal)
    assert write(model, "onnx", tmp_path / "c.onnx", sample).check.worst <= 1e-4
