"""The runs of `compare`: every arm on every seed and label fraction, side by side on Ray, recorded as they come."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import ray

from data.split import Split, subset, with_fewer_labels
from experiments import results, tables
from experiments.cluster import finished
from experiments.machine import Machine
from experiments.tracking import Run
from finetune.finals import Final, name_of, run_final
from finetune.groups import Group, cell_of
from finetune.plan import validation_size, with_enough_steps
from finetune.recipe import Recipe
from finetune.shelves import SharedShelf
from finetune.train import Arm, Context


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Arms × seeds × label fractions. Seed k is the same validation cut, label draw, head and batches for every arm."""

    groups: Sequence[Group]
    seeds: Sequence[int]
    fractions: Sequence[float]
    recipe: Recipe
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
        return len(self.seeds) * len(self.fractions) * sum(len(group.arms) for group in self.groups)

    def done(self) -> list[results.RunResult]:
        """What the store already holds of this comparison; other seeds, fractions and checkpoints too."""
        name = self.context.labels["comparison"]
        return [result for result in results.read(results.STORE) if result.config.get("comparison") == name]


def run_grid(grid: Grid, tracked: Run, interrupted: Callable[[], bool]) -> None:
    """Run what the store does not hold yet.

    Raises:
        KeyboardInterrupt: Ctrl-C; what had finished is in the store.
    """

    def stop_if_interrupted() -> None:
        if interrupted():
            raise KeyboardInterrupt

    for final, (validation, tested, _) in finished(_start(grid), 2 * grid.num_workers, stop_if_interrupted, name_of):
        for result in (validation, tested):
            results.append(results.STORE, result)
        pretrained = f"{tested.config['task']} {tested.config['pretraining_seed']}" if tested.encoder else tested.arm
        name = f"{pretrained} {tested.config['arch']} labels {tested.config['label_fraction']} seed {final.seed}"
        with tracked.child(name, tested.config, {"arm": tested.arm, "badge": tested.badge}) as run:
            run.log({f"test_{metric}": value for metric, value in tested.metrics.items()} | tested.cost)
        tables.say(
            f"{name} · test macro recall {tested.metrics['macro_recall']:.3f} · "
            f"macro F1 {tested.metrics['macro_f1']:.3f} · {tables.duration(tested.cost['seconds'])}"
        )


def _start(grid: Grid) -> Iterator[tuple[Final, ray.ObjectRef]]:
    """Starts the missing runs, seed by seed, so that an interrupted comparison has whole pairs.

    A split is in the object store only as long as its runs need it.
    """
    done = {cell_of(result) for result in grid.done() if result.part == "test"}
    pairs = [(group, arm) for group in grid.groups for arm in group.arms]
    test = None
    shelf = SharedShelf.start()
    for seed in grid.seeds:
        whole = grid.load_split(seed)
        test = ray.put(whole.load_test()) if test is None else test
        for fraction in grid.fractions:
            split = fewer(whole, fraction, seed)
            recipe = with_enough_steps(grid.recipe, len(split.train), grid.num_steps)
            shared = ray.put(split.without_test())
            for group, arm in pairs:
                if (arm.name, group.architecture, arm.encoder_hash, fraction, seed) in done:
                    continue
                context = _labelled(grid.context, arm, fraction, seed, len(split.train))
                final = Final(arm=arm, recipe=group.adapt(recipe), seed=seed)
                yield final, run_final(final, context, shared, test, grid.machine, shelf, grid.resources)


def fewer(split: Split, fraction: float, seed: int) -> Split:
    """The share of the training beats, and no more of the validation beats than go with it."""
    split = with_fewer_labels(split, fraction, seed)
    num_beats = validation_size(len(split.train), len(split.validation))
    if num_beats == len(split.validation):
        return split
    return replace(split, validation=subset(split.validation, num_beats, seed))


def _labelled(context: Context, arm: Arm, fraction: float, seed: int, num_beats: int) -> Context:
    labels = {"label_fraction": fraction, "label_draw": seed, "train_beats": num_beats}
    if arm.checkpoint is not None:
        labels |= {"task": arm.checkpoint.task, "pretraining_seed": arm.checkpoint.seed}
    return replace(context, labels={**context.labels, **labels})
