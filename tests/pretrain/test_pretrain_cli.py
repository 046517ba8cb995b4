import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from data.known import FILES
from models.checkpoint import attach, load
from tests.samples import assert_refused

PTB = FILES["ptb"]["train"]
RunMany = Callable[..., list[tuple[int | str, str, str]]]
Python = Callable[..., subprocess.CompletedProcess[str]]

KILLED_HALF_WAY = """
import os, signal, sys
from experiments import cli, loop
from pretrain.cli import Pretrain
from pretrain.train import Pretraining

loop.SAVE_EVERY_S = 0.02
before_step = Pretraining.before_step

def killed(self, progress):
    if progress >= 0.5:
        os.kill(os.getpid(), signal.SIGKILL)
    before_step(self, progress)

Pretraining.before_step = killed
cli.main("pretrain", Pretrain)
"""


def test_a_first_run_without_files_writes_a_checkpoint_and_json(tmp_path: Path, python: Python) -> None:
    out, report = tmp_path / "encoder.pt", tmp_path / "report.json"
    flags = f"--task masked --data synthetic-ptb --epochs 2 --batch-size 2000 --out {out} --json {report}"
    done = python("-m", "pretrain", *flags.split(), "--threads", "1", "--tracking", "none")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.pt", "report.json"]
    said, checkpoint = json.loads(report.read_text()), load(out)
    encoder, _ = attach(checkpoint, str(out))
    assert said["weights_hash"] == checkpoint.weights_hash
    assert said["weights_hash"] in done.stdout and str(out) in done.stdout
    assert (checkpoint.task, checkpoint.source) == ("masked", said["source"])
    assert (encoder.spec.name, said["architecture"]) == ("resnet1d", "resnet1d")
    assert len(said["losses"]) == 2 and said["losses"][1] < said["losses"][0]
    assert said["beats"] == 2 * 12_000
    assert 0 < said["probe"] <= 1 and 0 < said["untrained_probe"] <= 1


@pytest.fixture
def only_ptb(small_data_dir: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "beats"
    folder.mkdir()
    shutil.copy(small_data_dir / PTB, folder)
    return folder


def test_killed_and_resumed_equals_a_run_left_alone(
    only_ptb: Path, tmp_path: Path, python: Python, run_many: RunMany
) -> None:
    shared = f"--task masked --epochs 10 --batch-size 48 --threads 1 --device cpu --tracking none --data-dir {only_ptb}"
    flags = shared.split()
    out, partial = tmp_path / "a.pt", tmp_path / "a.pt.partial"
    killed = python("-c", KILLED_HALF_WAY, *flags, "--out", out)
    assert killed.returncode == -signal.SIGKILL
    assert partial.exists() and not out.exists()
    json_a, json_b = tmp_path / "a.json", tmp_path / "b.json"
    changed, resumed, alone = run_many(
        "pretrain",
        [
            [*flags, "--out", out, "--resume", "--lr", "0.001"],
            [*flags, "--out", out, "--resume", "--json", json_a],
            [*flags, "--out", tmp_path / "b.pt", "--json", json_b],
        ],
    )
    assert changed[0] == 2 and "other settings" in changed[2]
    assert (resumed[0], resumed[2]) == (0, "")
    step = int(resumed[1].split("continuing from step ")[1].split()[0])
    assert 0 < step <= 20
    assert (alone[0], "continuing" in alone[1]) == (0, False)
    one, other = json.loads(json_a.read_text()), json.loads(json_b.read_text())
    assert one["weights_hash"] == other["weights_hash"]
    assert one["losses"] == other["losses"]
    assert not partial.exists()


def put_nan(folder: Path) -> None:
    frame = pl.read_parquet(folder / PTB)
    marked = pl.when(pl.arange(pl.len()) == 3).then(float("nan")).otherwise(pl.col("7")).cast(pl.Float32)
    frame.with_columns(marked.alias("7")).write_parquet(folder / PTB)


def put_pointer(folder: Path) -> None:
    (folder / PTB).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 11107910\n")


GOOD = "--task masked --data-dir {root}/good --tracking none --epochs 1 --out {root}/out/{case}.pt"
BAD_INPUTS: dict[str, tuple[str, list[str]]] = {
    "task": (f"{GOOD} --task telepathy", ["telepathy", "masked, contrastive, supervised"]),
    "no-task": ("", ["--task"]),
    "data-set": (f"{GOOD} --data mnist", ["mnist", "synthetic-ptb"]),
    "not-a-source": (f"{GOOD} --data arrhythmia", ["arrhythmia"]),
    "arch": (f"{GOOD} --arch alexnet", ["alexnet", "resnet1d, inception1d"]),
    "epochs": (f"{GOOD} --epochs 0", ["--epochs 0"]),
    "epochs-in-words": (f"{GOOD} --epochs many", ["--epochs", "many"]),
    "batch-size": (f"{GOOD} --batch-size -1", ["--batch-size -1"]),
    "lr": (f"{GOOD} --lr 0", ["--lr 0"]),
    "lr-nan": (f"{GOOD} --lr nan", ["--lr nan"]),
    "weight-decay": (f"{GOOD} --weight-decay -1", ["--weight-decay -1"]),
    "mask-ratio": (f"{GOOD} --mask-ratio 1", ["--mask-ratio 1"]),
    "mask-ratio-nan": (f"{GOOD} --mask-ratio nan", ["--mask-ratio nan"]),
    "temperature": (f"{GOOD} --task contrastive --temperature 0", ["--temperature 0"]),
    "threads": (f"{GOOD} --threads 0", ["--threads 0"]),
    "device": (f"{GOOD} --device tpu", ["tpu", "auto, cpu, cuda"]),
    "precision": (f"{GOOD} --precision fp8", ["--precision", "fp8", "bf16"]),
    "out-is-a-folder": (f"{GOOD} --out {{root}}", ["{root} is a folder"]),
    "json-is-a-folder": (f"{GOOD} --json {{root}}", ["{root}"]),
    "no-file": (f"{GOOD} --data-dir {{root}}", [f"{{root}}/{PTB} is missing"]),
    "nan": (f"{GOOD} --data-dir {{root}}/nan", [f"{{root}}/nan/{PTB}: row 3, column 7", "nan"]),
    "pointer": (f"{GOOD} --data-dir {{root}}/pointer", [f"{{root}}/pointer/{PTB} is a Git LFS pointer"]),
    "a-batch-of-one": (f"{GOOD} --task contrastive --batch-size 1", ["2 beats"]),
}


@pytest.fixture(scope="module")
def refusals(
    small_data_dir: Path, tmp_path_factory: pytest.TempPathFactory, run_many: RunMany
) -> tuple[Path, dict[str, tuple[int | str, str, str]]]:
    """Folder of the beats and of what was written, and what the program said to each bad input."""
    root = tmp_path_factory.mktemp("refusals")
    damages: dict[str, Callable[[Path], None]] = {"good": lambda _: None, "nan": put_nan, "pointer": put_pointer}
    for name, damage in damages.items():
        (root / name).mkdir()
        shutil.copy(small_data_dir / PTB, root / name)
        damage(root / name)
    cases = [args.format(root=root, case=case).split() for case, (args, _) in BAD_INPUTS.items()]
    return root, dict(zip(BAD_INPUTS, run_many("pretrain", cases), strict=True))


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_a_bad_input_is_one_line_and_writes_nothing(
    case: str, refusals: tuple[Path, dict[str, tuple[int | str, str, str]]]
) -> None:
    root, answers = refusals
    assert_refused(answers[case], [part.format(root=root) for part in BAD_INPUTS[case][1]])
    assert list(root.glob(f"out/{case}.pt*")) == []
    assert list(root.glob(".*")) == []


def test_one_mistake_in_a_process_of_its_own(tmp_path: Path, python: Python) -> None:
    done = python("-m", "pretrain", "--task", "telepathy", "--out", tmp_path / "a.pt")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown task 'telepathy'; choose from masked, contrastive, supervised\n"
