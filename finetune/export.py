"""One `export` from start to end: trace, check against the original on beats, time, write, describe, register."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor
from torch.nn import functional

import data
from data.beats import Beats, concatenate, measure_length, scale_and_pad
from data.synthetic import synthetic_arrhythmia
from experiments import tables
from experiments.files import write_bytes
from experiments.tracking import Run as TrackedRun
from experiments.tracking import Tracker
from finetune import portable
from finetune.card import card
from finetune.intervals import beside
from finetune.model import Model
from finetune.portable import FORMATS, Arrays, Format, Portable, Run

if TYPE_CHECKING:
    from finetune.model_commands import Export

TOLERANCE = 1e-4
"""By which a probability may differ from the original's."""
NUM_CHECKED = 10_000
"""Beats, where there are as many."""
BATCH_SIZES = (1, 1024)
ROUNDS, ROUND_S = 5, 0.1
"""Of the timing: rounds of each runtime in turn, and how long one lasts at least."""
GAINS, OFFSETS = (0.2, 5.0), (-2.0, 2.0)
"""Between which the amplitudes of the beats lie that are to be scaled."""


class Sample(NamedTuple):
    """Beats to check a file on."""

    beats: Beats
    said: str
    """What they are."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """How far a file's answers are from the original's."""

    beats: str
    num_beats: int
    prepared: float
    """Largest difference of a probability, of beats as `data` makes them."""
    unscaled: float | None
    """The same of beats of other amplitudes; None where scaling is left to the caller."""
    num_answers: int
    """Beats whose most probable class differs."""
    num_alarms: int | None
    """Alarms that differ; None without thresholds."""

    @property
    def worst(self) -> float:
        return max(self.prepared, self.unscaled or 0.0)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Beats a second of the file and of the classifier in torch, by medians of rounds in turn."""

    batch_size: int
    exported: float
    torch: float


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What `export` has made."""

    file: Path
    format: str
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, str]
    num_bytes: int
    sha256: str
    opset: int | None
    threads: int
    check: Check
    speed: list[Speed]
    facts: Mapping[str, Any]

    @property
    def card(self) -> Path:
        return self.file.with_name(f"{self.file.name}.md")


def run(flags: Export) -> None:
    out, model = flags.out_file, flags.load()
    tracker = Tracker.open(flags.tracking, "export") if flags.register else None
    sample = beats_to_check(model, flags.data, flags.data_folder)
    exported = write(model, flags.to, out, sample, scaling=flags.scaling == "inside")
    write_bytes(exported.card, card(exported, Path(flags.model)).encode())
    version = register(exported, tracker, flags.register) if tracker and flags.register else None
    show(exported, model)
    if version is not None:
        tables.say(f"registered: {flags.register} version {version} in {flags.tracking}")
    content = asdict(exported) | {"file": str(out), "card": str(exported.card)}
    flags.write(content | {"registered": version and {"name": flags.register, "version": version}})


def beats_to_check(model: Model, name: str | None, folder: Path) -> Sample:
    """Test beats of the named data set, else of the one that the model was made from, and training beats where those
    are too few; synthetic beats where the model's own cannot be read.

    Raises:
        ValueError: an unknown data set, missing files, or beats that the model does not take.
    """
    own = model.made_from
    try:
        protocol = own["protocol"] if name in (None, own["data"]) and own["protocol"] != "unknown" else None
        parts = data.parts(name or own["data"], protocol, folder)
        beats, said = parts.load_test(), f"test beats of {name or own['data']}"
        if len(beats) < NUM_CHECKED:
            beats, said = concatenate([beats, parts.load_train()]), f"test and training beats of {name or own['data']}"
    except ValueError as error:
        if name is not None:
            raise
        tables.say(f"the model's own beats cannot be read ({error}); checking on synthetic beats")
        beats, said = stand_ins(model), "synthetic beats"
    model.check(beats)
    if len(beats) > NUM_CHECKED:
        drawn = torch.randperm(len(beats), generator=torch.Generator().manual_seed(0))[:NUM_CHECKED]
        beats = beats.select(drawn.sort().values)
    return Sample(beats, said)


def stand_ins(model: Model) -> Beats:
    """Synthetic beats of the model's number of leads and samples; every lead is the same."""
    beats = synthetic_arrhythmia(NUM_CHECKED, 0)
    signal = functional.interpolate(beats.signal, model.num_samples).repeat(1, model.num_leads, 1)
    signal = prepared(signal)
    return replace(beats, signal=signal, valid_length=measure_length(signal), rate_hz=model.rate_hz)


def prepared(raw: Tensor) -> Tensor:
    """What `data` makes of beats of any amplitude, (num_beats, num_leads, num_samples): each lead by itself."""
    length = measure_length(raw).numpy()
    return torch.from_numpy(np.stack([scale_and_pad(raw[:, lead].numpy(), length) for lead in range(raw.shape[1])], 1))


def unscaled(beats: Beats) -> Tensor:
    """The beats at other amplitudes and offsets, each its own, zero after their ends as before."""
    random = torch.Generator().manual_seed(0)
    gain, offset = (
        low + (high - low) * torch.rand(len(beats), 1, 1, generator=random) for low, high in (GAINS, OFFSETS)
    )
    inside = torch.arange(beats.signal.shape[2]) < beats.valid_length[:, None, None]
    return (gain * beats.signal + offset).where(inside, 0.0)


def write(model: Model, to: str, out: Path, sample: Sample, scaling: bool = True) -> Exported:
    """Make the file, and write it whole if it answers as the original does.

    Raises:
        ValueError: the classifier cannot be traced or written in this format, or the file answers otherwise; one line,
            and nothing is written.
    """
    kind, threads = FORMATS[to], torch.get_num_threads()
    whole, about = Portable.of(model, scaling), portable.facts(model, scaling)
    content = kind.write(portable.trace(whole, model), model, about)
    names = list(portable.outputs(model))
    exported = kind.open(content, names, threads)
    found = check(model, exported, sample, scaling)
    _accept(found, model, sample.beats, scaling)
    speed = measure_speed(exported, portable.run_module(whole, names), model, sample.beats)
    write_bytes(out, content)
    return Exported(
        file=out,
        format=to,
        inputs=portable.inputs(model),
        outputs=portable.outputs(model),
        num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        opset=portable.OPSET if to == "onnx" else None,
        threads=threads,
        check=found,
        speed=speed,
        facts=about,
    )


def check(model: Model, exported: Run, sample: Sample, scaling: bool) -> Check:
    """Ask the file and the original about the same beats, one alone and then in batches of 1,024."""
    beats = sample.beats
    wanted, answers = model.probabilities(beats), _answers(exported, beats, model)
    off = _distance(answers["probabilities"], wanted)
    off_unscaled = None
    if scaling:
        raw = replace(beats, signal=unscaled(beats))
        by_hand = replace(beats, signal=prepared(raw.signal))
        off_unscaled = _distance(_answers(exported, raw, model)["probabilities"], model.probabilities(by_hand))
    num_alarms = None
    if model.thresholds is not None:
        limits = [np.inf if value is None else value for value in model.thresholds.values]
        num_alarms = int((answers["alarms"] != (wanted >= limits)).sum())
    return Check(
        beats=sample.said,
        num_beats=len(beats),
        prepared=off,
        unscaled=off_unscaled,
        num_answers=int((answers["probabilities"].argmax(1) != wanted.argmax(1)).sum()),
        num_alarms=num_alarms,
    )


def _distance(found: NDArray[np.floating], wanted: NDArray[np.floating]) -> float:
    """The largest, infinite where one of the two is not a number."""
    return float(np.nan_to_num(np.abs(found - wanted), nan=np.inf).max(initial=0.0))


def _answers(exported: Run, beats: Beats, model: Model) -> Arrays:
    """Of all beats."""
    found = [exported(batch) for batch in _batches(beats, model)]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _batches(beats: Beats, model: Model) -> Iterator[Arrays]:
    """One beat, then 1,024 at a time."""
    ratios = beside(beats, model.intervals)
    for start, end in pairwise((0, *range(1, len(beats), BATCH_SIZES[-1]), len(beats))):
        yield portable.batch_of(beats.signal[start:end], None if ratios is None else ratios[start:end])


def _accept(found: Check, model: Model, beats: Beats, scaling: bool) -> None:
    if found.worst <= TOLERANCE:
        return
    reason = ""
    num_other = int(((beats.signal.amax(2) != 1).any(1)).sum())
    if scaling and num_other:
        reason = f" ({num_other:,} of them do not reach 1, and the file scales them: --scaling outside leaves it out)"
    raise ValueError(
        f"{model.origin}: a probability of the exported file differs by {found.worst:.2g} from the original's on "
        f"{found.num_beats:,} {found.beats}{reason}; more than {TOLERANCE:g} is not written"
    )


def measure_speed(exported: Run, original: Run, model: Model, beats: Beats) -> list[Speed]:
    """On as many threads, by the same batches."""
    ratios = beside(beats, model.intervals)
    measured = []
    for size in BATCH_SIZES:
        rows = torch.arange(size) % len(beats)
        batch = portable.batch_of(beats.signal[rows], None if ratios is None else ratios[rows])
        rounds = [[_beats_a_second(run, batch, size) for run in (exported, original)] for _ in range(ROUNDS)]
        of_file, of_torch = (median(values) for values in zip(*rounds, strict=True))
        measured.append(Speed(batch_size=size, exported=of_file, torch=of_torch))
    return measured


def _beats_a_second(run: Run, batch: Arrays, size: int) -> float:
    run(batch)
    start, calls = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < ROUND_S or not calls:
        run(batch)
        calls += 1
    return size * calls / elapsed


def register(exported: Exported, tracker: Tracker, name: str) -> str:
    """Keep the file in MLflow as a model with a signature; its version.

    Raises:
        ValueError: MLflow does not take it; the file stays.
    """
    told = ("data", "protocol", "arch", "head", "temperature", "commit", "weights_sha256")
    params, tags = {key: exported.facts[key] for key in told}, {"badge": str(exported.facts["badge"])}
    try:
        with tracker.run(f"export {exported.file.name}", params, tags) as tracked:
            return _registered(exported, tracked, name)
    except ValueError as error:
        raise ValueError(f"{error} ({exported.file} is written, and not registered)") from None


def _registered(exported: Exported, tracked: TrackedRun, name: str) -> str:
    measured = {f"beats_per_s_batch_{speed.batch_size}": speed.exported for speed in exported.speed}
    tracked.log({"max_difference": exported.check.worst, **measured})
    tracked.artifact_file(exported.card)
    num_classes = len(exported.facts["classes"])
    given = {key: ("float32", (-1, *shape)) for key, shape in exported.inputs.items()}
    answered = {key: (dtype, (-1, num_classes)) for key, dtype in exported.outputs.items()}
    return tracked.register(name, exported.file, given, answered)


def show(exported: Exported, model: Model) -> None:
    kind, found = FORMATS[exported.format], exported.check
    table = Table(title=f"{exported.file.name}: {model.checkpoint.task}", title_style="bold", show_header=False)
    table.add_row("answers", _agreement(found, len(model.classes)))
    shapes = [f"{name} (batch, {', '.join(map(str, shape))})" for name, shape in exported.inputs.items()]
    table.add_row("input", ", ".join(shapes))
    table.add_row("output", f"{', '.join(exported.outputs)}, each (batch, {len(model.classes)})")
    form = f"ONNX opset {exported.opset}" if exported.opset else f"torch.export by torch {torch.__version__}"
    table.add_row("file", f"{form}, {exported.num_bytes:,} bytes")
    table.add_row("sha256", exported.sha256)
    table.add_row("leakage", exported.facts["badge"] or "not recorded")
    table.add_row("written", f"{exported.file}, {exported.card.name}")
    tables.console().print(table, _speed_table(exported, kind))


def _agreement(found: Check, num_classes: int) -> str:
    lines = [
        f"{found.num_beats:,} {found.beats}: probabilities within {found.prepared:.1e} of the original's "
        f"({TOLERANCE:g} allowed)"
    ]
    if found.unscaled is not None:
        lines.append(f"the same at other amplitudes, scaled inside: within {found.unscaled:.1e}")
    differing = f"{found.num_answers:,} of {found.num_beats:,} answers differ"
    if found.num_alarms is not None:
        differing += f", {found.num_alarms:,} of {num_classes * found.num_beats:,} alarms"
    return "\n".join([*lines, differing])


def _speed_table(exported: Exported, kind: Format) -> Table:
    threads = f"{exported.threads} thread" + "s" * (exported.threads != 1)
    table = Table(title=f"Beats a second on the CPU, {threads}", title_style="bold")
    for header in ("batch", kind.runtime, "torch", "ratio"):
        table.add_column(header, justify="right")
    for speed in exported.speed:
        ratio = f"{speed.exported / speed.torch:.2f}"
        table.add_row(f"{speed.batch_size:,}", f"{speed.exported:,.0f}", f"{speed.torch:,.0f}", ratio)
    return table
