import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

Done = tuple[int | str, str, str]
"""Exit code (or the error that escaped), stdout, stderr."""

MANY = """
import contextlib, io, json, sys
from experiments import cli
{prologue}
done = []
for args in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main({prog!r}, {commands}, args)
    except SystemExit as stop:
        code = stop.code
    except BaseException as error:
        code = f"{{type(error).__name__}}: {{error}}"
    done.append((code, out.getvalue(), err.getvalue()))
json.dump(done, sys.stdout)
"""
COMMANDS = {
    "pretrain": "__import__('pretrain.cli').cli.Pretrain",
    "finetune": "__import__('finetune.cli').cli.COMMANDS",
}


@pytest.fixture(scope="session")
def heart_data_dir() -> Path:
    """Folder of the real data files."""
    folder = os.environ.get("HEART_DATA_DIR")
    if not folder:
        pytest.skip("HEART_DATA_DIR does not name a folder of real data files")
    return Path(folder)


@pytest.fixture(scope="session")
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python ARGS` in the repository root, without the user's settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HEART_")}

    def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, args)]
        return subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=300, check=False)

    return run


@pytest.fixture(scope="session")
def run_many(
    python: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[..., list[Done]]:
    """Run one program (pretrain or finetune) with several lists of arguments, in one process: torch loads once."""

    def run(prog: str, cases: Sequence[Sequence[str | Path]], prologue: str = "") -> list[Done]:
        program = MANY.format(prog=prog, commands=COMMANDS[prog], prologue=prologue)
        done = python("-c", program, json.dumps([[str(part) for part in case] for case in cases]))
        assert done.returncode == 0, done.stderr
        return [(code, out, err) for code, out, err in json.loads(done.stdout)]

    return run


@pytest.fixture(scope="session")
def small_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data files of both data sets with a few synthetic beats each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from data.known import FILES
    from data.synthetic import synthetic_arrhythmia, synthetic_ptb

    folder = tmp_path_factory.mktemp("beats")
    drawn = {
        ("ptb", "train"): synthetic_ptb(192, 0),
        ("ptb", "test"): synthetic_ptb(64, 1),
        ("arrhythmia", "train"): synthetic_arrhythmia(400, 0),
        ("arrhythmia", "test"): synthetic_arrhythmia(300, 1),
    }
    for (name, part), beats in drawn.items():
        columns = [*beats.signal[:, 0].numpy().T, beats.labels.numpy()]
        names = [*map(str, range(len(columns) - 1)), "target"]
        pq.write_table(pa.table([pa.array(column) for column in columns], names=names), folder / FILES[name][part])
    return folder
