import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import models
from experiments.results import read
from models.checkpoint import load, restore_classifier, save
from models.encoder import EncoderSpec
from models.heads import Classifier
from tests.samples import assert_refused, checkpoint_of

RunMany = Callable[..., list[tuple[int | str, str, str]]]
Python = Callable[..., subprocess.CompletedProcess[str]]

STORE_ELSEWHERE = """
from pathlib import Path
import experiments.results, finetune.cli
experiments.results.STORE = Path({store!r})
"""
INTERRUPTED_HALF_WAY = """
import os, signal
from finetune.trainee import FineTuning

before_step = FineTuning.before_step
pending = [1]

def interrupted(self, progress):
    if progress >= 0.5 and pending:
        pending.pop()
        os.kill(os.getpid(), signal.SIGINT)
    before_step(self, progress)

FineTuning.before_step = interrupted
"""


def save_encoder(path: Path, **spec: int) -> None:
    encoder = models.build(EncoderSpec(name="resnet1d", options={"width": 4, "kernel": 3}, **spec))
    save(path, checkpoint_of(encoder.spec, encoder))


def test_a_run_from_scratch_writes_a_classifier_a_report_and_two_results(tmp_path: Path, run_many: RunMany) -> None:
    out, report, store = tmp_path / "classifier.pt", tmp_path / "report.json", tmp_path / "results.jsonl"
    flags = "train --encoder scratch --data synthetic-arrhythmia --epochs 1 --batch-size 1000 --tracking none"
    args = f"{flags} --threads 1 --out {out} --json {report}".split()
    ((code, stdout, stderr),) = run_many("finetune", [args], STORE_ELSEWHERE.format(store=str(store)))
    assert (code, stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classifier.pt", "report.json", "results.jsonl"]
    said = json.loads(report.read_text())
    checkpoint = load(out)
    model = restore_classifier(checkpoint, "classifier.pt")
    assert model(torch.rand(2, 1, 187)).shape == (2, 5)
    assert (checkpoint.head, checkpoint.classes) == ("linear", ("N", "S", "V", "F", "Q"))
    assert [result.to_json() for result in read(store)] == [said["validation"], said["test"]]
    for part in ("validation", "test"):
        scored = {f"{part}_{name}": value for name, value in said[part]["metrics"].items()}
        assert checkpoint.metrics.items() >= scored.items()
    assert checkpoint.options["pretrained_on"] == "nothing"
    assert (said["test"]["part"], said["test"]["arm"], said["test"]["badge"]) == ("test", "scratch", "beat-random")
    assert (said["file"], sum(map(sum, said["test"]["confusion"]))) == (str(out), 5000)
    assert "leakage beat-random" in stdout and str(out) in stdout and "macro recall" in stdout


def test_interrupted_and_resumed_equals_a_run_left_alone(
    small_data_dir: Path, tmp_path: Path, python: Python, run_many: RunMany
) -> None:
    encoder, store = tmp_path / "encoder.pt", STORE_ELSEWHERE.format(store=str(tmp_path / "results.jsonl"))
    save_encoder(encoder)
    shared = "train --schedule gradual --epochs 4 --batch-size 60 --threads 1 --device cpu --tracking none"
    flags = f"{shared} --encoder {encoder} --data-dir {small_data_dir}".split()
    run = f"{store}{INTERRUPTED_HALF_WAY}\nfrom experiments import cli\ncli.main('finetune', finetune.cli.COMMANDS)"
    interrupted = python("-c", run, *flags, "--out", tmp_path / "a.pt")
    assert interrupted.returncode == 130
    assert interrupted.stderr.startswith("interrupted; to continue: python -m finetune train --schedule gradual")
    assert interrupted.stderr.endswith(" --resume\n")
    assert (tmp_path / "a.pt.partial").exists() and not (tmp_path / "a.pt").exists()
    json_a, json_b = tmp_path / "a.json", tmp_path / "b.json"
    resumed, alone = run_many(
        "finetune",
        [
            [*flags, "--out", tmp_path / "a.pt", "--resume", "--json", json_a],
            [*flags, "--out", tmp_path / "b.pt", "--json", json_b],
        ],
        store,
    )
    assert (resumed[0], alone[0]) == (0, 0), resumed[2] + alone[2]
    assert "continuing from step" in resumed[1] and "continuing" not in alone[1]
    one, other = json.loads(json_a.read_text()), json.loads(json_b.read_text())
    for part in ("validation", "test"):
        assert one[part]["confusion"] == other[part]["confusion"]
    assert load(tmp_path / "a.pt").weights_hash == load(tmp_path / "b.pt").weights_hash
    assert not (tmp_path / "a.pt.partial").exists()


TRAIN = "train --encoder {root}/encoder.pt --data-dir {beats} --epochs 1 --tracking none --out {root}/out/{case}.pt"
TUNE = "tune --encoder {root}/encoder.pt --data-dir {beats} --tracking none --out {root}/out/{case}.pt"
COMPARE = "compare --data-dir {beats} --tracking none --encoders {root}/encoder.pt"
BAD_INPUTS: dict[str, tuple[str, list[str]]] = {
    "no-command": ("", ["train", "tune"]),
    "unknown-command": ("cook", ["train", "tune"]),
    "no-encoder": ("train", ["--encoder"]),
    "missing": (f"{TRAIN} --encoder {{root}}/absent.pt", ["{root}/absent.pt does not exist"]),
    "folder": (f"{TRAIN} --encoder {{root}}", ["{root} is a folder"]),
    "damaged": (f"{TRAIN} --encoder {{root}}/damaged.pt", ["{root}/damaged.pt is damaged"]),
    "truncated": (f"{TRAIN} --encoder {{root}}/truncated.pt", ["{root}/truncated.pt does not end in a SHA-256"]),
    "classifier": (f"{TRAIN} --encoder {{root}}/classifier.pt", ["{root}/classifier.pt is a whole classifier"]),
    "two-leads": (f"{TRAIN} --encoder {{root}}/two-leads.pt", ["two-leads.pt", "lead"]),
    "other-length": (f"{TRAIN} --encoder {{root}}/other-length.pt", ["other-length.pt", "110", "187"]),
    "arch": (f"{TRAIN} --encoder scratch --arch alexnet", ["alexnet", "resnet1d", "transformer1d"]),
    "schedule": (f"{TRAIN} --schedule melt", ["melt", "frozen, full, top, first, single, gradual, lp_ft"]),
    "head": (f"{TRAIN} --head hydra", ["hydra", "linear, mlp, attention"]),
    "balance": (f"{TRAIN} --balance luck", ["luck", "none, class_weight, smote"]),
    "protocol": (f"{TRAIN} --protocol none", ["--protocol", "beat-random", "ds1-ds2", "patient"]),
    "protocol-of-other-data": (f"{TRAIN} --data ptb --protocol patient", ["ptb", "beat-random", "patient"]),
    "data": (f"{TRAIN} --data mnist", ["mnist", "arrhythmia"]),
    "no-data": (f"{TRAIN} --data-dir {{root}}", ["{root}/heart_big_train.parq is missing"]),
    "epochs": (f"{TRAIN} --epochs 0", ["--epochs 0"]),
    "validate-every": (f"{TRAIN} --validate-every 0", ["--validate-every 0"]),
    "intervals": (f"{TRAIN} --intervals some", ["some", "none, causal, all"]),
    "no-intervals": (f"{TRAIN} --intervals causal", ["--intervals causal", "arrhythmia with --protocol ds1-ds2"]),
    "arch-option": (f"{TRAIN} --encoder scratch --arch resnet1d@hue=1", ["hue", "width"]),
    "batch-size": (f"{TRAIN} --batch-size 0", ["--batch-size 0"]),
    "lr": (f"{TRAIN} --lr -1", ["lr -1"]),
    "ratio": (f"{TRAIN} --ratio -1", ["ratio -1"]),
    "weight-decay": (f"{TRAIN} --weight-decay -1", ["--weight-decay -1"]),
    "threads": (f"{TRAIN} --threads 0", ["--threads 0"]),
    "device": (f"{TRAIN} --device tpu", ["tpu", "auto, cpu, cuda"]),
    "out-is-a-folder": (f"{TRAIN} --out {{root}}", ["{root} is a folder"]),
    "tune-budget": (f"{TUNE} --budget soon", ["--budget soon", "10m"]),
    "tune-budget-0": (f"{TUNE} --budget 0m", ["--budget 0m", "10m"]),
    "tune-trials": (f"{TUNE} --trials 0", ["--trials 0"]),
    "tune-seeds": (f"{TUNE} --seeds -1", ["--seeds -1"]),
    "tune-scratch": (f"{TUNE} --encoder scratch", ["scratch", "checkpoint"]),
    "tune-missing": (f"{TUNE} --encoder {{root}}/absent.pt", ["{root}/absent.pt does not exist"]),
    "tune-classifier": (f"{TUNE} --encoder {{root}}/classifier.pt", ["{root}/classifier.pt is a whole classifier"]),
    "tune-out": (f"{TUNE} --out {{root}}", ["{root} is a folder"]),
    "tune-space": (f"{TUNE} --space huge", ["huge", "default, small, wide", ".toml"]),
    "tune-space-file": (f"{TUNE} --space {{root}}/bad.toml", ["{root}/bad.toml", "dimension lr", "range"]),
    "tune-space-recipe": (f"{TUNE} --space {{root}}/odd.toml", ["odd", "dimension warp", "layer_decay"]),
    "tune-objective": (f"{TUNE} --objective luck", ["luck", "macro_recall", "recall_V"]),
    "tune-objective-twice": (f"{TUNE} --objective macro_f1 macro_f1", ["macro_f1", "twice"]),
    "tune-no-objective": (f"{TUNE} --objective", ["--objective"]),
    "tune-searcher": (f"{TUNE} --searcher oracle", ["--searcher", "tpe", "grid"]),
    "tune-scheduler": (f"{TUNE} --scheduler tomorrow", ["--scheduler", "asha", "pbt"]),
    "tune-fixed": (f"{TUNE} --fixed schedule=melt", ["melt", "frozen, full"]),
    "tune-fixed-epochs": (f"{TUNE} --fixed epochs=3", ["--fixed epochs=3", "schedule, num_stages"]),
    "tune-fixed-intervals": (f"{TUNE} --fixed intervals=causal", ["--intervals causal", "arrhythmia with --protocol"]),
    "tune-grid": (f"{TUNE} --space wide --searcher grid", ["grid", "wide", "configurations"]),
    "tune-grid-pbt": (f"{TUNE} --space small --searcher grid --scheduler pbt", ["pbt", "grid", "random or tpe"]),
    "tune-scratch-plus": (f"{TUNE} --scratch-plus -1", ["--scratch-plus -1"]),
    "tune-address": (f"{TUNE} --address 127.0.0.1:1", ["--address 127.0.0.1:1", "no cluster answers"]),
    "compare-address": (f"{COMPARE} --address 127.0.0.1:1", ["--address 127.0.0.1:1", "no cluster answers"]),
    "loss": (f"{TRAIN} --loss hinge", ["hinge", "cross_entropy, focal, class_balanced, ldam, logit_adjusted"]),
    "feature-dropout": (f"{TRAIN} --feature-dropout 1", ["--feature-dropout 1.0"]),
    "gamma": (f"{TRAIN} --loss focal --gamma -1", ["gamma -1"]),
    "rank": (f"{TRAIN} --schedule adapters --rank 0", ["--rank 0"]),
    "batchnorm": (f"{TRAIN} --batchnorm wild", ["wild", "stage, still, moving"]),
    "augment": (f"{TRAIN} --augment often", ["often", "none, thawed, always"]),
    "num-stages": (f"{TRAIN} --schedule top --num-stages 7", ["--num-stages 7", "5 stages"]),
    "thaw-start": (f"{TRAIN} --schedule lp_ft --thaw-start 1", ["--thaw-start 1.0"]),
    "recall-floor": (f"{TRAIN} --recall-floor 0", ["--recall-floor 0"]),
    "schedule-which-stage": ("schedule --schedule single --which-stage 9", ["--which-stage 9", "5 stages"]),
    "schedule-classes": ("schedule --classes 0", ["--classes 0"]),
    "compare-none": ("compare --encoders", ["--encoders"]),
    "compare-missing": (f"{COMPARE} {{root}}/absent.pt", ["{root}/absent.pt does not exist"]),
    "compare-damaged": (f"{COMPARE} {{root}}/damaged.pt", ["{root}/damaged.pt is damaged"]),
    "compare-classifier": (f"{COMPARE} {{root}}/classifier.pt", ["{root}/classifier.pt is a whole classifier"]),
    "compare-twice": (f"{COMPARE} {{root}}/encoder.pt", ["{root}/encoder.pt", "hold the same encoder"]),
    "compare-same-seed": (f"{COMPARE} {{root}}/same-seed.pt", ["{root}/same-seed.pt", "say the same pretraining seed"]),
    "compare-other-length": (f"{COMPARE} {{root}}/other-length.pt", ["other-length.pt", "110", "187"]),
    "compare-fraction": (f"{COMPARE} --label-fractions 0.5 2", ["--label-fractions 2"]),
    "compare-fraction-seeds": (f"{COMPARE} --label-fractions 0.5@9", ["--label-fractions 0.5@9", "the 3 seeds"]),
    "compare-fraction-words": (f"{COMPARE} --label-fractions half", ["--label-fractions half", "SHARE@SEEDS"]),
    "compare-vary": (f"{COMPARE} --vary schedule=full,warp=9", ["--vary warp=9", "NAME=VALUE", "schedule"]),
    "compare-vary-value": (f"{COMPARE} --vary lr=fast", ["--vary lr=fast", "not a number"]),
    "compare-vary-range": (f"{COMPARE} --vary schedule=melt", ["melt", "frozen, full, top"]),
    "compare-vary-twice": (f"{COMPARE} --vary ratio=0.1 ratio=0.1", ["--vary ratio=0.1", "twice"]),
    "compare-vary-intervals": (f"{COMPARE} --vary intervals=all", ["--intervals all", "--protocol ds1-ds2"]),
    "compare-protocol-twice": (f"{COMPARE} --protocol patient patient", ["--protocol patient", "twice"]),
    "compare-no-protocol": (f"{COMPARE} --protocol", ["--protocol"]),
    "compare-no-fraction": (f"{COMPARE} --label-fractions", ["--label-fractions"]),
    "compare-fraction-twice": (f"{COMPARE} --label-fractions 0.5 0.5", ["--label-fractions 0.5", "twice"]),
    "compare-too-few": (f"{COMPARE} --label-fractions 0.001", ["subset"]),
    "compare-seeds": (f"{COMPARE} --seeds 0", ["--seeds 0"]),
    "compare-steps": (f"{COMPARE} --steps 0", ["--steps 0"]),
    "compare-threads": (f"{COMPARE} --threads 0", ["--threads 0"]),
    "compare-schedule": (f"{COMPARE} --schedule melt", ["melt", "frozen, full, top, first, single, gradual, lp_ft"]),
    "compare-no-intervals": (f"{COMPARE} --intervals all", ["--intervals all", "--protocol ds1-ds2"]),
    "compare-protocol": (f"{COMPARE} --data ptb --protocol patient", ["ptb", "beat-random", "patient"]),
}


@pytest.fixture(scope="module")
def refusals(
    small_data_dir: Path, tmp_path_factory: pytest.TempPathFactory, run_many: RunMany
) -> tuple[Path, dict[str, tuple[int | str, str, str]]]:
    """Folder of the checkpoints and of what was written, and what the program said to each bad input."""
    root = tmp_path_factory.mktemp("refusals")
    save_encoder(root / "encoder.pt")
    save_encoder(root / "same-seed.pt")
    whole = bytearray((root / "encoder.pt").read_bytes())
    (root / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    whole[len(whole) // 2] ^= 1
    (root / "damaged.pt").write_bytes(whole)
    save_encoder(root / "two-leads.pt", num_leads=2)
    short = models.build(EncoderSpec(name="transformer1d", num_samples=110, options={"dim": 16, "depth": 1}))
    save(root / "other-length.pt", checkpoint_of(short.spec, short))
    classifier = Classifier(models.build(EncoderSpec(name="resnet1d", options={"width": 2})), "linear", 5)
    save(root / "classifier.pt", checkpoint_of(classifier.encoder.spec, classifier, "linear"))
    (root / "bad.toml").write_text("[lr]\nrange = [2, 1]\n")
    (root / "odd.toml").write_text("[warp]\nrange = [1, 2]\n")
    cases = [args.format(root=root, beats=small_data_dir, case=case).split() for case, (args, _) in BAD_INPUTS.items()]
    store = STORE_ELSEWHERE.format(store=str(root / "out" / "results.jsonl"))
    return root, dict(zip(BAD_INPUTS, run_many("finetune", cases, store), strict=True))


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_a_bad_input_is_one_line_and_writes_nothing(
    case: str, refusals: tuple[Path, dict[str, tuple[int | str, str, str]]]
) -> None:
    root, answers = refusals
    assert_refused(answers[case], [part.format(root=root) for part in BAD_INPUTS[case][1]])
    assert list(root.glob(f"out/{case}.pt*")) == []


def test_one_mistake_in_a_process_of_its_own(tmp_path: Path, python: Python) -> None:
    missing = tmp_path / "absent.pt"
    done = python("-m", "finetune", "train", "--encoder", missing, "--tracking", "none", "--out", tmp_path / "a.pt")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {missing} does not exist\n")
    assert list(tmp_path.iterdir()) == []


def test_a_schedule_is_shown_and_written(tmp_path: Path, run_many: RunMany) -> None:
    save_encoder(tmp_path / "encoder.pt")
    flags = f"schedule --encoder {tmp_path}/encoder.pt --schedule gradual --epochs 4 --json {tmp_path}/a.json"
    ((code, stdout, stderr),) = run_many("finetune", [flags.split()])
    assert (code, stderr) == (0, "")
    rows = json.loads((tmp_path / "a.json").read_text())
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["rates"]["stem"] is None and rows[3]["rates"]["block4"] > 0
    assert "block4" in stdout and f"{rows[3]['parameters']:,}" in stdout
