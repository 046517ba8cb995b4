"""A search of 16 trials over schedules, against a plain Ray Tune script of the same trials; and what Ray costs.

    python -m tests.benchmarks.search_speed [--beats N] [--precision bf16|fp32] [--data-dir FOLDER]

Both sides train the 1D CNN on the same beats of the arrhythmia file, for 20 epochs and without early stopping, two
one-thread trials side by side. The plain script takes the tensors from the object store, computes in fp32, keeps no
activations and starts an actor for each trial. Then searches of 4 and of 20 trials of hardly any training show what a
search and a trial cost besides. Not a test: it asserts nothing.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ray import tune

import data
import models
from data.split import Split, subset
from experiments import cluster
from experiments.machine import Machine, resolve_precision
from experiments.metrics import macro_recall
from experiments.results import RunResult
from experiments.space import Dimension, Space
from finetune.plan import Search
from finetune.recipe import Recipe
from finetune.train import Arm, Context, train
from finetune.trainee import Epoch
from models.encoder import EncoderSpec
from tests.samples import checkpoint_of, study_of

NUM_EPOCHS, NUM_WORKERS = 20, 2
TINY_BEATS = 512
THAWING = ("top", "lp_ft", "gradual", "full")
SPACE = Space(
    name="schedules",
    about="4 learning rates of a frozen encoder, 3 ratios of each other schedule",
    dimensions=(
        Dimension(name="schedule", choices=("frozen", *THAWING)),
        Dimension(name="lr", choices=(1e-3, 3e-3, 6e-3, 1e-2), when={"schedule": ("frozen",)}),
        Dimension(name="ratio", choices=(0.1, 0.3, 1.0), when={"schedule": THAWING}),
    ),
)
TINY = Space(name="tiny", about="", dimensions=(Dimension(name="lr", low=1e-3, high=1e-2, scale="log"),))


def pretrained() -> Arm:
    """Weights as a checkpoint has them; what they are does not matter here."""
    torch.manual_seed(0)
    spec = EncoderSpec(name="resnet1d")
    return Arm(name="transfer", spec=spec, checkpoint=checkpoint_of(spec, models.build(spec)), origin="untrained")


def ours(arm: Arm, split: Split, space: Space, machine: Machine, plan: Search) -> tuple[float, list[RunResult]]:
    """Seconds of a search, and its results."""
    from finetune.tune import search

    with tempfile.TemporaryDirectory() as folder:
        study = study_of(
            arms=(arm,),
            split=split,
            folder=Path(folder),
            space=space,
            machine=machine,
            searcher="grid" if space is SPACE else "random",
            scheduler="fifo",
            num_workers=NUM_WORKERS,
        )
        start = time.perf_counter()
        search(study, plan, 1e6)
        return time.perf_counter() - start, study.searched(arm)


def plain(arm: Arm, split: Split, context: Context) -> tuple[float, dict[str, Any]]:
    """What one would write with Ray Tune's documentation at hand: seconds, and the best configuration."""
    start = time.perf_counter()
    found = tune.Tuner(
        tune.with_parameters(plain_trial, arm=arm, split=split, context=context),
        param_space={"recipe": tune.grid_search(SPACE.grid(1, arm.facts))},
        tune_config=tune.TuneConfig(metric="macro_recall", mode="max", max_concurrent_trials=NUM_WORKERS),
        run_config=tune.RunConfig(storage_path=tempfile.mkdtemp(), verbose=0),
    ).fit()
    best = found.get_best_result().config or {}
    return time.perf_counter() - start, dict(best["recipe"])


def plain_trial(config: dict[str, Any], arm: Arm, split: Split, context: Context) -> None:
    torch.set_num_threads(1)
    recipe = replace(Recipe(epochs=NUM_EPOCHS), **config["recipe"])

    def report(epoch: Epoch) -> None:
        tune.report({"macro_recall": float(macro_recall(epoch.kept_confusion))})

    train(arm, split, recipe, 0, context, Machine(), on_epoch=report, shelf=None)


def compare_searches(split: Split, context: Context, machine: Machine) -> None:
    arm, num_trials = pretrained(), len(SPACE.grid(1, {}))
    plan = Search(num_trials=num_trials, num_epochs=NUM_EPOCHS, num_beats=len(split.train))
    plain_s, plain_best = plain(arm, split, context)
    ours_s, results = ours(arm, split, SPACE, machine, plan)
    best = max(results, key=lambda result: result.metrics["macro_recall"])
    winner = SPACE.params(best.config, arm.facts)
    print(f"{num_trials} trials of {NUM_EPOCHS} epochs of {len(split.train):,} beats, ours in {machine.precision}")
    print(f"plain Ray Tune {plain_s:.0f} s, best {plain_best}")
    print(f"ours {ours_s:.0f} s, best {winner}: {plain_s / ours_s:.2f} x as fast")


def show_overhead(split: Split, machine: Machine, started_s: float) -> None:
    """A line through two searches: what does not depend on the number of trials, and what a trial adds."""
    arm, spent = pretrained(), {}
    for num_trials in (4, 20):
        plan = Search(num_trials=num_trials, num_epochs=2, num_beats=TINY_BEATS)
        seconds, results = ours(arm, split, TINY, machine, plan)
        trained_s = sum(result.cost["seconds"] for result in results) / NUM_WORKERS
        spent[num_trials] = seconds, trained_s
        print(f"{num_trials} trials: {seconds:.1f} s, in trials {trained_s:.1f} s")
    (few_s, few_trained), (many_s, many_trained) = spent.values()
    a_trial = ((many_s - many_trained) - (few_s - few_trained)) / 16
    fixed = few_s - few_trained - 4 * a_trial
    print(f"beside the trials: {started_s:.1f} s to start Ray, {fixed:.1f} s a search, {a_trial:.2f} s a trial")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beats", type=int, default=8_000)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--only", choices=("search", "overhead"), default=None)
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("HEART_DATA_DIR", "data")))
    flags = parser.parse_args()
    split = data.load_split("arrhythmia", "beat-random", flags.data_dir, 0)
    fewer = subset(split.train, flags.beats, 0), subset(split.validation, flags.beats // 4, 0)
    split = replace(split.without_test(), train=fewer[0], validation=fewer[1])
    context = Context(dataset="arrhythmia", protocol=split.protocol, badge=split.badge, classes=split.train.classes)
    machine = Machine(precision=resolve_precision(flags.precision, "cpu"))
    start = time.perf_counter()
    with cluster.started(NUM_WORKERS):
        started_s = time.perf_counter() - start
        if flags.only != "search":
            show_overhead(split, machine, started_s)
        if flags.only != "overhead":
            compare_searches(split, context, machine)


if __name__ == "__main__":
    main()
