"""Networks to prune: the named ones, each traced once in a test run, and small hand-built ones."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.skeleton import Skeleton
from calibration.widths import ChannelGroup, Plan
from pipeline.models.zoo import create_model
from pipeline.pruning.gates import masked
from pipeline.pruning.groups import Residual, trace
from pipeline.pruning.surgery import shrink

CLASSES = 10
BATCH = 2
SLIM = 64  # hidden width of VGG's classifier here, not 4096: the same graph at a tenth of the time
IMAGE_SIZE = {  # pixels
    "wgates:resnet20": 32,
    "wgates:resnet32": 32,
    "wgates:resnet56": 32,
    "wgates:resnet20a": 32,
    "wgates:resnet32a": 32,
    "wgates:resnet56a": 32,
    "torchvision:resnet18": 64,
    "torchvision:resnet34": 64,
    "torchvision:resnet50": 64,
    "torchvision:mobilenet_v2": 64,
    "torchvision:vgg16_bn": 32,
}
NAMED = tuple(IMAGE_SIZE)
OUTPUT = "network output"
Groups = dict[str, tuple[int, str | None]]  # name -> channels, reason


@dataclass(frozen=True)
class Network:
    """A model in eval mode, its skeleton, and images (2, 3, H, W) to compare outputs on."""

    model: nn.Module
    skeleton: Skeleton
    images: Tensor

    @property
    def groups(self) -> dict[str, ChannelGroup]:
        return {group.name: group for group in self.skeleton.groups.every}

    def plan(self, seed: int) -> Plan:
        """Random channels, any number of them from one up, legal width or not."""
        rng = np.random.default_rng(seed)
        kept = {}
        for group in self.skeleton.groups.prunable:
            count = int(rng.integers(1, group.channels + 1))
            rows = rng.choice(group.channels, count, replace=False)
            kept[group.name] = tuple(sorted(int(row) for row in rows))
        return Plan(self.skeleton.sha256, kept)

    def full_plan(self) -> Plan:
        groups = self.skeleton.groups
        return groups.first_channels(groups.full(), self.skeleton.sha256)

    def gap(self, plan: Plan) -> float:
        """Largest difference of gated and sliced logits in float64, relative to the largest."""
        exact, images = copy.deepcopy(self.model).double(), self.images.double()
        with torch.no_grad():
            with masked(exact, self.skeleton.groups, plan):
                gated = exact(images)
            sliced = shrink(exact, self.skeleton, plan)(images)
        return relative_gap(sliced.numpy(), gated.numpy())


def relative_gap(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    assert np.ptp(expected) > 0, "a constant output would prove nothing"
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@functools.cache
def named(spec: str, *, residual: Residual = "tied") -> Network:
    """A named network with batch norms as if trained; traced once in a test run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model(spec, CLASSES)
    if "vgg" in spec:
        model.classifier[0] = nn.Linear(512 * 7 * 7, SLIM)
        model.classifier[3] = nn.Linear(SLIM, SLIM)
        model.classifier[6] = nn.Linear(SLIM, CLASSES)
    return traced(model, size=IMAGE_SIZE[spec], residual=residual)


def traced(model: nn.Module, *, size: int = 8, residual: Residual = "tied") -> Network:
    """Any model with 3 input channels, its batch norms made real, and traced."""
    rng = torch.Generator().manual_seed(1)
    live_batch_norms(model, rng)
    images = torch.randn(BATCH, 3, size, size, generator=rng)
    return Network(model.eval(), trace(model, images, residual=residual), images)


def live_batch_norms(model: nn.Module, rng: torch.Generator) -> None:
    """Random statistics and shifts: fresh ones hide a shift that outlives its channel."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3, generator=rng)
            module.running_var.uniform_(0.5, 1.5, generator=rng)
            if module.affine:
                module.bias.data.normal_(std=0.3, generator=rng)
                module.weight.data.uniform_(0.5, 1.5, generator=rng)


class Net(nn.Module):
    """A network from its layers and its forward in one expression."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.body = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def conv(inputs: int, outputs: int, kernel: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def pooled(x: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, c)."""
    return x.mean((2, 3))


def head(inputs: int) -> nn.Linear:
    return nn.Linear(inputs, CLASSES)


def through(
    middle: Callable[[Net, Tensor], Tensor], *, z: nn.Module | None = None, **layers: nn.Module
) -> Net:
    """conv a (16 channels), `middle`, conv z, pool, linear: z is prunable, a shows the verdict."""
    with seeded():
        return Net(
            lambda s, x: s.head(pooled(F.relu(s.z(middle(s, s.a(x)))))),
            a=conv(3, 16),
            z=z or conv(16, 16),
            head=head(16),
            **layers,
        )


def found(network: Network) -> Groups:
    return {group.name: (group.channels, group.frozen) for group in network.groups.values()}


@functools.cache
def _small() -> Network:
    with seeded():
        return traced(
            Net(
                lambda s, x: s.head(pooled(F.relu(s.b(F.relu(s.n(s.a(x))))))),
                a=conv(3, 16),
                n=nn.BatchNorm2d(16),
                b=conv(16, 12),
                head=nn.Linear(12, 5),
            )
        )


def small_network() -> Network:
    """conv a, batch norm n, conv b, linear; without gradients from other tests."""
    return replace(_small(), model=copy.deepcopy(_small().model))


def scaled_network() -> Network:
    """The same, the scales of its batch norm not those of the filters."""
    found = small_network()
    with seeded():
        found.model.n.weight.data.uniform_(-2, 2)
    return found
