"""The comparison's runs: each arm's best recipe again, on paired seeds, the test part looked at once by each.

Every finished run is recorded as it comes; what an interrupted comparison has is not run again.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from data.beats import Beats
from data.split import Split, subset
from experiments import tables
from experiments.cluster import finished
from experiments.machine import Machine, resolve_threads
from experiments.results import RunResult
from finetune.controls import Control
from finetune.plan import Finals
from finetune.recipe import Recipe
from finetune.shelves import SharedShelf
from finetune.studies import Study
from finetune.train import Arm, Context, to_checkpoint, train, with_test
from finetune.trainee import evaluate
from models.checkpoint import Checkpoint, save


@dataclass(frozen=True, kw_only=True)
class Final:
    """One run of a comparison: an arm, its recipe, one seed."""

    arm: Arm | Control
    recipe: Recipe | None
    """None of a control, to which none applies."""
    seed: int
    label: str = ""
    """What messages call it, where the arm's name would not do."""


Outcome = tuple[RunResult, RunResult, Checkpoint | None]
"""On the validation part, on the test part, and the classifier where there is one to keep."""


def final_runs(study: Study, plan: Finals, best: Mapping[str, Recipe]) -> list[Final]:
    """Seed by seed, so that an interrupted study has whole pairs. The control `random-frozen` is an untrained encoder
    under the transfer arm's head, rate and balance; `scratch+` is scratch with pretraining's compute on top."""
    transfer, scratch = study.arms
    arms = [
        (transfer, best["transfer"]),
        (scratch, best["scratch"]),
        (replace(scratch, name="random-frozen"), replace(best["transfer"].untrained(), schedule="frozen")),
    ]
    plus = Final(
        arm=replace(scratch, name="scratch+"), recipe=replace(best["scratch"], epochs=plan.plus_epochs), seed=0
    )
    runs = []
    for number in range(plan.num_seeds):
        seed = study.seed + number
        runs += [Final(arm=arm, recipe=replace(recipe, epochs=plan.num_epochs), seed=seed) for arm, recipe in arms]
        runs += [replace(plus, seed=seed)] if number < plan.plus_seeds else []
    return runs


def run_finals(study: Study, plan: Finals, finals: Sequence[Final], test: Beats, deadline: float) -> None:
    """Run what the store does not hold yet; each result is recorded as it comes.

    Raises:
        KeyboardInterrupt: passed on; what had finished is in the store.
        TimeoutError: `deadline` (`time.monotonic()`) passed first; the same.
    """
    recorded = {(result.arm, result.seed, result.part) for result in study.finished("final")}
    left = [final for final in finals if (final.arm.name, final.seed, "test") not in recorded]
    if not left:
        return
    train_part = subset(study.split.train, plan.num_beats, study.seed)
    split = replace(study.split.without_test(), train=train_part)
    context, shared_split, shared_test = study.context("final"), ray.put(split), ray.put(test)
    shelf = SharedShelf.start()
    shared = shared_split, shared_test, study.machine, shelf, study.resources
    started = ((final, run_final(final, context, *shared)) for final in left)

    def stop_in_time() -> None:
        study.stop_if_interrupted()
        if time.monotonic() > deadline:
            raise TimeoutError

    done = finished(started, len(left), stop_in_time, name_of)
    for number, (final, (validation, tested, checkpoint)) in enumerate(done, start=1):
        assert checkpoint is not None
        save(model_file(study, final.arm.name, final.seed), checkpoint)
        for result in (validation, tested):
            if (result.arm, result.seed, result.part) not in recorded:  # one killed between the two has the first
                study.record(result)
        scored, seconds = tested.metrics, tables.duration(tested.cost["seconds"])
        tables.say(
            f"seed {final.seed} {final.arm.name} · test macro recall {scored['macro_recall']:.3f} · "
            f"macro F1 {scored['macro_f1']:.3f} · {seconds} · {len(left) - number} runs left"
        )


def name_of(final: Final) -> str:
    return f"seed {final.seed} {final.label or final.arm.name}"


def run_final(
    final: Final,
    context: Context,
    split: ray.ObjectRef,
    test: ray.ObjectRef,
    machine: Machine,
    shelf: SharedShelf,
    resources: Mapping[str, float],
) -> ray.ObjectRef:
    """Start a run on a worker.

    Args:
        split: a Split without its test part, in the object store.
        test: the test part's Beats, likewise.
    """
    task = _final.options(num_gpus=resources.get("gpu", 0.0))
    return task.remote(final, context, split, test, machine, shelf)


@ray.remote(num_cpus=1)
def _final(final: Final, context: Context, split: Split, test: Beats, machine: Machine, shelf: SharedShelf) -> Outcome:
    resolve_threads(machine.threads)
    if isinstance(final.arm, Control):
        return *final.arm.run(split, test, final.seed, context), None
    assert final.recipe is not None
    trained = train(final.arm, split, final.recipe, final.seed, context, machine, shelf=shelf)
    confusion, cost = evaluate(trained.model, test, final.recipe.intervals), trained.validation.cost
    tested = context.result(final.arm, final.recipe, final.seed, "test", confusion, cost)
    return trained.validation, tested, with_test(to_checkpoint(trained, split), tested)


def model_file(study: Study, arm: str, seed: int) -> Path:
    return study.folder / "models" / f"{arm}_{seed}.pt"
