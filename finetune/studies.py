"""What a tune is about: its arms, its space, where it is recorded, and on how many workers it runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.split import Split
from experiments import results
from experiments.files import append_line, read_lines
from experiments.machine import Machine
from experiments.metrics import objective
from experiments.results import RunResult
from experiments.space import Space
from experiments.tracking import Run
from finetune.recipe import Recipe
from finetune.train import Arm, Context


@dataclass(frozen=True, kw_only=True)
class Study:
    """One tune; a resumed one is the same study."""

    name: str
    """Unique; the `study` of each of its results."""
    arms: tuple[Arm, ...]
    split: Split
    base: Context
    base_recipe: Recipe
    """What the space does not search."""
    space: Space
    objectives: tuple[str, ...]
    """Names as of `experiments.metrics.objective`; the first one is what schedulers judge by."""
    searcher: str
    scheduler: str
    prior: Sequence[RunResult]
    """Trials of earlier studies that this one learns from."""
    seed: int
    num_workers: int
    resources: Mapping[str, float]
    """Of a trial, in Ray's terms."""
    shares_disk: bool
    """Whether every worker sees the study's folder."""
    machine: Machine
    trial_bytes: int
    """Memory that a trial may take before it fails alone."""
    folder: Path
    store: Path
    tracked: Run
    interrupted: Callable[[], bool]

    def stop_if_interrupted(self) -> None:
        """Ctrl-C is acted on at safe points only: inside Ray's own calls the exception can be lost.

        Raises:
            KeyboardInterrupt: it was pressed.
        """
        if self.interrupted():
            raise KeyboardInterrupt

    def context(self, stage: str, **labels: str | int) -> Context:
        """Of the results of one stage, search or final."""
        return replace(self.base, labels={"study": self.name, "stage": stage, **labels})

    def finished(self, stage: str) -> list[RunResult]:
        """What the store already holds."""
        wanted = {"study": self.name, "stage": stage}
        return [result for result in results.read(self.store) if wanted.items() <= result.config.items()]

    def searched(self, arm: Arm) -> list[RunResult]:
        return [result for result in self.finished("search") if result.arm == arm.name]

    def num_started(self, arm: Arm) -> int:
        """Trials that have had a number."""
        return max((number + 1 for number in self._numbers(arm)), default=0)

    def compared(self, arm: Arm) -> list[RunResult]:
        """Of the trials that started first, as many as every arm has tried: who had more time has no better chance."""
        tried = [len(self._numbers(one)) for one in self.arms]
        fewest = min((number for number in tried if number), default=0)
        first = sorted(self._numbers(arm))[:fewest]
        searched = self.searched(arm)
        return [result for result in searched if result.config["number"] in first] or searched[:1]

    def _numbers(self, arm: Arm) -> list[int]:
        """Of the trials that have ended, well or not."""
        searched = [int(result.config["number"] or 0) for result in self.searched(arm)]
        return searched + [failure["number"] for failure in self.failures(arm)]

    def values(self, confusion: np.ndarray) -> tuple[float, ...]:
        """Of each objective."""
        return tuple(float(objective(name, self.base.classes)(confusion)) for name in self.objectives)

    def best(self, searched: Sequence[RunResult]) -> RunResult:
        """The highest mean of the objectives: of several, a compromise on the Pareto front."""
        return max(searched, key=lambda result: np.mean(self.values(np.array(result.confusion))))

    def front(self, searched: Sequence[RunResult]) -> list[RunResult]:
        """Pareto front: no trial is better in one objective and as good in the others. By the first objective."""
        values = np.array([self.values(np.array(result.confusion)) for result in searched])
        beaten = [bool(((values >= own).all(1) & (values > own).any(1)).any()) for own in values]
        on_front = [place for place, is_beaten in enumerate(beaten) if not is_beaten]
        return [searched[place] for place in sorted(on_front, key=lambda place: -values[place, 0])]

    def record(self, result: RunResult) -> None:
        """First to the store, then to MLflow: what is missing there is sent again when the study goes on."""
        results.append(self.store, result)
        self.track(result)

    def track(self, result: RunResult) -> None:
        """One MLflow run for one result, however often it is sent."""
        config = result.config
        name = f"{config['stage']} {result.arm} {result.part} seed {result.seed}"
        key = f"{self.name} {name} {config.get('trial', '')}"
        with self.tracked.child(name, config, {"arm": result.arm, "badge": result.badge}, key=key) as run:
            run.log(result.metrics | result.cost)

    def fail(self, arm: Arm, number: int, config: Mapping[str, Any], why: str) -> None:
        """A trial that failed has been tried: it counts, and is not tried again."""
        failed = {"study": self.name, "arm": arm.name, "number": number, "config": config, "why": why}
        append_line(self._failed, json.dumps(failed))

    def failures(self, arm: Arm | None = None) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in read_lines(self._failed)]
        return [one for one in found if one["study"] == self.name and (arm is None or one["arm"] == arm.name)]

    @property
    def _failed(self) -> Path:
        return self.folder / "failed.jsonl"
