"""Encoders by name: tensors in, tensors out. A new encoder is one file and one line in `ENCODERS`."""

from __future__ import annotations

import json
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from models.encoder import Encoder, EncoderSpec, Option


class Architecture(NamedTuple):
    where: str
    family: str


ENCODERS = {
    "resnet1d": Architecture("models.resnet1d:ResNet1d", "1D CNN"),
    "transformer1d": Architecture("models.transformer1d:Transformer1d", "transformer"),
}
"""Our own."""
DEFAULT_ENCODER = "resnet1d"


def find(name: str) -> type[Encoder]:
    """The class of an encoder.

    Raises:
        ValueError: an unknown name; the message lists the choices.
    """
    if name not in ENCODERS:
        raise ValueError(f"unknown architecture {name!r}; choose from {', '.join(ENCODERS)}")
    module, _, attribute = ENCODERS[name].where.partition(":")
    return getattr(import_module(module), attribute)


def build(spec: EncoderSpec) -> Encoder:
    """The encoder that `spec` describes, with fresh weights drawn from torch's global generator.

    Raises:
        ValueError: an unknown name or option, or a size that the architecture cannot have.
    """
    return find(spec.name)(spec)


def parse(text: str, num_leads: int = 1, num_samples: int = 187) -> EncoderSpec:
    """The spec that a command line names: NAME or NAME@OPTION=VALUE,…, such as resnet1d@width=48,kernel=7.

    Raises:
        ValueError: an unknown name or option, or a value that the option does not accept.
    """
    from models.encoder import EncoderSpec

    name, _, options = text.partition("@")
    spec = EncoderSpec(
        name=name,
        num_leads=num_leads,
        num_samples=num_samples,
        options=dict(map(_option, filter(None, options.split(",")))),
    )
    spec.resolve(find(name).dimensions)
    return spec


def _option(text: str) -> tuple[str, Option]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"an option of an architecture reads NAME=VALUE, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
