"""A moving average of a module's tensors, to be evaluated and kept instead of the last weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of all floating tensors; others, such as counters, are copied.

    The decay starts small, (1 + step) / (10 + step), so that the first weights are soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay = module, decay
        self._averaged = {name: value.clone() for name, value in _tensors(module).items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the module's tensors in, after optimiser step number `step` from 0."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        current = _tensors(self._module)
        moving = [name for name, value in current.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self._averaged[name] for name in moving], [current[name] for name in moving], share
        )
        for name in current.keys() - set(moving):
            self._averaged[name].copy_(current[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The module holds the average inside, and its own tensors again afterwards."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the module's tensors and the average."""
        for name, value in _tensors(self._module).items():
            kept = value.clone()
            value.copy_(self._averaged[name])
            self._averaged[name].copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._averaged)

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        for name, value in self._averaged.items():
            value.copy_(tensors[name])


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in module.state_dict().items()}
