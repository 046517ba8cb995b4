"""The classifier with what surrounds it as one graph, and the two kinds of file that hold it: ONNX and torch's .pt2.

Inside the graph: the scaling of each beat, the temperature, the thresholds of the alarms. Neither kind of file needs
this project to be read.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.intervals import RATIOS
from experiments.files import nan_to_null
from finetune.intervals import COLUMNS
from models.heads import Classifier

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from finetune.model import Model

FORMAT = "heartbeat-transfer/export/1"
OPSET = 20
"""Of ONNX: onnxruntime 1.17 and later read it."""
METADATA = "metadata.json"
"""Of a .pt2: the name of the extra file; an ONNX file has the same entries as its metadata properties."""

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]
"""One batch, by the names of inputs and outputs."""


class Portable(nn.Module):
    """beats (batch, num_leads, num_samples), and RR ratios (batch, num_ratios) where the classifier reads them →
    probabilities, logits and, with thresholds, alarms, each (batch, num_classes).

    A beat or ratio that is not finite is answered with NaN and no alarm, never with a class.
    """

    limits_C: Tensor

    def __init__(
        self, classifier: Classifier, temperature: float, thresholds: tuple[float | None, ...] | None, scaling: bool
    ) -> None:
        """
        Args:
            scaling: whether beats are scaled inside; otherwise they must be as `data.beats` makes them.
        """
        super().__init__()
        self.classifier, self.temperature, self.scaling = classifier, temperature, scaling
        self.raises_alarms = thresholds is not None
        limits = [float("inf") if value is None else value for value in thresholds or ()]
        self.register_buffer("limits_C", torch.tensor(limits))

    @classmethod
    def of(cls, model: Model, scaling: bool) -> Portable:
        """On the CPU, in eval mode, without gradients."""
        values = None if model.thresholds is None else model.thresholds.values
        return cls(model.classifier, model.temperature, values, scaling).cpu().eval().requires_grad_(False)

    def forward(self, beats: Tensor, intervals: Tensor | None = None) -> tuple[Tensor, ...]:
        logits_BC = self.classifier(scaled(beats) if self.scaling else beats, intervals)
        finite_B = (beats.abs() < float("inf")).flatten(1).all(1)
        if intervals is not None:
            finite_B = finite_B & (intervals.abs() < float("inf")).all(1)
        logits_BC = logits_BC.where(finite_B[:, None], float("nan"))
        probability_BC = (logits_BC / self.temperature).softmax(1)
        alarms = (probability_BC >= self.limits_C,) if self.raises_alarms else ()
        return probability_BC, logits_BC, *alarms


def scaled(beats_BLN: Tensor) -> Tensor:
    """Each lead of each beat to 0…1 up to the beat's end, which is its last sample that is not zero in any lead, and
    zero after it: `data.beats.scale_and_pad` as a graph.

    What lies in 0…1 and reaches 1 has been scaled before and stays as it is: where its lowest sample, 0, is its last,
    its end is not to be told from the padding, and it would be scaled again.
    """
    place_N = torch.arange(1, beats_BLN.shape[-1] + 1, device=beats_BLN.device)
    length_B = ((beats_BLN != 0).any(1) * place_N).amax(-1)
    valid_B1N = (place_N <= length_B[:, None])[:, None]
    low = beats_BLN.where(valid_B1N, float("inf")).amin(-1, keepdim=True)
    span = beats_BLN.where(valid_B1N, float("-inf")).amax(-1, keepdim=True) - low
    new = ((beats_BLN - low) / span).where(span != 0, 0.0).where(valid_B1N, 0.0)
    done = (beats_BLN.amin(-1, keepdim=True) >= 0) & (beats_BLN.amax(-1, keepdim=True) == 1)
    return beats_BLN.where(done, new)


def inputs(model: Model) -> dict[str, tuple[int, ...]]:
    """Name → shape of each input, without the batch."""
    num_ratios = len(COLUMNS[model.intervals])
    beats = {"beats": (model.num_leads, model.num_samples)}
    return beats | ({"intervals": (num_ratios,)} if num_ratios else {})


def outputs(model: Model) -> dict[str, str]:
    """Name → type of each output, of shape (batch, num_classes)."""
    alarms = {} if model.thresholds is None else {"alarms": "bool"}
    return {"probabilities": "float32", "logits": "float32", **alarms}


def facts(model: Model, scaling: bool) -> dict[str, Any]:
    """What the file tells of itself, as JSON values; what the classifier's file does not record is None."""
    checkpoint, thresholds = model.checkpoint, model.thresholds
    ratios = [RATIOS[column] for column in COLUMNS[model.intervals]]
    rule = "scaled inside" if scaling else "each scaled to 0…1 by the caller"
    content = {
        "format": FORMAT,
        "classes": list(model.classes),
        "rate_hz": model.rate_hz,
        "num_leads": model.num_leads,
        "num_samples": model.num_samples,
        "amplitude": rule,
        "padding": str(checkpoint.preprocessing.get("padding", "not recorded")),
        "end": "the last sample that is not zero in any lead",
        "intervals": [ratio.name for ratio in ratios],
        "intervals_look_ahead": [ratio.looks_ahead for ratio in ratios],
        "temperature": model.temperature,
        "thresholds": None if thresholds is None else thresholds.to_json(),
        **{name: None if value == "unknown" else value for name, value in model.made_from.items()},
        "source": checkpoint.source,
        "fingerprint": checkpoint.fingerprint,
        "task": checkpoint.task,
        "arch": checkpoint.spec.label,
        "head": checkpoint.head,
        "seed": checkpoint.seed,
        "metrics": dict(checkpoint.metrics),
        "cost": dict(checkpoint.cost),
        "commit": checkpoint.commit,
        "weights_sha256": checkpoint.weights_hash,
        "versions": dict(checkpoint.versions),
    }
    scalars = {name: value for name, value in checkpoint.options.items() if name not in content}
    return nan_to_null(content | {"options": scalars})


def trace(portable: nn.Module, model: Model) -> ExportedProgram:
    """The graph, for batches of any size.

    Raises:
        ValueError: torch cannot trace the classifier; one line.
    """
    batch = torch.export.Dim("batch")
    examples = tuple(torch.rand(2, *shape) for shape in inputs(model).values())
    with _refusing(model, "traced"), torch.no_grad():
        program = torch.export.export(portable, examples, dynamic_shapes=tuple({0: batch} for _ in examples))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the paths of this checkout
    return program


def to_onnx(program: ExportedProgram, model: Model, about: Mapping[str, Any]) -> bytes:
    """
    Raises:
        ValueError: ONNX has no form for a part of the graph; one line.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    given, answered = list(inputs(model)), list(outputs(model))
    axes = {name: {0: "batch"} for name in given}
    with _refusing(model, "written as ONNX"):
        made = torch.onnx.export(
            program,
            input_names=given,
            output_names=answered,
            dynamic_shapes=axes,
            opset_version=OPSET,
            verbose=False,
        )
        assert made is not None
        ClearMetadataAndDocStringPass()(made.model)
        made.model.metadata_props.update({name: json.dumps(value) for name, value in about.items()})
        return made.model_proto.SerializeToString()


def to_torch(program: ExportedProgram, model: Model, about: Mapping[str, Any]) -> bytes:
    """
    Raises:
        ValueError: torch cannot write the graph; one line.
    """
    stream = io.BytesIO()
    with _refusing(model, "written as .pt2"):
        torch.export.save(program, stream, extra_files={METADATA: json.dumps(about, indent=2)})
    return stream.getvalue()


@contextmanager
def _refusing(model: Model, what: str) -> Iterator[None]:
    """Silence what torch says on the way; whatever it raises becomes one line."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # whatever torch or a library's module may raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{model.origin}: {model.checkpoint.spec.label} cannot be {what}: {reason}") from error
    finally:
        logging.disable(disabled)


def run_onnx(content: bytes, threads: int) -> Run:
    """By onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(batch: Arrays) -> Arrays:
        answers: list[Any] = list(session.run(None, dict(batch)))
        return dict(zip(names, answers, strict=True))

    return run


def run_torch(content: bytes, names: list[str]) -> Run:
    """By torch, from the file alone; on torch's own number of threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(io.BytesIO(content)).module()
    return run_module(module, names)


def run_module(module: nn.Module, names: list[str]) -> Run:
    def run(batch: Arrays) -> Arrays:
        with torch.inference_mode():
            answers = module(*(torch.from_numpy(array) for array in batch.values()))
        return {name: answer.numpy() for name, answer in zip(names, answers, strict=True)}

    return run


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of file."""

    suffix: str
    runtime: str
    """What reads it."""
    write: Callable[[ExportedProgram, Model, Mapping[str, Any]], bytes]
    open: Callable[[bytes, list[str], int], Run]
    """(content, names of the outputs, threads) → what answers."""


FORMATS = {
    "onnx": Format(
        suffix=".onnx",
        runtime="onnxruntime",
        write=to_onnx,
        open=lambda content, _names, threads: run_onnx(content, threads),
    ),
    "torch": Format(
        suffix=".pt2",
        runtime="torch.export",
        write=to_torch,
        open=lambda content, names, _threads: run_torch(content, names),
    ),
}


def batch_of(signal: Tensor, ratios: Tensor | None) -> dict[str, NDArray[np.float32]]:
    """Inputs by name."""
    beats = {"beats": signal.numpy()}
    return beats | ({} if ratios is None else {"intervals": ratios.numpy()})
