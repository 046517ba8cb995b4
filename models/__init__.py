"""Encoders by name: tensors in, tensors out. A new encoder is one file and one line in `ENCODERS`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.encoder import Encoder, EncoderSpec

ENCODERS = {
    "resnet1d": "models.resnet1d:ResNet1d",
    "transformer1d": "models.transformer1d:Transformer1d",
}
DEFAULT_ENCODER = "resnet1d"


def build(spec: EncoderSpec) -> Encoder:
    """The encoder that `spec` describes, with fresh weights drawn from torch's global generator.

    Raises:
        ValueError: an unknown name or option, or a size that the architecture cannot have.
    """
    if spec.name not in ENCODERS:
        raise ValueError(f"unknown architecture {spec.name!r}; choose from {', '.join(ENCODERS)}")
    module, _, name = ENCODERS[spec.name].partition(":")
    return getattr(import_module(module), name)(spec)
