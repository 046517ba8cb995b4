"""The record of what was run: one `RunResult` a line, appended and never rewritten."""

import json
import math
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

from experiments.cli import ROOT, RUNS
from experiments.files import append_line, read_lines

Scalar = str | int | float | bool | None
Part = Literal["validation", "test"]

STORE = RUNS / "results.jsonl"
PACKAGES = (
    *("torch", "numpy", "scipy", "scikit-learn", "imbalanced-learn", "pyarrow", "ray", "optuna", "mlflow"),
    *("timm", "tsai"),
)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One trained model, scored on one part of one data set.

    Raises:
        ValueError: `part` is unknown, or `confusion` is not (num_classes, num_classes).
    """

    arm: str
    encoder: str | None
    """Hash of the pretrained weights; None where the encoder started untrained."""
    source: str | None
    """What the encoder was pretrained on, as a reader would name it."""
    dataset: str
    config: dict[str, Scalar]
    seed: int
    protocol: str
    badge: str
    """Leakage between the parts: beat-random, record-disjoint, patient-disjoint or unknown."""
    part: Part
    metrics: dict[str, float]
    """NaN where a metric is not defined, such as the recall of an absent class."""
    confusion: list[list[int]]
    """Rows are true classes, columns predicted ones, in the order of `classes`."""
    classes: list[str]
    cost: dict[str, float]
    """Beats seen, seconds, parameters."""
    commit: str | None
    created: str
    """ISO 8601, UTC."""

    def __post_init__(self) -> None:
        if self.part not in get_args(Part):
            raise ValueError(f"unknown part {self.part!r}: choose from {', '.join(get_args(Part))}")
        if {len(self.classes)} != {len(self.confusion), *map(len, self.confusion)}:
            raise ValueError(f"the confusion matrix is not {len(self.classes)} x {len(self.classes)}")

    def to_json(self) -> dict[str, Any]:
        """JSON has no NaN: an undefined metric becomes null."""
        metrics = {name: None if math.isnan(value) else value for name, value in self.metrics.items()}
        return {**asdict(self), "metrics": metrics}

    @classmethod
    def from_json(cls, content: Any) -> "RunResult":
        """Rebuild what `to_json` gave.

        Raises:
            ValueError: a field is missing or unknown, or a value is refused.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(content, dict) or content.keys() != names:
            different = names ^ content.keys() if isinstance(content, dict) else names
            raise ValueError(f"missing or unknown fields: {', '.join(sorted(different))}")
        metrics = {name: math.nan if value is None else value for name, value in content["metrics"].items()}
        return cls(**{**content, "metrics": metrics})


def append(path: Path, result: RunResult) -> None:
    """Add one line to the store, safe against other writers and against being killed half-way.

    Raises:
        ValueError: a number is infinite, or NaN outside `metrics`.
        OSError: the store cannot be written.
    """
    append_line(path, json.dumps(result.to_json(), allow_nan=False))


def read(path: Path) -> list[RunResult]:
    """Every result of the store, oldest first; none where there is no file.

    A last line without its line break was torn by a killed writer: it is skipped, with a warning on stderr.

    Raises:
        ValueError: another line is broken.
    """
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(read_lines(path), start=1)]


def git_commit(folder: Path = ROOT) -> str | None:
    """Abbreviated commit of the checkout at `folder`, with `+dirty` after a change; None where there is no checkout."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+dirty"]
    # A copy without history must not report the commit of a repository that happens to hold it.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    try:
        answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result's bits, without importing them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _parse(line: bytes, place: str) -> RunResult:
    try:
        return RunResult.from_json(json.loads(line))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{place}: not a result ({error})") from None
