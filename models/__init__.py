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
    "inception1d": Architecture("models.inception1d:Inception1d", "1D CNN"),
    "tcn1d": Architecture("models.tcn1d:Tcn1d", "1D CNN"),
    "transformer1d": Architecture("models.transformer1d:Transformer1d", "transformer"),
    "cnn_transformer1d": Architecture("models.cnn_transformer1d:CnnTransformer1d", "CNN and transformer"),
    "gru": Architecture("models.recurrent:Gru", "recurrent"),
    "lstm": Architecture("models.recurrent:Lstm", "recurrent"),
    "cnn2d": Architecture("models.cnn2d:Cnn2d", "2D CNN on an image"),
}
"""Our own."""
HEAD = "head"
"""The name of a classifier's last stage."""
DEFAULT_ENCODER = "resnet1d"

LIBRARIES = {
    "tsai": Architecture("models.tsai_nets:TsaiEncoder", "tsai"),
    "timm": Architecture("models.timm_nets:TimmEncoder", "timm"),
}
"""Encoders of other libraries, as LIBRARY:MODEL."""
LIBRARY_MODELS = (
    *("tsai:InceptionTimePlus", "tsai:FCNPlus", "tsai:XceptionTimePlus", "tsai:ResNetPlus", "tsai:TSTPlus"),
    *("tsai:TSiTPlus", "tsai:LSTMPlus", "tsai:XCMPlus", "tsai:ConvTranPlus"),
    *("timm:convnext_atto", "timm:resnet18", "timm:vit_tiny_patch16_224"),
)
"""Those that are tried out with beats; other models of these libraries can be named too."""


def find(name: str) -> type[Encoder]:
    """The class of an encoder.

    Raises:
        ValueError: an unknown name; the message lists the choices.
    """
    library = name.partition(":")[0] if ":" in name else ""
    if name not in ENCODERS and library not in LIBRARIES:
        choices = ", ".join([*ENCODERS, *(f"{library}:MODEL" for library in LIBRARIES)])
        raise ValueError(f"unknown architecture {name!r}; choose from {choices}")
    module, _, attribute = (LIBRARIES[library] if library else ENCODERS[name]).where.partition(":")
    return getattr(import_module(module), attribute)


def origin(name: str) -> str:
    """own, or the library that an architecture is of: the course grades one's own."""
    return name.partition(":")[0] if ":" in name.partition("@")[0] else "own"


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
