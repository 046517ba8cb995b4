"""python -m tests.benchmarks.loading: all arrhythmia beats from Parquet to one tensor, against pandas.

Alternating pairs of fresh processes; each imports torch, pandas and pyarrow before its clock starts. Peak memory is
above what the process had after those imports. Ours includes checks of every value and the SHA-256 of the file.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from torch import Tensor

PAIRS = 15
FILES = ("heart_big_train.parq", "heart_big_test.parq")


def load_ours(folder: Path) -> int:
    import pyarrow.parquet as pq
    import torch

    import data

    whole = torch.empty(sum(pq.read_metadata(folder / name).num_rows for name in FILES), 1, 187)
    first = 0
    for part in data.PARTS:
        first += _put(data.load("arrhythmia", part, folder).signal, whole[first:])
    assert first == len(whole)
    return whole.numel() * whole.element_size()


def _put(signal: Tensor, where: Tensor) -> int:
    where[: len(signal)] = signal
    return len(signal)


def load_pandas(folder: Path) -> int:
    import pandas as pd
    import torch

    frame = pd.concat([pd.read_parquet(folder / name) for name in FILES])
    tensor = torch.tensor(frame.values)
    return tensor.numel() * tensor.element_size()


LOADERS = {"ours": load_ours, "pandas": load_pandas}


def measure(which: str, folder: Path) -> None:
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import data.published  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    num_bytes = LOADERS[which](folder)
    seconds = time.perf_counter() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(json.dumps({"seconds": seconds, "peak": peak, "bytes": num_bytes}))


def main() -> None:
    folder = Path(os.environ.get("HEART_DATA_DIR", "data"))
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in LOADERS}
    for _ in range(PAIRS):
        for name in LOADERS:
            done = subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.loading", name, str(folder)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            rows[name].append(json.loads(done.stdout))
    size = rows["ours"][0]["bytes"]
    for name, measured in rows.items():
        seconds = statistics.median(row["seconds"] for row in measured)
        peak = max(row["peak"] for row in measured)
        print(f"{name:7} {seconds:.3f} s  peak {peak / 1e6:.0f} MB, {peak / size:.2f} × the float32 tensor")
    ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in zip(rows["ours"], rows["pandas"], strict=True)]
    print(f"pandas / ours: median {statistics.median(ratios):.2f} ({' '.join(f'{ratio:.2f}' for ratio in ratios)})")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
