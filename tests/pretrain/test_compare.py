"""The whole `pretrain compare` in real processes: interrupted, killed, continued, and what it refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.known import FILES
from experiments.machine import Machine
from models.checkpoint import load
from pretrain import compare
from pretrain.cli import Compare

ROOT = Path(__file__).parents[2]
ARCHS = ("resnet1d@width=4,kernel=3", "transformer1d@dim=16,depth=1")
CELLS = [("masked", ARCHS[0]), ("masked", ARCHS[1]), ("jepa", ARCHS[1])]
NUM_RUNS = 2 * len(CELLS)

Python = Callable[..., subprocess.CompletedProcess[str]]


class Comparison:
    """Two tasks, two architectures, two seeds, on a few beats."""

    def __init__(self, folder: Path, beats: Path) -> None:
        self.out, self.json = folder / "out", folder / "compare.json"
        shared = f"--data-dir {beats} --out {self.out} --json {self.json} --threads 2 --device cpu --tracking none"
        size = "--tasks masked jepa --seeds 2 --compute 0.0002 --batch-size 48 --save-every 0"
        self.flags = ["-m", "pretrain", "compare", *shared.split(), *size.split(), "--archs", *ARCHS]

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, *self.flags]
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def checkpoints(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted(self.out.glob("*.pt"))}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, small_data_dir: Path) -> tuple[Comparison, dict[Path, bytes]]:
    """A comparison that was killed after its first finished run, and the checkpoints that it had written."""
    comparison = Comparison(tmp_path_factory.mktemp("compare"), small_data_dir)
    process = comparison.start()
    while process.poll() is None and not comparison.checkpoints():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    return comparison, comparison.checkpoints()


@pytest.fixture(scope="module")
def resumed(
    killed: tuple[Comparison, dict[Path, bytes]], python: Python
) -> tuple[Comparison, subprocess.CompletedProcess[str]]:
    """The same, continued to its end."""
    return killed[0], python(*killed[0].flags, "--resume")


def test_killed_and_resumed_repeats_no_finished_run(
    killed: tuple[Comparison, dict[Path, bytes]], resumed: tuple[Comparison, subprocess.CompletedProcess[str]]
) -> None:
    (comparison, before), (_, done) = killed, resumed
    assert (done.returncode, done.stderr) == (0, "")
    assert 0 < len(before) < NUM_RUNS
    assert f"{NUM_RUNS - len(before)} runs of" in done.stdout and f"{len(before)} done before" in done.stdout
    after = comparison.checkpoints()
    assert len(after) == NUM_RUNS
    assert {path: after[path] for path in before} == before
    assert list(comparison.out.glob("*.partial")) == []


def test_jepa_is_left_out_for_an_encoder_without_patches(
    resumed: tuple[Comparison, subprocess.CompletedProcess[str]],
) -> None:
    found = [(load(path).task, load(path).options["arch"], load(path).seed) for path in resumed[0].checkpoints()]
    assert sorted(found) == sorted((task, arch, seed) for task, arch in CELLS for seed in (0, 1))


def test_the_json_is_the_table_of_the_checkpoints(
    resumed: tuple[Comparison, subprocess.CompletedProcess[str]],
) -> None:
    comparison, done = resumed
    rows = json.loads(comparison.json.read_text())
    assert [row["linear"] for row in rows] == sorted((row["linear"] for row in rows), reverse=True)
    assert sorted((row["task"], row["architecture"]) for row in rows) == sorted(CELLS)
    table = [line for line in done.stdout.splitlines() if line.startswith("│")]
    for row, line in zip(rows, table, strict=True):
        assert_row(row, [cell.strip() for cell in line.strip("│").split("│")], comparison)
    assert "★" in table[0] and all("★" not in line for line in table[1:])


def assert_row(row: dict[str, Any], cells: list[str], comparison: Comparison) -> None:
    found = [load(path) for path in comparison.checkpoints()]
    mine = [c for c in found if (c.task, c.options["arch"]) == (row["task"], row["architecture"])]
    mean = {name: sum(c.metrics[name] for c in mine) / 2 for name in mine[0].metrics}
    assert row["num_seeds"] == len(mine) == 2
    assert row["linear"] == pytest.approx(mean["probe_linear"])
    assert row["neighbours"] == pytest.approx(mean["probe_neighbours"])
    assert row["effective_rank"] == pytest.approx(mean["probe_effective_rank"])
    assert row["gain"]["mean"] == pytest.approx(mean["probe_linear"] - mean["untrained_linear"])
    assert row["num_warned"] == sum(c.metrics["warnings"] > 0 for c in mine)
    assert row["multiply_adds"] == pytest.approx(sum(c.cost["multiply_adds"] for c in mine) / 2)
    assert {c.options["epochs"] for c in mine} == {row["epochs"]}
    said = [cells[0].removesuffix(" ★"), *cells[1:5], cells[7], *cells[9:12]]
    assert said == [
        row["task"],
        row["architecture"],
        row["origin"],
        "2",
        f"{row['linear']:.3f}",
        f"{row['neighbours']:.3f}",
        f"{row['effective_rank']:.1f}",
        f"{row['num_warned']}/2",
        str(row["epochs"]),
    ]


def test_compute_is_equal_as_near_as_whole_epochs_come(
    resumed: tuple[Comparison, subprocess.CompletedProcess[str]],
) -> None:
    for row in json.loads(resumed[0].json.read_text()):
        an_epoch = row["multiply_adds"] / row["epochs"]
        assert abs(row["multiply_adds"] - 0.0002e12) <= an_epoch / 2 or row["epochs"] == 1


def test_a_finished_comparison_runs_nothing_again(
    resumed: tuple[Comparison, subprocess.CompletedProcess[str]], python: Python
) -> None:
    comparison, first = resumed
    before, rows = comparison.checkpoints(), comparison.json.read_text()
    again = python(*comparison.flags, "--resume")
    assert (again.returncode, again.stderr) == (0, "")
    assert f"0 runs of 0.0002 × 10¹² multiply-adds on 2 one-thread workers, {NUM_RUNS} done before" in again.stdout
    assert (comparison.checkpoints(), comparison.json.read_text()) == (before, rows)
    tables = [re.findall(r"│.*│", done.stdout) for done in (first, again)]
    assert tables[0] == tables[1]


REFUSED = {
    "other-rate": (["--resume", "--lr", "0.001"], ["is of other settings: lr was 0.002, is 0.001", "--out"]),
    "other-compute": (["--resume", "--compute", "0.001"], ["is of other settings: compute was 0.0002, is 0.001"]),
    "task": (["--tasks", "masked", "telepathy"], ["unknown task 'telepathy'", "masked, spectrogram"]),
    "arch": (["--archs", "alexnet"], ["alexnet", "resnet1d, inception1d"]),
    "option": (["--archs", "resnet1d@wings=2"], ["wings"]),
    "data": (["--data", "mnist"], ["'mnist'", "synthetic-ptb"]),
    "seeds": (["--seeds", "0"], ["--seeds 0"]),
    "compute": (["--compute", "0"], ["--compute 0"]),
    "no-compute": (["--compute", "None"], ["--compute"]),
}


@pytest.fixture(scope="module")
def answers(resumed: tuple[Comparison, subprocess.CompletedProcess[str]], python: Python) -> dict[str, Any]:
    """What the program said to each mistake, all in one process: torch and Ray load once."""
    flags = resumed[0].flags[3:]
    cases = {case: [*flags, *more] for case, (more, _) in REFUSED.items()}
    done = python("-c", MANY, json.dumps(cases))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


MANY = """
import contextlib, io, json, sys
from experiments import cli
from pretrain.cli import Compare
said = {}
for case, args in json.loads(sys.argv[1]).items():
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main("pretrain compare", Compare, args)
    except SystemExit as stop:
        said[case] = [stop.code, out.getvalue(), err.getvalue()]
json.dump(said, sys.stdout)
"""


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_line_and_runs_nothing(case: str, answers: dict[str, Any]) -> None:
    code, out, err = answers[case]
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert [part for part in REFUSED[case][1] if part not in err] == []


def test_without_the_target_there_is_nothing_to_rank_by(tmp_path: Path, small_data_dir: Path) -> None:
    shutil.copy(small_data_dir / FILES["ptb"]["train"], tmp_path)
    cells = Compare(tasks=("masked",), seeds=1, data_dir=tmp_path, out=tmp_path / "out").cells()
    with pytest.raises(ValueError, match=r"encoders are ranked by a probe, and there is no probe: .* is missing"):
        next(compare._start(cells, Machine()))


def test_every_cell_has_a_file_of_its_own() -> None:
    cells = Compare(seeds=2, archs=("resnet1d", "resnet1d@width=8", "transformer1d")).cells()
    assert len({cell.out_file for cell in cells}) == len(cells) == 2 * (8 + 8 + 9)
    assert [cell.seed for cell in cells] == [0] * 25 + [1] * 25
    assert all((cell.threads, cell.tracking, cell.pictures) == (1, "none", False) for cell in cells)
