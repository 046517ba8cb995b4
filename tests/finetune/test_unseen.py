"""Nothing of the test part is seen before the end: with it poisoned, all else comes out the same, to the last bit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

import models
from data.recorded import DS1, DS2, Recorded
from data.store import Writer
from data.synthetic import synthetic_arrhythmia
from experiments.results import RunResult
from finetune.recipe import recipe_of
from models.checkpoint import load, save
from models.encoder import EncoderSpec
from tests.conftest import Done
from tests.samples import checkpoint_of

BEATS = 16
"""Of each record."""
ELSEWHERE = """
from pathlib import Path
from experiments import results
import finetune.cli, finetune.compare
from finetune import plan, study, tune
cli.RUNS = finetune.compare.RUNS = Path({runs!r})
results.STORE = cli.RUNS / "results.jsonl"
study.GRACE = study.SEARCH_AT_MOST = 1000
plan.SEARCH_EPOCHS, tune.measure_speed = 2, lambda study: 1000.0
"""
COMMANDS = {
    "train": "--encoder {encoder} --batch-size 32 --out {out}",
    "compare": "--encoders {encoder} --batch-size 32 --steps 8 --seeds 1 --vary schedule=full schedule=frozen",
    "tune": "--encoder {encoder} --fixed batch_size=32 --budget 10m --trials 2 --seeds 1 --scratch-plus 0 --out {out}",
}
SHARED = "--epochs 4 --data mitdb --protocol ds1-ds2 --data-dir {beats} --threads 1 --device cpu --tracking none"


def write_beats(folder: Path, poisoned: bool) -> Path:
    """A built mitdb of both sides' records; poisoned, those of DS2 are noise under random labels."""
    folder.mkdir()
    records = sorted(DS1 + DS2)
    beats = synthetic_arrhythmia(BEATS * len(records), 0)
    with Writer(folder / "mitdb.parq") as writer:
        for number, record in enumerate(records):
            noise = torch.Generator().manual_seed(record)
            piece = beats.select(torch.arange(number * BEATS, (number + 1) * BEATS))
            piece = replace(piece, intervals=torch.randn(BEATS, 6, generator=noise).clamp(-2, 2))
            if poisoned and record in DS2:
                signal = torch.rand(piece.signal.shape, generator=noise)
                piece = replace(piece, signal=signal, target=torch.randint(0, 4, (BEATS,), generator=noise))
            writer.append(Recorded(piece, pa.table({"record": [str(record)] * BEATS})))
    return folder


@pytest.fixture(scope="module")
def told(
    tmp_path_factory: pytest.TempPathFactory, run_many: Callable[..., list[Done]]
) -> dict[bool, dict[str, dict[str, Any]]]:
    """By whether DS2 is poisoned and by command: what --json holds, and the classifier where one is written."""
    root = tmp_path_factory.mktemp("unseen")
    torch.manual_seed(0)
    encoder = models.build(EncoderSpec(name="resnet1d", options={"width": 4, "kernel": 3}))
    save(root / "encoder.pt", checkpoint_of(encoder.spec, encoder, source="a source"))
    found: dict[bool, dict[str, dict[str, Any]]] = {}
    for poisoned in (False, True):
        folder = write_beats(root / str(poisoned), poisoned)
        places = {name: {"out": folder / f"{name}.pt", "json": folder / f"{name}.json"} for name in COMMANDS}
        cases = [
            f"{name} {command} {SHARED} --json {{json}}".format(
                encoder=root / "encoder.pt", beats=folder, **places[name]
            ).split()
            for name, command in COMMANDS.items()
        ]
        for code, _, stderr in run_many("finetune", cases, ELSEWHERE.format(runs=str(folder / "runs"))):
            assert code == 0, stderr
        found[poisoned] = {name: json.loads(place["json"].read_text()) for name, place in places.items()}
        for name in ("train", "tune"):
            found[poisoned][name]["classifier"] = load(places[name]["out"])
    return found


def without_times(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: result[key] for key in ("arm", "config", "metrics", "confusion")} for result in results]


def test_the_poison_works(told: dict[bool, dict[str, dict[str, Any]]]) -> None:
    clean, poisoned = told[False], told[True]
    assert clean["train"]["test"]["confusion"] != poisoned["train"]["test"]["confusion"]
    assert clean["tune"]["rows"][-1]["confusion"] != poisoned["tune"]["rows"][-1]["confusion"]
    recalls = [[row["recall"] for row in one["compare"]["comparisons"][0]["rows"]] for one in (clean, poisoned)]
    assert recalls[0] != recalls[1]


def test_training_and_the_epoch_kept_and_thresholds_and_temperature_are_the_same(
    told: dict[bool, dict[str, dict[str, Any]]],
) -> None:
    clean, poisoned = (told[which]["train"] for which in (False, True))
    assert without_times([clean["validation"]]) == without_times([poisoned["validation"]])
    assert clean["thresholds"] == poisoned["thresholds"]
    for name in ("train", "tune"):
        one, other = (told[which][name]["classifier"] for which in (False, True))
        assert one.weights_hash == other.weights_hash and one.options["temperature"] == other.options["temperature"]


def test_a_search_finds_and_chooses_the_same(told: dict[bool, dict[str, dict[str, Any]]]) -> None:
    clean, poisoned = (told[which]["tune"] for which in (False, True))
    assert clean["best"] == poisoned["best"] and clean["chosen"] == poisoned["chosen"]
    found = [
        [recipe_of(RunResult.from_json(row["best"])) for row in one["search_results"]] for one in (clean, poisoned)
    ]
    assert found[0] == found[1] and len(found[0]) == 2
    validated = [[row["validation_macro_recall"] for row in one["rows"]] for one in (clean, poisoned)]
    assert validated[0] == validated[1]


def test_a_comparison_validates_and_chooses_the_same(told: dict[bool, dict[str, dict[str, Any]]]) -> None:
    clean, poisoned = (told[which]["compare"]["comparisons"][0] for which in (False, True))
    assert clean["chosen"] == poisoned["chosen"]
    validated = [[row["validation_macro_recall"] for row in one["rows"]] for one in (clean, poisoned)]
    assert validated[0] == validated[1] and len(validated[0]) == 6
    assert {row["name"] for row in clean["rows"]} == {"majority", "linear", "random-frozen", "scratch", "masked"}
