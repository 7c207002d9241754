"""Several processes that train one model: gradients and batch norm over the whole step's images.

Gradients are summed here and not by a wrapper around the model, because gates read weights
outside of any forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline.evaluation import batch_norms


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over the processes, in one message for each type."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_type.values():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, summed in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(summed.view_as(gradient))


@torch.no_grad()
def share_weights(module: nn.Module) -> None:
    """Give every process the first one's tensors."""
    for value in module.state_dict().values():
        dist.broadcast(value, 0)


def total(value: Tensor, fabric: Fabric) -> Tensor:
    """The sum of `value` over the processes."""
    if fabric.world_size == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value


def from_first(find: Callable[[], Sequence[float]], count: int, fabric: Fabric) -> list[float]:
    """The `count` numbers that the first process finds; the others are told."""
    if fabric.world_size == 1:
        return list(find())
    told = torch.zeros(count, dtype=torch.float64, device=fabric.device)
    if fabric.is_global_zero:
        told.copy_(torch.tensor(find(), dtype=torch.float64))
    dist.broadcast(told, 0)
    numbers: list[float] = told.tolist()
    return numbers


@contextmanager
def one_batch_norm(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms in training take their statistics over the images of all processes."""
    norms = batch_norms(module)
    for norm in norms:
        norm.forward = partial(_normalised, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _normalised(norm: nn.modules.batchnorm._BatchNorm, images: Tensor) -> Tensor:
    """What `norm` gives for (n, C, ...) images, as one process with all images would have it."""
    if not norm.training:
        return type(norm).forward(norm, images)
    axes = [axis for axis in range(images.dim()) if axis != 1]
    wide = images.float()
    count = torch.tensor([images.numel() / images.shape[1]], device=images.device)
    sums = _summed(torch.cat([wide.sum(axes), count]))
    mean = sums[:-1] / sums[-1]
    shape = [1, -1] + [1] * (images.dim() - 2)
    centred = wide - mean.view(shape)
    # around the common mean: differences of large squares would lose what is left
    variance = _summed((centred**2).sum(axes)) / sums[-1]
    _track(norm, mean.detach(), variance.detach() * (sums[-1] / (sums[-1] - 1)).detach())
    out = centred * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.affine:
        out = out * norm.weight.view(shape) + norm.bias.view(shape)
    return out.to(images.dtype)


class _Sum(torch.autograd.Function):
    """The sum over the processes; each one's loss reaches every summand."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        gradient = grads[0].clone()
        dist.all_reduce(gradient)
        return gradient


def _summed(value: Tensor) -> Tensor:
    result: Tensor = _Sum.apply(value)
    return result


@torch.no_grad()
def _track(norm: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor) -> None:
    if norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)
