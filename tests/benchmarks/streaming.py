"""python -m tests.benchmarks.streaming: one pretraining epoch over ten times the arrhythmia beats, from a file.

Prints the peak memory of the whole pretraining process, interpreter and torch included.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import torch

import data
from data.intervals import RATIOS
from data.recorded import Recorded
from data.store import Writer

COPIES = 10


def write_copies(folder: Path, path: Path) -> int:
    with Writer(path) as writer:
        for _ in range(COPIES):
            for part in data.PARTS:
                beats = data.load("arrhythmia", part, folder)
                writer.append(Recorded(replace(beats, intervals=torch.zeros(len(beats), len(RATIOS))), pa.table({})))
    return writer.num_beats


def main() -> None:
    folder = Path(os.environ.get("HEART_DATA_DIR", "data"))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "ten.parq"
        num_beats = write_copies(folder, path)
        print(
            f"{num_beats:,} beats, {path.stat().st_size / 1e6:,.0f} MB on disk, {num_beats * 748 / 1e6:,.0f} MB decoded"
        )
        flags = f"--task masked --data parquet:{path} --stream --epochs 1 --tracking none --out {scratch}/encoder.pt"
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "pretrain", *flags.split()], check=True)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"one epoch: {seconds:.0f} s, peak memory {peak / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
