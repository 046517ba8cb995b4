"""python -m tests.benchmarks.r_peaks: the R peaks of all 48 mitdb records, by `data.segment` and by wfdb's XQRS.

Gross over the records: sensitivity and positive predictivity at 150 ms, the sensitivity to beats of each class, and how
far the peaks lie from their annotations. Episodes of flutter and the first five minutes count.
"""

import contextlib
import io
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.known import CLASSES
from data.physionet import RECORDS
from data.record import Record
from data.segment import find_r_peaks, resample
from finetune.reference import WINDOW_S, Annotated

XQRS_HZ = 250

Detector = Callable[[NDArray[np.float64], float], NDArray[np.int64]]


def find_by_xqrs(signal: NDArray[np.float64], rate_hz: float) -> NDArray[np.int64]:
    from wfdb.processing import correct_peaks, xqrs_detect

    fast = resample(signal, rate_hz, XQRS_HZ)
    with contextlib.redirect_stdout(io.StringIO()):
        found = np.asarray(xqrs_detect(fast, fs=XQRS_HZ, verbose=False), np.int64)
    moved = correct_peaks(fast, found, round(0.05 * XQRS_HZ), XQRS_HZ, peak_dir="compare")
    return np.unique(np.round(moved * (rate_hz / XQRS_HZ)).astype(np.int64).clip(0, len(signal) - 1))


def measure(name: str, detect: Detector, records: list[tuple[Record, Annotated]]) -> None:
    from wfdb.processing import compare_annotations

    num_found, seconds, offsets_ms = 0, 0.0, []
    hits: Counter[str] = Counter()
    beats: Counter[str] = Counter()
    for record, annotated in records:
        signal = record.read()
        start = time.process_time()
        peak = detect(signal, record.rate_hz)
        seconds += time.process_time() - start
        matched = compare_annotations(annotated.sample, peak, round(WINDOW_S * record.rate_hz) + 1)
        hits.update(annotated.names[matched.matched_ref_inds].tolist())
        beats.update(annotated.names.tolist())
        num_found += len(peak)
        apart = np.abs(matched.matched_ref_sample - matched.matched_test_sample)
        offsets_ms.append(np.median(apart) / record.rate_hz * 1000)
    of_class = "  ".join(f"{label} {hits[label] / beats[label]:.4f}" for label in CLASSES["arrhythmia"])
    print(
        f"{name}: sensitivity {hits.total() / beats.total():.4f} ({of_class}), "
        f"positive predictivity {hits.total() / num_found:.4f}; {seconds:.0f} s; "
        f"off by {np.median(offsets_ms):.1f} ms in the median record, {max(offsets_ms):.1f} ms at most"
    )


def main() -> None:
    folder = Path(os.environ.get("HEART_DATA_DIR", "data")) / "mitdb"
    records = [(Record.open(folder / name), Annotated.read(folder / name, "atr")) for name in RECORDS]
    print(f"{len(records)} records, {sum(len(annotated.sample) for _, annotated in records):,} beats")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measure("GQRS", find_r_peaks, records)
        measure("XQRS", find_by_xqrs, records)


if __name__ == "__main__":
    main()
