"""Checkpoints: written whole, sealed with a SHA-256, verified on load, never unpickled.

A file is what `torch.save` writes (tensors and JSON scalars only, readable by `torch.load(weights_only=True)`),
followed by a seal over all of it; see checkpoints/README.md.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import models
from experiments.files import load_tensors, save_tensors
from models.encoder import Encoder, EncoderSpec
from models.heads import Classifier

FORMAT = "heartbeat-transfer/1"

Json = Any


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An encoder, or (with `head` and `classes`) a whole classifier, and where it came from."""

    spec: EncoderSpec
    weights: Mapping[str, Tensor]
    task: str
    source: str
    fingerprint: str
    preprocessing: Mapping[str, Json]
    seed: int
    options: Mapping[str, Json] = field(default_factory=dict)
    """The flags that it was made by."""
    head: str | None = None
    classes: tuple[str, ...] = ()
    cost: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    commit: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def weights_hash(self) -> str:
        """SHA-256 of the architecture and every weight: the same for the same encoder, whenever it was written."""
        return weights_hash(self.spec, self.weights)


def weights_hash(spec: EncoderSpec, weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(spec.to_json(), sort_keys=True).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the module's parameters and buffers on the CPU, in plain memory order."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in module.state_dict().items()
    }


def save(path: Path, checkpoint: Checkpoint) -> None:
    content = {"format": FORMAT} | {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    content |= {"spec": checkpoint.spec.to_json(), "classes": list(checkpoint.classes)}
    save_tensors(path, content)


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        ValueError: missing, truncated or damaged file; anything in it but tensors and JSON scalars; another format.
    """
    content = load_tensors(path)
    if content.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of format {FORMAT}")
    try:
        content["spec"] = EncoderSpec(**content["spec"])
        content["classes"] = tuple(content["classes"])
        if not all(isinstance(tensor, Tensor) for tensor in content["weights"].values()):
            raise TypeError("its weights are not tensors")
        return Checkpoint(**content)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a checkpoint of format {FORMAT}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """How much of a module came from a file."""

    num_tensors: int
    num_parameters: int
    total_parameters: int

    def __str__(self) -> str:
        share = self.num_parameters / self.total_parameters
        return (
            f"{self.num_tensors} tensors, {self.num_parameters:,} of {self.total_parameters:,} parameters ({share:.0%})"
        )


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], origin: str) -> Loaded:
    """Copy `weights` into `module`: all of them, into all of it.

    Raises:
        ValueError: any tensor missing, extra or of another shape; the message names them and `origin`.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - weights.keys())
    extra = sorted(weights.keys() - own.keys())
    reshaped = [name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape]
    if missing or extra or reshaped:
        problems = [
            f"{kind}: {', '.join(names)}"
            for kind, names in (("missing", missing), ("extra", extra), ("of another shape", sorted(reshaped)))
            if names
        ]
        raise ValueError(f"{origin} does not fit the model: {'; '.join(problems)}")
    module.load_state_dict(weights)
    parameters = dict(module.named_parameters())
    loaded = sum(parameters[name].numel() for name in weights if name in parameters)
    total = sum(parameter.numel() for parameter in parameters.values())
    return Loaded(num_tensors=len(weights), num_parameters=loaded, total_parameters=total)


def attach(checkpoint: Checkpoint, origin: str) -> tuple[Encoder, Loaded]:
    """The encoder that the checkpoint describes, with its weights, and how many of them were loaded."""
    encoder = models.build(checkpoint.spec)
    return encoder, load_weights(encoder, checkpoint.weights, origin)


def restore_classifier(checkpoint: Checkpoint, origin: str) -> Classifier:
    """The fine-tuned classifier that the checkpoint holds; its head's width tells how many intervals it takes.

    Raises:
        ValueError: the checkpoint is of an encoder alone.
    """
    if checkpoint.head is None:
        raise ValueError(f"{origin} holds an encoder without a head: fine-tune it first")
    encoder, statistics = models.build(checkpoint.spec), checkpoint.weights.get("head.standardise.running_mean")
    num_intervals = 0 if statistics is None else max(0, len(statistics) - encoder.dim)
    model = Classifier(encoder, checkpoint.head, len(checkpoint.classes), num_intervals)
    load_weights(model, checkpoint.weights, origin)
    return model
