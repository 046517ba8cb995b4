"""python -m data explore NAME: what is in a data set, class by class, as tables and pictures.

Imports nothing heavy at module level: `data.cli` lists the command here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

import data
from experiments import cli

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from data.beats import Beats

MAX_CLASSES = 20
MIN_LASTING = 0.1
"""Of a class's beats: where fewer last, their mean is noise."""
EXPLANATION = """
Heart rate: of the beats that do not fill the window; one that does may be cut, which leaves an upper bound alone.
Before/last: log ratio of the RR interval before the beat to the mean of the last ten; below 0 the beat came early."""


@dataclass(frozen=True, kw_only=True)
class Explore(cli.DataFlags, cli.Report):
    """Say and draw what is in a data set: classes, lengths, heart rates, duplicates, shapes, a map."""

    name: Annotated[str, tyro.conf.Positional]
    """Data set."""
    out: Path | None = None
    """Folder of the pictures (default: experiments/explore/NAME)."""
    seed: int = 0
    """Seed of the examples and of the map."""

    def run(self) -> None:
        folder = self.out or cli.ROOT / "experiments" / "explore" / data.short_name(self.name)
        cli.writable(folder / "map.png")
        parts = labelled(load_parts(self.name, self.data_folder))
        shown = largest_classes(parts)
        summary = describe(parts, shown)
        print_summary(self.name, summary)
        from data.pictures import Subject, write_pictures
        from experiments.tables import say

        say("drawing; the map of beats takes a while …")
        pictures = write_pictures(Subject(self.name, shown, summary["num_classes"], self.seed), folder)
        say(f"{len(pictures)} pictures in {folder}")
        self.write({"name": self.name, "seed": self.seed, **summary, "pictures": [str(path) for path in pictures]})


def load_parts(name: str, data_dir: Path) -> dict[str, Beats]:
    """Every part of a data set, the training part first."""
    return {part: data.load(name, part, data_dir) for part in data.PARTS}


def labelled(parts: dict[str, Beats]) -> dict[str, Beats]:
    """The beats as they are, or as one class, `all`, where a part has no labels."""
    import torch

    if all(beats.target is not None for beats in parts.values()):
        return parts
    return {
        part: replace(beats, target=torch.zeros(len(beats), dtype=torch.int64), classes=("all",))
        for part, beats in parts.items()
    }


def largest_classes(parts: dict[str, Beats]) -> dict[str, Beats]:
    """The beats of the `MAX_CLASSES` classes that have most of them in all parts together."""
    import torch

    classes = next(iter(parts.values())).classes
    if len(classes) <= MAX_CLASSES:
        return parts
    counts = torch.bincount(torch.cat([beats.labels for beats in parts.values()]), minlength=len(classes))
    largest = counts.argsort(descending=True, stable=True)[:MAX_CLASSES].sort().values
    place = torch.full((len(classes),), -1)
    place[largest] = torch.arange(MAX_CLASSES)
    names = tuple(classes[label] for label in largest.tolist())
    kept = {part: beats.select(place[beats.labels] >= 0) for part, beats in parts.items()}
    return {part: replace(beats, target=place[beats.labels], classes=names) for part, beats in kept.items()}


def by_class(beats: Beats) -> dict[str, Beats]:
    return {name: beats.select(beats.labels == label) for label, name in enumerate(beats.classes)}


def heart_rates(beats: Beats) -> NDArray[np.floating]:
    """Heart rate in bpm of each beat that ends within the window, from its length of 1.2 × the median RR interval.

    A beat that fills the window may have been cut: the rate that its length gives is only an upper bound.
    """
    from data.segment import BEAT_PER_RR

    length = beats.valid_length.numpy()
    return 60 * BEAT_PER_RR * beats.rate_hz / length[(length > 0) & (length < beats.signal.shape[2])]


def mean_and_spread(beats: Beats) -> NDArray[np.floating]:
    """Mean, 10th and 90th percentile of the first lead at each sample, over the beats that last until there.

    Returns:
        float64 (3, num_samples); NaN where less than a tenth of the beats last.
    """
    import numpy as np

    signal, length = beats.signal[:, 0].numpy(), beats.valid_length.numpy()
    curves = np.full((3, signal.shape[1]), np.nan)
    for sample in range(length.max(initial=0)):
        values = signal[length > sample, sample]
        if len(values) >= MIN_LASTING * len(signal):
            curves[:, sample] = values.mean(dtype=np.float64), *np.quantile(values, (0.1, 0.9))
    return curves


def describe(parts: Mapping[str, Beats], shown: Mapping[str, Beats]) -> dict[str, Any]:
    """What the tables print: each part, and in it each class to show."""
    names = list(parts)
    described = [
        _describe_part(part, beats, {other: parts[other] for other in names[:number]})
        | {"classes": [_describe_class(name, some, len(beats)) for name, some in by_class(shown[part]).items()]}
        for number, (part, beats) in enumerate(parts.items())
    ]
    first, kept = next(iter(parts.values())), next(iter(shown.values()))
    return {"parts": described, "num_classes": first.num_classes, "num_classes_shown": kept.num_classes}


def _describe_part(part: str, beats: Beats, earlier: Mapping[str, Beats]) -> dict[str, Any]:
    from data.duplicates import repeated

    return {
        "part": part,
        "source": beats.source,
        "fingerprint": beats.fingerprint,
        "beats": len(beats),
        "patients": None if beats.group is None else len(beats.group[beats.group >= 0].unique()),
        "num_leads": beats.signal.shape[1],
        "num_samples": beats.signal.shape[2],
        "rate_hz": beats.rate_hz,
        "missing_values": int(beats.signal.isnan().sum()),
        "dropped": dict(beats.dropped),
        "remarks": list(beats.remarks),
        "repeated": int(repeated(beats).sum()),
        "also_in": {other: int(repeated(beats, others).sum()) for other, others in earlier.items()},
    }


def _describe_class(name: str, beats: Beats, num_of_part: int) -> dict[str, Any]:
    length_s = beats.valid_length.numpy() / beats.rate_hz
    rates = heart_rates(beats)
    return {
        "class": name,
        "beats": len(beats),
        "share": len(beats) / num_of_part,
        "length_s": _quantiles(length_s, shortest=0.0, median=0.5, longest=1.0),
        "fill_the_window": int((beats.valid_length == beats.signal.shape[2]).sum()),
        "heart_rate_bpm": _quantiles(rates, tenth_percentile=0.1, median=0.5, ninetieth_percentile=0.9),
        "median_log_before_over_last": _median_prematurity(beats),
    }


def _quantiles(values: NDArray[np.floating], **shares: float) -> dict[str, float] | None:
    import numpy as np

    return {name: float(np.quantile(values, share)) for name, share in shares.items()} if len(values) else None


def _median_prematurity(beats: Beats) -> float | None:
    import numpy as np

    from data.intervals import RATIOS

    if beats.intervals is None or not len(beats):
        return None
    column = [ratio.name for ratio in RATIOS].index("log_before_over_last")
    return float(np.median(beats.intervals[:, column].numpy()))


def print_summary(name: str, summary: Mapping[str, Any]) -> None:
    """One table of the parts, side by side, and one of the classes of each part."""
    from experiments.tables import console

    console().print(_parts_table(name, summary["parts"]), markup=False)
    left_out = summary["num_classes"] - summary["num_classes_shown"]
    note = f", the {summary['num_classes_shown']} largest of {summary['num_classes']}" if left_out > 0 else ""
    for part in summary["parts"]:
        console().print()
        console().print(_classes_table(f"{name}, {part['part']}: classes{note}", part), markup=False)
    console().print(EXPLANATION)


def _parts_table(title: str, parts: Sequence[Mapping[str, Any]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("", title=escape(title), title_justify="left", box=None)
    for part in parts:
        table.add_column(part["part"], justify="right")
    table.add_row("source", *(part["source"] for part in parts))
    table.add_row("beats", *(f"{part['beats']:,}" for part in parts))
    table.add_row("patients", *("unknown" if part["patients"] is None else f"{part['patients']:,}" for part in parts))
    table.add_row("leads × samples", *(f"{part['num_leads']} × {part['num_samples']}" for part in parts))
    table.add_row("sampling rate", *(f"{part['rate_hz']:g} Hz" for part in parts))
    table.add_row("missing values", *(f"{part['missing_values']:,}" for part in parts))
    for reason in dict.fromkeys(reason for part in parts for reason in part["dropped"]):
        table.add_row(f"dropped from the source: {reason}", *(f"{part['dropped'].get(reason, 0):,}" for part in parts))
    table.add_row("repeat an earlier beat", *(f"{part['repeated']:,}" for part in parts))
    for other in dict.fromkeys(other for part in parts for other in part["also_in"]):
        counts = (part["also_in"].get(other) for part in parts)
        table.add_row(f"repeat one of {other}", *("" if count is None else f"{count:,}" for count in counts))
    if any(part["remarks"] for part in parts):
        table.add_row("remarks", *("\n".join(part["remarks"]) for part in parts))
    return table


def _classes_table(title: str, part: Mapping[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("class", title=escape(title), title_justify="left", box=None)
    for column in (
        "beats",
        "share",
        "seconds\nleast·median·most",
        "fill the\nwindow",
        "heart rate, bpm\n10 %·median·90 %",
        "before/last\nmedian",
    ):
        table.add_column(column, justify="right")
    for row in part["classes"]:
        prematurity = row["median_log_before_over_last"]
        table.add_row(
            row["class"],
            f"{row['beats']:,}",
            f"{row['share']:.1%}",
            _together(row["length_s"], ".2f"),
            f"{row['fill_the_window']:,}",
            _together(row["heart_rate_bpm"], ".0f"),
            "–" if prematurity is None else f"{prematurity:+.2f}",
        )
    return table


def _together(values: Mapping[str, float] | None, form: str) -> str:
    return "–" if values is None else " · ".join(f"{value:{form}}" for value in values.values())
