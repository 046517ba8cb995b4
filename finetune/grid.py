"""The runs of `compare`: every arm on every seed and label fraction, side by side on Ray, recorded as they come."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import ray

from data.split import Split, subset, with_fewer_labels
from experiments import results, tables
from experiments.cluster import finished
from experiments.machine import Machine
from experiments.tracking import Run
from finetune.controls import Control
from finetune.finals import Final, name_of, run_final
from finetune.groups import Group, cell_of
from finetune.plan import validation_size, with_enough_steps
from finetune.shelves import SharedShelf
from finetune.train import Arm, Context


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Arms × seeds × label fractions. Seed k is the same validation cut, label draw, head and batches for every arm."""

    groups: Sequence[Group]
    seeds: Mapping[float, Sequence[int]]
    """Of each label fraction."""
    num_steps: int
    context: Context
    """Its labels name the comparison."""
    load_split: Callable[[int], Split]
    """By seed."""
    machine: Machine
    num_workers: int
    resources: Mapping[str, float]
    """Of a run, in Ray's terms."""

    @property
    def num_runs(self) -> int:
        return sum(map(len, self.seeds.values())) * sum(len(group.arms) for group in self.groups)

    def done(self) -> list[results.RunResult]:
        """What the store already holds of this comparison; other seeds, fractions and checkpoints too."""
        name = self.context.labels["comparison"]
        return [result for result in results.read(results.STORE) if result.config.get("comparison") == name]

    def missing(self) -> dict[int, dict[float, list[tuple[Group, Arm | Control]]]]:
        """Runs that the store does not hold, by seed and label fraction."""
        done = {cell_of(result) for result in self.done() if result.part == "test"}
        found: dict[int, dict[float, list[tuple[Group, Arm | Control]]]] = {}
        for seed in sorted(set(chain.from_iterable(self.seeds.values()))):
            for fraction in (fraction for fraction, seeds in self.seeds.items() if seed in seeds):
                pairs = [(group, arm) for group in self.groups for arm in group.arms]
                left = [(group, arm) for group, arm in pairs if group.cell(arm, fraction, seed) not in done]
                if left:
                    found.setdefault(seed, {})[fraction] = left
        return found


def run_grid(grid: Grid, tracked: Run, interrupted: Callable[[], bool]) -> None:
    """Run what the store does not hold yet.

    Raises:
        KeyboardInterrupt: Ctrl-C; what had finished is in the store.
    """

    def stop_if_interrupted() -> None:
        if interrupted():
            raise KeyboardInterrupt

    num_left, start = sum(len(pairs) for of in grid.missing().values() for pairs in of.values()), time.monotonic()
    runs = finished(_start(grid), 2 * grid.num_workers, stop_if_interrupted, name_of)
    for number, (final, (validation, tested, _)) in enumerate(runs, start=1):
        for result in (validation, tested):
            results.append(results.STORE, result)
        with tracked.child(name_of(final), tested.config, {"arm": tested.arm, "badge": tested.badge}) as run:
            run.log({f"test_{metric}": value for metric, value in tested.metrics.items()} | tested.cost)
        left_s = (time.monotonic() - start) / number * (num_left - number)
        tables.say(
            f"{name_of(final)} · test macro recall {tested.metrics['macro_recall']:.3f} · "
            f"macro F1 {tested.metrics['macro_f1']:.3f} · {tables.duration(tested.cost['seconds'])} · "
            f"{num_left - number:,} runs left, about {tables.duration(left_s)}"
        )


def _start(grid: Grid) -> Iterator[tuple[Final, ray.ObjectRef]]:
    """Starts the missing runs, seed by seed, so that an interrupted comparison has whole pairs.

    A split is in the object store only as long as its runs need it.
    """
    missing, test = grid.missing(), None
    shelf = SharedShelf.start()
    for seed, by_fraction in missing.items():
        whole = grid.load_split(seed)
        test = ray.put(whole.load_test()) if test is None else test
        for fraction, pairs in by_fraction.items():
            split = fewer(whole, fraction, seed)
            shared = ray.put(split.without_test())
            for group, arm in pairs:
                context = _labelled(grid.context, arm, fraction, seed, len(split.train))
                final = Final(
                    arm=arm,
                    recipe=group.recipe and with_enough_steps(group.recipe, len(split.train), grid.num_steps),
                    seed=seed,
                    label=f"{_label(group, arm)} · labels {fraction:.3g}",
                )
                yield final, run_final(final, context, shared, test, grid.machine, shelf, grid.resources)


def _label(group: Group, arm: Arm | Control) -> str:
    return f"{group.label} · {Path(arm.origin).stem}" if isinstance(arm, Arm) and arm.checkpoint else group.label


def fewer(split: Split, fraction: float, seed: int) -> Split:
    """The share of the training beats, and no more of the validation beats than go with it."""
    split = with_fewer_labels(split, fraction, seed)
    num_beats = validation_size(len(split.train), len(split.validation))
    if num_beats == len(split.validation):
        return split
    return replace(split, validation=subset(split.validation, num_beats, seed))


def _labelled(context: Context, arm: Arm | Control, fraction: float, seed: int, num_beats: int) -> Context:
    labels = {"label_fraction": fraction, "label_draw": seed, "train_beats": num_beats}
    if isinstance(arm, Arm) and arm.checkpoint is not None:
        labels |= {"task": arm.checkpoint.task, "pretraining_seed": arm.checkpoint.seed}
    return replace(context, labels={**context.labels, **labels})
