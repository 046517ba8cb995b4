"""Image models of timm (Wightman 2019, github.com/huggingface/pytorch-image-models) without their heads, as timm:MODEL.

A beat becomes an image of itself first. Weights are fresh: nothing is downloaded.
"""

import difflib
import warnings
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import Any

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from models import LIBRARY_MODELS, imaging
from models.encoder import Dimension, EncoderSpec
from models.stages import LibraryEncoder
from models.torchvision_ops import declare_missing


class TimmEncoder(LibraryEncoder):
    """The last feature map, row by row, or the tokens of the patches.

    Options: `image` (how a beat is drawn), `size` (pixels of its side; patches and strides must divide it).
    """

    dimensions = MappingProxyType(
        {"image": Dimension("fold", tuple(imaging.IMAGES)), "size": Dimension(64, (32, 64, 96))}
    )

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        image, self.size = spec.resolve(self.dimensions).values()
        self.spec = spec
        self.image = imaging.make_image(image, spec.num_samples)
        name = spec.name.partition(":")[2]
        _check_name(name)
        self.install(lambda: _model(name, spec.num_leads, self.size))

    def encode(self, x: Tensor) -> Tensor:
        side = (self.size, self.size)
        image_BCHW = functional.interpolate(self.image(x), side, mode="bilinear", antialias=True)
        body: Any = self.body
        features = body.forward_features(image_BCHW)
        if features.ndim == 3:  # first in line, a class token and registers may stand, which timm does not average
            return features[:, getattr(body, "num_prefix_tokens", 0) :]
        if getattr(body, "output_fmt", "NCHW") == "NHWC":
            return rearrange(features, "batch row column dim -> batch (row column) dim")
        return rearrange(features, "batch dim row column -> batch (row column) dim")


def _timm() -> ModuleType:
    declare_missing()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module("timm")


def _check_name(name: str) -> None:
    """Only names of timm's own list: others could lead to a download."""
    timm = _timm()
    if name not in (names := timm.list_models()):
        usual = [model.removeprefix("timm:") for model in LIBRARY_MODELS if model.startswith("timm:")]
        close = difflib.get_close_matches(name, names, n=4) or usual
        raise ValueError(f"timm has no model {name!r}; choose from its list, such as {', '.join(close)}")


def _model(name: str, num_leads: int, size: int) -> nn.Module:
    timm = _timm()
    fixed = timm.get_pretrained_cfg(name)
    options = {"img_size": size} if fixed is not None and fixed.fixed_input_size else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(name, pretrained=False, in_chans=num_leads, num_classes=0, **options)
    patch = getattr(getattr(model, "patch_embed", None), "proj", None)
    if isinstance(patch, nn.Conv2d) and any(size % stride for stride in patch.stride):
        sides = " x ".join(map(str, patch.stride))  # the image's edge would be left out
        raise ValueError(f"patches of {sides} pixels do not divide an image of {size} x {size}")
    return model
