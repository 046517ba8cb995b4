"""What `python -m models` prints: rows as data, and the tables made from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from torch import Tensor

import models
from experiments.machine import Machine, autocast
from experiments.tables import console, say
from models.cost import multiply_adds
from models.encoder import Encoder
from models.params import count_parameters
from models.scheme import Block, millions, scheme, sizes

if TYPE_CHECKING:
    from models.encoder import Dimension

Row = dict[str, Any]
FAMILIES = {"convolution": "CNN", "recurrent": "recurrent", "attention": "transformer"}
"""What an encoder of a library is called by the kinds of its stages."""
BATCH_SIZE = 256
MOST_MULTIPLY_ADDS = 2e10
"""Of a measured training step; a batch that needs more is halved until it does not."""
SECONDS = 0.4
"""Of each of the four measurements."""


def describe_all() -> list[Row]:
    """A row for each architecture, own ones first; one that cannot be built here has its reason and nothing else."""
    return [_describe_or_say_why(name) for name in (*models.ENCODERS, *models.LIBRARY_MODELS)]


def _describe_or_say_why(name: str) -> Row:
    try:
        encoder = models.build(models.parse(name))
        return describe(encoder, scheme(encoder))
    except Exception as error:  # whatever importing and running another library may raise
        return {
            "name": name,
            "origin": models.origin(name),
            "reason": " ".join(f"{type(error).__name__}: {error}".split()),
        }


def describe(encoder: Encoder, blocks: Sequence[Block]) -> Row:
    """Everything but its speed; multiply-adds are those of one beat."""
    name, options = encoder.spec.name, encoder.spec.resolve(encoder.dimensions)
    x = beats(encoder, 1)
    forward = multiply_adds(encoder, x)
    stages = [_describe_stage(block, forward) for block in blocks[1:-1]]
    return {
        "name": encoder.spec.label,
        "origin": models.origin(name),
        "family": models.ENCODERS[name].family if name in models.ENCODERS else _family(encoder, blocks),
        "parameters": count_parameters(encoder),
        "tokens": encoder.num_tokens,
        "dim": encoder.dim,
        "multiply_adds": forward,
        "multiply_adds_training": multiply_adds(encoder, x, backward=True),
        "stages": stages,
        "options": [_describe_option(option, options[option], known) for option, known in encoder.dimensions.items()],
    }


def beats(encoder: Encoder, batch_size: int) -> Tensor:
    device = next(encoder.parameters()).device
    return torch.rand(batch_size, encoder.spec.num_leads, encoder.spec.num_samples, device=device)


def _describe_stage(block: Block, forward: int) -> Row:
    return {
        "name": block.name,
        "kind": block.kind,
        "layers": [layer.strip() for layer in block.layers],
        "shape": list(block.shape),
        "parameters": block.parameters,
        "multiply_adds": block.multiply_adds,
        "share": block.multiply_adds / forward if forward else 0.0,
    }


def _describe_option(name: str, value: object, known: Dimension) -> Row:
    return {"name": name, "value": value, "default": known.default, "searched": list(known.values)}


def _family(encoder: Encoder, blocks: Sequence[Block]) -> str:
    """By the kinds that do at least a tenth of the work."""
    work = dict.fromkeys(FAMILIES, 0)
    for block in blocks:
        if block.kind in work:
            work[block.kind] += block.multiply_adds
    named = [FAMILIES[kind] for kind, done in work.items() if done >= 0.1 * sum(work.values())]
    return " and ".join(named) + (" on an image" if "image" in encoder.dimensions else "")


def measure(encoder: Encoder, machine: Machine) -> Row:
    """Beats per second of this machine; a training step is forward and backward, without the optimizer's step."""
    encoder.to(machine.device)
    batch_size = BATCH_SIZE
    step = multiply_adds(encoder, beats(encoder, 1), backward=True)
    while batch_size > 1 and batch_size * step > MOST_MULTIPLY_ADDS:
        batch_size //= 2
    x = beats(encoder, batch_size)
    speeds = {
        precision: {
            "forward": _beats_per_s(x, lambda precision=precision: _forward(encoder, x, precision)),
            "training": _beats_per_s(x, lambda precision=precision: _train(encoder, x, precision)),
        }
        for precision in ("fp32", "bf16")
    }
    return {"batch_size": batch_size, "device": machine.device, "threads": machine.threads, "beats_per_s": speeds}


def _forward(encoder: Encoder, x: Tensor, precision: str) -> None:
    encoder.eval()
    with torch.no_grad(), autocast(x.device.type, precision):
        encoder(x)


def _train(encoder: Encoder, x: Tensor, precision: str) -> None:
    encoder.train()
    with autocast(x.device.type, precision):
        features = encoder(x)
    features.float().square().mean().backward()
    encoder.zero_grad()


def _beats_per_s(x: Tensor, step: Callable[[], None]) -> float:
    step()  # the first one also warms up
    started, steps, elapsed = _now(x), 0, 0.0
    while not steps or elapsed < SECONDS:
        step()
        steps, elapsed = steps + 1, _now(x) - started
    return steps * len(x) / elapsed


def _now(x: Tensor) -> float:
    """When everything asked for so far is done."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()


def print_list(rows: Sequence[Row]) -> None:
    """Our own architectures, then those of libraries, then what cannot be built here."""
    built = [row for row in rows if "reason" not in row]
    own = [row for row in built if row["origin"] == "own"]
    _print_architectures("our own architectures", own)
    others = [row for row in built if row["origin"] != "own"]
    _print_architectures("of libraries (others of theirs can be named too)", others)
    for row in rows:
        if "reason" in row:
            say(f"{row['name']} cannot be built here: {row['reason']}")
    say("multiply-adds: of one beat, forward. python -m models show NAME: stages, searched values, speed.")


def _print_architectures(title: str, rows: Sequence[Row]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("name", "origin", "family", "parameters", "tokens × dim", "stages", "multiply-adds", "options"):
        number = column in ("parameters", "tokens × dim", "stages", "multiply-adds")
        table.add_column(column, justify="right" if number else "left", no_wrap=number or column == "name")
    for row in rows:
        options = " ".join(f"{option['name']}={option['default']}" for option in row["options"])
        table.add_row(
            *(row["name"], row["origin"], row["family"], f"{row['parameters']:,}", sizes((row["tokens"], row["dim"]))),
            *(str(len(row["stages"])), millions(row["multiply_adds"]), options or "–"),
        )
    console().print(table)
    console().print()


def print_one(row: Row) -> None:
    origin = "our own" if row["origin"] == "own" else f"of {row['origin']}"
    say(f"{row['name']}: {row['family']}, {origin}; {sizes((row['tokens'], row['dim']))} (tokens × dim)")
    spent, training = row["multiply_adds"], row["multiply_adds_training"]
    say(f"{millions(spent)} multiply-adds a beat forward, {millions(training)} forward and backward")
    console().print(_stage_table(row))
    if row["options"]:
        console().print(_option_table(row["options"]))
    speed = row["speed"]
    threads = f"{speed['threads']} thread{'s' if speed['threads'] > 1 else ''}"
    say(f"Beats/s on {speed['device']}, {threads}, batch {speed['batch_size']}; training: forward and backward")
    console().print(_speed_table(speed["beats_per_s"]))


def _stage_table(row: Row) -> Table:
    table = Table("stage", "kind", title="Stages", title_style="bold")
    for column in ("output", "parameters", "multiply-adds", "share"):
        table.add_column(column, justify="right")
    for stage in row["stages"]:
        counts = (f"{stage['parameters']:,}", millions(stage["multiply_adds"]), f"{stage['share']:.1%}")
        table.add_row(stage["name"], stage["kind"], sizes(stage["shape"]), *counts)
    between = row["multiply_adds"] - sum(stage["multiply_adds"] for stage in row["stages"])
    if between:
        table.add_row("between them", "", "", "", millions(between), f"{between / row['multiply_adds']:.1%}")
    table.add_section()
    total = (f"{row['parameters']:,}", millions(row["multiply_adds"]), "100.0%")
    table.add_row("all", "", str(row["dim"]), *total)
    return table


def _option_table(options: Sequence[Row]) -> Table:
    table = Table("option", "default", "searched", title="Options", title_style="bold")
    changed = any(option["value"] != option["default"] for option in options)
    if changed:
        table.add_column("here")
    for option in options:
        here = [str(option["value"])] if changed else []
        table.add_row(option["name"], str(option["default"]), ", ".join(map(str, option["searched"])), *here)
    return table


def _speed_table(speeds: Mapping[str, Row]) -> Table:
    table = Table("")
    for precision in speeds:
        table.add_column(precision, justify="right")
    for run in ("forward", "training"):
        table.add_row(run, *(f"{speed[run]:,.0f}" for speed in speeds.values()))
    return table
