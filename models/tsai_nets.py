"""Time series models of tsai (Oguiza 2023, github.com/timeseriesAI/tsai) without their heads, as tsai:MODEL."""

import inspect
import re
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from models import LIBRARY_MODELS
from models.encoder import EncoderSpec
from models.stages import LibraryEncoder
from models.torchvision_ops import declare_missing


class TsaiEncoder(LibraryEncoder):
    """The backbone of a "…Plus" model, which gives a vector for each sample or stretch of the beat; no options.

    Where tsai's own head looks at the last step alone, or the backbone gives one vector, there is a single token.
    """

    last_step = False

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        spec.resolve(self.dimensions)
        self.spec = spec
        name = spec.name.partition(":")[2]
        module = _module_of(name)
        if module is None:
            choices = ", ".join(model for model in LIBRARY_MODELS if model.startswith("tsai:"))
            raise ValueError(f"tsai has no classifier {name!r} with a backbone; choose from {choices}")
        self.install(lambda: self.cut(_model(module, name, spec)))

    def cut(self, model: Any) -> nn.Module:
        """The backbone of a model, whose head says whether it looks at the last step alone."""
        self.last_step = any(type(part).__name__ == "LastStep" for part in model.head.modules())
        backbone = model.backbone
        while isinstance(backbone, nn.Sequential) and len(backbone) == 1:
            backbone = backbone[0]
        return backbone

    def encode(self, x: Tensor) -> Tensor:
        features = self.body(x)
        if features.ndim == 2:
            return rearrange(features, "batch dim -> batch 1 dim")
        if self.last_step:
            features = features[..., -1:]
        return rearrange(features, "batch dim token -> batch token dim")


def _model(module: str, name: str, spec: EncoderSpec) -> Any:
    declare_missing()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model_class = getattr(import_module(module), name)
        length = {"seq_len": spec.num_samples} if _takes_length(model_class) else {}
        model = model_class(spec.num_leads, 2, **length)
    if hasattr(model.backbone, "key_padding_mask"):
        model.backbone.key_padding_mask = False  # "auto" would look for NaN in, and write into, the beats given
    return model


def _takes_length(model_class: type[nn.Module]) -> bool:
    parameters = inspect.signature(model_class).parameters
    return "seq_len" in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def _module_of(model: str) -> str | None:
    """The module that defines this model, found without importing any: tsai.models.all takes seconds, and breaks."""
    spec = find_spec("tsai")
    if spec is None or spec.origin is None or not re.fullmatch(r"\w+Plus", model):
        return None
    defines = re.compile(rf"^class {model}\(", re.MULTILINE)
    sources = sorted((Path(spec.origin).parent / "models").glob("*.py"))
    return next((f"tsai.models.{path.stem}" for path in sources if defines.search(path.read_text("utf8"))), None)
