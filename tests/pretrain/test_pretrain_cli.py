import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data.known import FILES
from models.checkpoint import attach, load
from pretrain import TASKS, entry
from tests.samples import assert_refused

PTB = FILES["ptb"]["train"]
RunMany = Callable[..., list[tuple[int | str, str, str]]]
Python = Callable[..., subprocess.CompletedProcess[str]]

KILLED_AND_RESUMED = """
import contextlib, io, json, os, signal, sys
import torch
from experiments import cli
from pretrain.cli import Pretrain
from pretrain.train import Pretraining

folder, cases = sys.argv[1], json.loads(sys.argv[2])
torch.set_num_threads(1)
before_step = Pretraining.before_step


def killed_half_way(self, progress):
    if progress >= 0.5:
        os.kill(os.getpid(), signal.SIGKILL)
    before_step(self, progress)


def pretrain(*args):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            cli.main("pretrain", Pretrain, [str(arg) for arg in args])
        except SystemExit as stop:
            return stop.code, out.getvalue()


found = {}
for name, flags in cases.items():
    first = os.fork()
    if not first:
        Pretraining.before_step = killed_half_way
        pretrain(*flags, "--out", f"{folder}/{name}.pt")
        os._exit(0)
    _, status = os.waitpid(first, 0)
    partial = os.path.exists(f"{folder}/{name}.pt.partial")
    other = pretrain(*flags, "--out", f"{folder}/{name}.pt", "--resume", "--lr", "0.001")
    resumed = pretrain(*flags, "--out", f"{folder}/{name}.pt", "--resume", "--json", f"{folder}/{name}.json")
    pretrain(*flags, "--out", f"{folder}/{name}_alone.pt", "--json", f"{folder}/{name}_alone.json")
    found[name] = {"signal": os.WTERMSIG(status), "partial": partial, "other": other, "resumed": resumed}
json.dump(found, sys.stdout)
"""


def test_a_first_run_without_files_writes_a_checkpoint_and_json(tmp_path: Path, python: Python) -> None:
    out, report = tmp_path / "encoder.pt", tmp_path / "report.json"
    flags = f"--task masked --data synthetic-ptb --epochs 2 --batch-size 2000 --out {out} --json {report}"
    done = python("-m", "pretrain", *flags.split(), "--threads", "1", "--tracking", "none", "--no-pictures")
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
    assert all(0 < said[of]["linear"] <= 1 and 0 < said[of]["neighbours"] <= 1 for of in ("probe", "untrained"))


KILLED = {
    f"{task}-{arch.partition('@')[0]}": f"--task {task} --arch {arch} --epochs 6 --batch-size 48 --save-every 0"
    for task in TASKS
    for arch in ("resnet1d@width=4,kernel=3", "transformer1d@dim=16,depth=1")
    if arch.partition("@")[0] in (entry(task).encoders or (arch.partition("@")[0],))
}


@pytest.fixture(scope="module")
def killed(
    small_data_dir: Path, tmp_path_factory: pytest.TempPathFactory, python: Python
) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Folder of the results, and how each run that was killed with SIGKILL went on."""
    folder = tmp_path_factory.mktemp("killed")
    shutil.copy(small_data_dir / PTB, folder)
    shared = ["--threads", "1", "--device", "cpu", "--tracking", "none", "--no-pictures", "--data-dir", str(folder)]
    cases = {name: [*flags.split(), *shared] for name, flags in KILLED.items()}
    done = python("-c", KILLED_AND_RESUMED, folder, json.dumps(cases))
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("name", KILLED)
def test_killed_and_resumed_equals_a_run_left_alone(name: str, killed: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    folder, found = killed[0], killed[1][name]
    assert (found["signal"], found["partial"]) == (signal.SIGKILL, True)
    assert found["other"][0] == 2 and "other settings: lr was" in found["other"][1]
    code, said = found["resumed"]
    assert code == 0, said
    assert int(said.split("continuing from step ")[1].split()[0]) == 12
    one, other = (json.loads((folder / f"{name}{end}.json").read_text()) for end in ("", "_alone"))
    assert one["weights_hash"] == other["weights_hash"]
    assert one["losses"] == other["losses"] and one["readings"] == other["readings"]
    assert not (folder / f"{name}.pt.partial").exists()


def put_nan(folder: Path) -> None:
    frame = pl.read_parquet(folder / PTB)
    marked = pl.when(pl.arange(pl.len()) == 3).then(float("nan")).otherwise(pl.col("7")).cast(pl.Float32)
    frame.with_columns(marked.alias("7")).write_parquet(folder / PTB)


def put_pointer(folder: Path) -> None:
    (folder / PTB).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 11107910\n")


GOOD = "--task masked --data-dir {root}/good --tracking none --epochs 1 --out {root}/out/{case}.pt"
BAD_INPUTS: dict[str, tuple[str, list[str]]] = {
    "task": (f"{GOOD} --task telepathy", ["telepathy", "masked, spectrogram, contrastive"]),
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
    assert done.stderr == f"error: unknown task 'telepathy'; choose from {', '.join(TASKS)}\n"
