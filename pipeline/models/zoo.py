"""Makes a network from its name: `wgates:`, `torchvision:`, `timm:`, `path/to/file.py:factory`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

import torchvision
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.resnet_cifar import CifarResNet
from pipeline.models.user_file import call_user_factory, is_user_file
from pipeline.models.vgg_cifar import CifarVGG

WGATES_MODELS: dict[str, Callable[[int], nn.Module]] = {
    "resnet20": partial(CifarResNet, 3, shortcut="B"),
    "resnet32": partial(CifarResNet, 5, shortcut="B"),
    "resnet56": partial(CifarResNet, 9, shortcut="B"),
    "resnet20a": partial(CifarResNet, 3, shortcut="A"),
    "resnet32a": partial(CifarResNet, 5, shortcut="A"),
    "resnet56a": partial(CifarResNet, 9, shortcut="A"),
    "vgg16_bn": CifarVGG,
}

# These two make auxiliary heads for training and warn when the initialisation is not chosen.
_AUXILIARY = {"googlenet", "inception_v3"}


def create_model(spec: str, classes: int) -> nn.Module:
    """An untrained network with `classes` outputs: (n, C, H, W) -> logits (n, classes)."""
    if classes < 2:
        raise ModelError(f"{classes} classes leave nothing to classify", fix="give at least 2")
    source, _, name = spec.partition(":")
    makers = {"wgates": _from_wgates, "torchvision": _from_torchvision, "timm": _from_timm}
    if source in makers:
        return makers[source](name, classes)
    if is_user_file(spec):
        return _from_file(spec, classes)
    raise _unknown(spec, _all_names())


def input_size_of(spec: str) -> int | None:
    """Default height and width in pixels; None for the user's own file, where the data decides."""
    source, _, name = spec.partition(":")
    if source == "wgates":
        return 32
    if source in ("torchvision", "timm"):
        return 299 if name == "inception_v3" else 224
    return None


def _from_wgates(name: str, classes: int) -> nn.Module:
    if name not in WGATES_MODELS:
        raise _unknown(f"wgates:{name}", _wgates_names())
    return WGATES_MODELS[name](classes)


def _from_torchvision(name: str, classes: int) -> nn.Module:
    if f"torchvision:{name}" not in _torchvision_names():
        raise _unknown(f"torchvision:{name}", _torchvision_names())
    extra = {"aux_logits": False, "init_weights": True} if name in _AUXILIARY else {}
    model: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=classes, **extra
    )
    return model


def _from_timm(name: str, classes: int) -> nn.Module:
    try:
        import timm
    except ImportError as missing:
        raise ModelError(f"timm:{name} needs timm", fix="pip install timm") from missing
    if not timm.is_model(name):
        raise _unknown(f"timm:{name}", [f"timm:{known}" for known in timm.list_models()])
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes)
    return model


def _from_file(spec: str, classes: int) -> nn.Module:
    model = call_user_factory(spec, {"num_classes": classes}, error=ModelError)
    if isinstance(model, nn.Module):
        return model
    raise ModelError(
        f"{spec!r} returned a {type(model).__name__}, not a torch.nn.Module",
        fix="let the factory return the network",
    )


def _wgates_names() -> list[str]:
    return [f"wgates:{name}" for name in WGATES_MODELS]


def _torchvision_names() -> list[str]:
    # list_models() alone also names detection, segmentation and video networks
    names = torchvision.models.list_models(module=torchvision.models)
    return [f"torchvision:{name}" for name in names]


def _all_names() -> list[str]:
    return _wgates_names() + _torchvision_names()


def _unknown(spec: str, known: list[str]) -> ModelError:
    # a bare `resnet50` is as close to torchvision:resnet50 as can be
    same = [name for name in known if name.partition(":")[2] == spec]
    close = same or difflib.get_close_matches(spec, known, n=3, cutoff=0.6)
    forms = "wgates:NAME, torchvision:NAME, timm:NAME or path/to/file.py:factory"
    hint = f"did you mean {' or '.join(close)}?" if close else f"use {forms}"
    return ModelError(f"unknown model {spec!r}", fix=hint)
