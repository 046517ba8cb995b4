"""One `explain` from start to end: which samples of a beat, and which RR ratio, moved the classifier's decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

import data
from data.beats import Beats
from experiments import tables
from finetune.attribution import NAMES, REMOVED, WINDOW, Deletion, Explained, delete, explain, stretches, true_class
from finetune.model import Model

if TYPE_CHECKING:
    from finetune.model_commands import Explain

SMALLEST_GAP = 0.05
"""Of the difference of the logits, from which a gap in the sum of the attributions is worth a word."""


def pick(probability: NDArray[np.floating], target: NDArray[np.integer] | None, num: int) -> list[int]:
    """Of each true class the `num` beats answered right with most confidence, then those answered wrong with most;
    without labels, of each answer the most confident. In the order of the classes."""
    answer, confidence = probability.argmax(1), probability.max(1)
    kinds = (
        [answer == label for label in range(probability.shape[1])]
        if target is None
        else [
            (target == label) & ((answer == label) == right)
            for label in range(probability.shape[1])
            for right in (True, False)
        ]
    )
    order = np.argsort(-confidence, kind="stable")
    return [int(place) for kind in kinds for place in order[kind[order]][:num]]


def sample_by_answer(probability: NDArray[np.floating], num: int) -> list[int]:
    """At most `num` beats of each answer, drawn at random, in order."""
    random, answer = np.random.default_rng(0), probability.argmax(1)
    drawn = [random.permutation(np.flatnonzero(answer == label))[:num] for label in range(probability.shape[1])]
    return sorted(int(place) for place in np.concatenate(drawn))


def read_beats(flags: Explain, model: Model) -> tuple[Beats, str]:
    """The beats that INPUT names, and what they are called.

    Raises:
        ValueError: an unknown data set, a file that is missing or no table of beats, or beats that the model does not
            take.
    """
    name = data.own_name(flags.input)
    if data.is_own(name):
        from data.own import read_own

        kind, _, path = name.partition(":")
        beats, said = read_own(kind, Path(path)).beats, data.short_name(name)
    else:
        beats, protocol = _part_of(name, flags, model)
        said = f"{flags.part} part of {name}, {protocol}"
    model.check(beats)
    if beats.target is not None:
        model.check_labels(beats)
    return beats, said


def _part_of(name: str, flags: Explain, model: Model) -> tuple[Beats, str]:
    """The part, and the protocol of its split: that of the model's own data, where they are its own."""
    own = model.made_from
    known = own["protocol"] if name == own["data"] and own["protocol"] != "unknown" else None
    if name not in data.DATASETS:
        data.parts(name, None, flags.data_folder)  # names the choices
    protocol = flags.protocol or known or data.DATASETS[name].protocols[0]
    if flags.part == "test":
        return data.parts(name, protocol, flags.data_folder).load_test(), protocol
    seed = int(model.checkpoint.options.get("split_seed", model.checkpoint.seed))
    split = data.load_split(name, protocol, flags.data_folder, seed)
    return split.train if flags.part == "train" else split.validation, protocol


def run(flags: Explain) -> None:
    model = flags.load()
    label = None if flags.of is None else _label(flags.of, model)
    beats, said = read_beats(flags, model)
    probability = model.probabilities(beats)
    labels = None if beats.target is None else beats.target.numpy()
    index = list(flags.beats) or pick(probability, labels, flags.num)
    _check_index(index, len(beats), said)
    explained = several = explain(model, beats, index, label)
    _check_gradient(explained, flags.method, model)
    if flags.mean and not flags.beats:
        several = explain(model, beats, sample_by_answer(probability, flags.mean), label, [flags.method])
    deletion = delete(model, several, flags.method)
    from finetune.explain_pictures import draw

    pictures = draw(explained, None if several is explained else several, flags.method, flags.folder, said)
    show(explained, flags.method, deletion, Path(flags.model).name, said)
    tables.say(f"{len(pictures)} pictures in {flags.folder}")
    content = to_json(explained, flags.method) | {"deletion": asdict(deletion), "beats_of": said}
    flags.write(content | {"pictures": [str(path) for path in pictures]})


def _check_gradient(explained: Explained, method: str, model: Model) -> None:
    """
    Raises:
        ValueError: no gradient reaches the beats, so that integrated gradients say nothing of them.
    """
    gap, whole = explained.gap("ig").abs(), (explained.logit - explained.baseline_logit).abs()
    if method == "ig" and not explained.attributions["ig"][0].any() and (gap > SMALLEST_GAP * whole).any():
        raise ValueError(
            f"{model.origin}: no gradient reaches the beat through {model.checkpoint.spec.label}; --method occlusion "
            "needs none"
        )


def _label(name: str, model: Model) -> int:
    if name not in model.classes:
        raise ValueError(f"--of {name}: choose from {', '.join(model.classes)}")
    return model.classes.index(name)


def _check_index(index: Sequence[int], num_beats: int, said: str) -> None:
    for place in index:
        if not 0 <= place < num_beats:
            raise ValueError(f"--beats {place}: {said} has beats 0 to {num_beats - 1}")
    if not index:
        raise ValueError(f"{said} has no beats to explain")


def to_json(explained: Explained, method: str) -> dict[str, Any]:
    """Everything the table prints, and all attributions."""
    gap, (padding, share) = explained.gap(method), explained.padding(method)
    rows = [
        {
            "index": place,
            "true": true_class(explained, row),
            "answer": explained.classes[int(explained.probability[row].argmax())],
            "probabilities": dict(zip(explained.classes, explained.probability[row].tolist(), strict=True)),
            "explained": explained.classes[int(explained.target[row])],
            "logit": float(explained.logit[row]),
            "baseline_logit": float(explained.baseline_logit[row]),
            "gap": float(gap[row]),
            "num_samples": int(explained.beats.valid_length[row]),
            "padding": {"sum": float(padding[row]), "share": float(share[row])},
            "stretches": [stretch._asdict() for stretch in stretches(explained, method, row)],
            "ratios": dict(zip(explained.ratios, explained.ratio_values[row].tolist(), strict=True)),
            "attributions": {name: _of_row(explained, name, row) for name in explained.attributions},
        }
        for row, place in enumerate(explained.index)
    ]
    return {"method": method, "window": WINDOW, "beats": rows}


def _of_row(explained: Explained, method: str, row: int) -> dict[str, list[Any]]:
    """Of the samples of each lead, and of the ratios in order."""
    samples, *ratios = (part[row].tolist() for part in explained.attributions[method])
    return {"samples": samples, "ratios": ratios[0] if ratios else []}


def largest_ratio(explained: Explained, method: str, row: int) -> tuple[str, float, float] | None:
    """Name, value and attribution of the RR ratio of the largest effect; None where the classifier reads none."""
    if not explained.ratios:
        return None
    effect = explained.attributions[method][1][row]
    column = int(effect.abs().argmax())
    return explained.ratios[column], float(explained.ratio_values[row, column]), float(effect[column])


def show(explained: Explained, method: str, deletion: Deletion, model: str, said: str) -> None:
    table = Table(title=f"What moved the decisions of {model}: {said}; {NAMES[method]}", title_style="bold")
    headers = ("beat", "true", "answer", "p", "of", "stretches that moved the logit most, in ms", "RR ratio", "padding")
    for header in headers:
        table.add_column(header, justify="right" if header in ("beat", "p", "padding") else "left")
    _, share = explained.padding(method)
    for row, place in enumerate(explained.index):
        answer = int(explained.probability[row].argmax())
        ratio = largest_ratio(explained, method, row)
        table.add_row(
            f"{place:,}",
            true_class(explained, row) or "–",
            explained.classes[answer],
            f"{explained.probability[row, answer]:.2f}",
            explained.classes[int(explained.target[row])],
            "  ".join(map(str, stretches(explained, method, row))),
            "–" if ratio is None else f"{ratio[0]} {ratio[1]:+.2f}: {ratio[2]:+.2f}",
            f"{share[row]:.0%}",
        )
    table.caption = caption(explained, method, deletion)
    tables.console().print(table)


def caption(explained: Explained, method: str, deletion: Deletion) -> str:
    lines = [
        "in units of the logit of the class under “of”, against a flat line at the beat's mean and a regular rhythm; "
        "padding: share of the zeros after the beat's end, which tell the heart rate",
    ]
    if method == "ig":
        gap, whole = explained.gap(method).abs(), (explained.logit - explained.baseline_logit).abs()
        worst = int(gap.argmax())
        lines.append(
            f"the attributions of a beat add up to the difference of the two logits within {gap[worst]:.2g} "
            f"(of {whole[worst]:.2f})" + ": read them with care" * bool(gap[worst] > SMALLEST_GAP * whole[worst])
        )
    lines.append(
        f"deletion test on {deletion.num_beats:,} beats: without the {REMOVED:.0%} of samples with the highest "
        f"attributions the logit falls by {deletion.top:.2f}, without {REMOVED:.0%} at random by "
        f"{deletion.random:.2f}; by more in {deletion.wins:,} of {deletion.num_beats:,}"
    )
    return "\n".join(lines)
