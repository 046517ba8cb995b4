"""The model card beside an exported classifier: recorded facts alone, in Markdown (Mitchell et al. 2019, arXiv
1810.03993)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.files import sha256
from experiments.results import versions

if TYPE_CHECKING:
    from finetune.export import Exported

UNKNOWN = "not recorded"
LEAKAGE = {
    "beat-random": "beats of one patient are in training and in test: figures are higher than for new patients",
    "record-disjoint": "no record is in both, but records 201 and 202 are of one patient and were apart",
    "patient-disjoint": "no patient is in both",
    "unknown": "the source does not name its patients: they may be in both",
}
RUNTIMES = ("onnx", "onnxscript", "onnxruntime")
FIGURES = ("macro_recall", "macro_f1", "macro_precision", "accuracy")
INTENDED = """
Research and teaching: to compare ways of training on single heartbeats, and to try the classifier in other programs.

**Not intended** for diagnosis, monitoring or any decision about a patient. It is no medical device, and nobody has
evaluated it as one. A probability is calibrated on validation beats of its own source at most, not on other
electrodes, devices, sampling chains or populations.
""".strip()


def card(exported: Exported, original: Path) -> str:
    """
    Args:
        original: the classifier's file.
    """
    facts = exported.facts
    sections = {
        "What it is": _what(exported),
        "Data and protocol": _data(facts),
        "Results": _results(facts, original),
        "Alarms": _alarms(facts),
        "Intended use": INTENDED,
        "Limits": _limits(facts),
        "How to call it": _call(exported),
        "How it was checked": _checked(exported),
        "Where it comes from": _origin(exported, original),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"# {exported.file.name}\n\nA heartbeat classifier, {facts['task']}.\n\n{body}\n"


def table(rows: Mapping[str, object]) -> str:
    lines = [f"| {name} | {UNKNOWN if value in (None, '') else value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _what(exported: Exported) -> str:
    facts = exported.facts
    given = [f"`{name}` float32 (batch, {', '.join(map(str, shape))})" for name, shape in exported.inputs.items()]
    num_classes = len(facts["classes"])
    answered = [f"`{name}` {dtype} (batch, {num_classes})" for name, dtype in exported.outputs.items()]
    return table(
        {
            "classes, in order": ", ".join(facts["classes"]),
            "encoder and head": f"{facts['arch']}, {facts['head']}",
            "parameters": facts["cost"].get("parameters") and f"{facts['cost']['parameters']:,.0f}",
            "input": "; ".join(given),
            "output": "; ".join(answered),
            "probabilities": f"softmax of the logits divided by the temperature, {facts['temperature']:.4g}",
            "a beat": f"{facts['num_samples']} samples at {facts['rate_hz']:g} Hz; {facts['padding']}",
            "amplitude": f"{facts['amplitude']}; the beat ends with {facts['end']}",
            "RR ratios, in order": ", ".join(facts["intervals"]) or "none",
            "what is not finite": "is answered with NaN and no alarm",
        }
    )


def _data(facts: Mapping[str, Any]) -> str:
    badge = facts["badge"]
    cost, options = facts["cost"], facts["options"]
    return table(
        {
            "pretrained on": options.get("pretrained_on"),
            "trained on": facts["source"],
            "data set, as named here": facts["data"],
            "SHA-256 of the training beats": facts["fingerprint"],
            "share of the labels": options.get("label_fraction"),
            "protocol of the split": facts["protocol"],
            "leakage": badge and f"**{badge}**: {LEAKAGE.get(badge, UNKNOWN)}",
            "training": cost.get("beats") and f"{cost['beats']:,.0f} beats seen, {cost.get('seconds', 0):,.0f} s",
            "seed": facts["seed"],
        }
    )


def _results(facts: Mapping[str, Any], original: Path) -> str:
    parts = {part: _of_part(facts["metrics"], part) for part in ("validation", "test")}
    names = [*FIGURES, *(f"recall_{label}" for label in facts["classes"])]
    header = ["part", *(name.replace("_", " ") for name in names)]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for part, values in parts.items():
        shown = [_number(values.get(name)) if values else UNKNOWN for name in names]
        lines.append(f"| {part} | {' | '.join(shown)} |")
    lines.append("")
    lines.append("Validation beats chose the epoch, the temperature and the thresholds.")
    if not parts["test"]:
        lines.append(f"The classifier's file records no test figures: `python -m finetune evaluate {original.name}`.")
    return "\n".join(lines)


def _of_part(metrics: Mapping[str, float], part: str) -> dict[str, float]:
    return {name.removeprefix(f"{part}_"): value for name, value in metrics.items() if name.startswith(f"{part}_")}


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _alarms(facts: Mapping[str, Any]) -> str:
    thresholds = facts["thresholds"]
    if thresholds is None:
        return f"Thresholds: {UNKNOWN}; the file has no output `alarms`."
    lines = [
        f"A beat raises the alarm of a class whose probability reaches its threshold: none, one or several. Thresholds "
        f"were set to find {thresholds['floor']:.0%} of each class's validation beats.",
        "",
        "| class | threshold |",
        "|---|---|",
    ]
    for label, value in zip(facts["classes"], thresholds["values"], strict=True):
        lines.append(f"| {label} | {'no validation beat: never an alarm' if value is None else f'{value:.4g}'} |")
    return "\n".join(lines)


def _limits(facts: Mapping[str, Any]) -> str:
    limits = [
        f"One beat at a time, at {facts['rate_hz']:g} Hz from its R peak: where the peak is wrong, so is the beat.",
        "The zeros after a beat's end tell the heart rate, and the classifier may read them.",
        f"It knows the classes {', '.join(facts['classes'])} alone, and answers one of them whatever it is given.",
    ]
    ahead = {name: of for name, of in zip(facts["intervals"], facts["intervals_look_ahead"], strict=True) if of}
    limits += [f"`{name}` needs {of}: no answer at once." for name, of in ahead.items()]
    if facts["badge"] != "patient-disjoint":
        limits.append(f"Leakage: {LEAKAGE.get(facts['badge'] or 'unknown', UNKNOWN)}.")
    return "\n".join(f"- {limit}" for limit in limits)


def _call(exported: Exported) -> str:
    name, facts = exported.file.name, exported.facts
    shapes = {key: (1, *shape) for key, shape in exported.inputs.items()}
    given = f"a beat of {facts['rate_hz']:g} Hz, zeros after its end" + ", log RR ratios" * (len(shapes) > 1)
    answers = ", ".join(exported.outputs)
    if exported.format == "onnx":
        batch = ", ".join(f'"{key}": np.zeros({shape}, np.float32)' for key, shape in shapes.items())
        lines = (
            "import json, numpy as np, onnxruntime",
            f'session = onnxruntime.InferenceSession("{name}")',
            f"batch = {{{batch}}}  # {given}",
            f"{answers} = session.run(None, batch)",
            'classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])',
            "print(classes[probabilities[0].argmax()], probabilities[0])",
        )
    else:
        batch = ", ".join(f"torch.zeros{shape}" for shape in shapes.values())
        lines = (
            "import json, torch",
            'about = {"metadata.json": ""}',
            f'module = torch.export.load("{name}", extra_files=about).module()',
            f"{answers} = module({batch})  # {given}",
            'classes = json.loads(about["metadata.json"])["classes"]',
            "print(classes[probabilities[0].argmax()], probabilities[0])",
        )
    return "\n".join(["```python", *lines, "```"])


def _checked(exported: Exported) -> str:
    found = exported.check
    rows: dict[str, object] = {
        "beats": f"{found.num_beats:,} {found.beats}",
        "largest difference of a probability": f"{found.prepared:.1e}",
        "the same, at other amplitudes": UNKNOWN if found.unscaled is None else f"{found.unscaled:.1e}",
        "answers that differ": f"{found.num_answers:,}",
        "alarms that differ": "no alarms" if found.num_alarms is None else f"{found.num_alarms:,}",
    }
    for speed in exported.speed:
        rows[f"beats a second, batches of {speed.batch_size:,}, CPU threads: {exported.threads}"] = (
            f"{speed.exported:,.0f}; the classifier in torch {speed.torch:,.0f}"
        )
    return table(rows)


def _origin(exported: Exported, original: Path) -> str:
    facts = exported.facts
    return table(
        {
            "SHA-256 of this file": exported.sha256,
            "classifier": original.name,
            "SHA-256 of the classifier's file": sha256(original),
            "SHA-256 of architecture and weights": facts["weights_sha256"],
            "commit of its training": facts["commit"],
            "versions at its training": _versions(facts["versions"]),
            "versions at the export": _versions(versions() | {name: version(name) for name in RUNTIMES}),
            "ONNX opset": exported.opset or "none: torch.export",
            "recipe": ", ".join(f"{name} {value}" for name, value in facts["options"].items()),
        }
    )


def _versions(found: Mapping[str, str]) -> str:
    return ", ".join(f"{package} {number}" for package, number in found.items())
