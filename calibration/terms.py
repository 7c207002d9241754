"""What a layer can cost, term by term: each a function of the widths that grows with them.

A runtime computes channels in blocks. Rounding up to whole blocks is one cost, another is that a
tensor whose last block is not full takes a slower path: the tail terms. On ResNet-20 under ONNX
Runtime they take the held-out error from 1.1 % to 0.4 %. And kernels
compute four blocks of outputs at a time: the wide terms, from 1.5 % to 1.2 % on ResNet-18.

Weights that fit a cache are read from it in every call; beyond its size all of them come from the
next one, since they are read in turn. How large the caches are for this process is not known, so
there is a term for each of several sizes: from 6.6 % to 4.2 % on VGG-16, which ranges from a
fiftieth to all of its latency.

Kernels need some work to reach their speed, so a layer's time falls more slowly than its MACs: the
ramp terms, from 1.9 % to 1.8 % on MobileNetV2 under OpenVINO, from 1.5 % to 1.4 % on ResNet-18.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calibration.cost import NetworkCost

WIDE = 4  # blocks of outputs a kernel computes at a time
# sizes, as shares of the dense network's weights
CACHES = tuple(2.0 ** (-step / 2) for step in range(14))
SHARP = 8  # how suddenly weights fall out of a cache that they outgrow, as an exponent
RAMP = 0.1  # of a layer's dense MACs: with so few it runs at about half its speed
UNBLOCKED = 4  # sizes of at most this many are never blocked: an image's channels, depthwise inputs

Lifts = tuple[Tensor, Tensor, Tensor]


class Terms(nn.Module):
    """(N, G) kept channels -> (N, T) terms, each of some 1 at the dense widths, or 0 there."""

    def __init__(self, cost: NetworkCost, block: int) -> None:
        super().__init__()
        self.block = block
        # not stored with a predictor: the network has them
        branches = torch.tensor(cost.branches, dtype=torch.float32)
        self.register_buffer("branches", branches, persistent=False)
        for name, array in (
            ("channels", cost.channels),
            ("unit_macs", cost.unit_macs),
            ("unit_weights", cost.unit_weights),
            ("out_full", cost.outputs.full),
            ("out_rows", cost.outputs.rows),
            ("in_full", cost.inputs.full),
            ("in_rows", cost.inputs.rows),
        ):
            self.register_buffer(name, torch.tensor(array, dtype=torch.float32))

    @property
    def groups(self) -> int:
        return len(self.get_buffer("channels"))

    @property
    def layers(self) -> int:
        return len(self.get_buffer("unit_macs"))

    @property
    def kinds(self) -> tuple[tuple[str, int], ...]:
        """Kind of term -> how many in a row, in the order of the columns."""
        plain = (
            *(("constant", 1), ("MACs", self.layers), ("widths", self.groups)),
            ("streamed weights", len(CACHES)),
            ("ramp", self.layers),
        )
        count = len(self.get_buffer("branches"))
        last = (("branches", count),) if count else ()
        if self.block == 1:
            return (*plain, *last)
        tails = (("output tails", self.layers), ("input tails", self.layers))
        whole = (("block MACs", self.layers), ("wide MACs", self.layers))
        return (*plain, *whole, *tails, ("width tails", self.groups), *last)

    def dense_macs(self) -> Tensor:
        """(L,) multiply-adds of each layer at full width."""
        dense: Tensor = (
            self.get_buffer("unit_macs") * self.get_buffer("out_full") * self.get_buffer("in_full")
        )
        return dense

    def sizes(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """(N, L) output and input channels of every layer."""
        gone = self.get_buffer("channels") - kept
        return (
            self.get_buffer("out_full") - gone @ self.get_buffer("out_rows").T,
            self.get_buffer("in_full") - gone @ self.get_buffer("in_rows").T,
        )

    def lifts(self, kept: Tensor) -> Lifts:
        """What rounding adds to `sizes`, (N, L) each: outputs and inputs up to whole blocks, and
        outputs up to four of them. No gradient, hence straight-through."""
        outputs, inputs = self.sizes(kept.detach())
        return (
            self._lift(outputs, self.get_buffer("out_full")),
            self._lift(inputs, self.get_buffer("in_full")),
            self._lift(outputs, self.get_buffer("out_full"), WIDE),
        )

    def _lift(self, sizes: Tensor, full: Tensor, blocks: int = 1) -> Tensor:
        block = blocks * self.block
        up = torch.ceil(sizes / block) * block - sizes
        return up * (full > UNBLOCKED)

    def forward(self, kept: Tensor, lifts: Lifts | None = None) -> Tensor:
        """`lifts` fixes the rounding, for gradient checks."""
        outputs, inputs = self.sizes(kept)
        unit, shares = self.get_buffer("unit_macs"), kept / self.get_buffer("channels")
        dense = self.dense_macs()
        macs = outputs * inputs * (unit / dense)
        streamed = self._streamed(outputs, inputs)
        ramp = macs * (1 + RAMP) / (macs + RAMP)
        columns = [torch.ones_like(kept[:, :1]), macs, shares, streamed, ramp]
        if self.block > 1:
            up_out, up_in, up_wide = self.lifts(kept) if lifts is None else lifts
            tail = self._lift(kept.detach(), self.get_buffer("channels")) > 0
            full = self.blocked_dense()
            deep = (inputs + up_in) * (unit / full)
            columns += [
                (outputs + up_out) * deep,
                (outputs + up_wide) * deep,
                macs * (up_out > 0),
                macs * (up_in > 0),
                shares * tail,
            ]
        return torch.cat([*columns, self.standing(kept)], dim=1)

    def standing(self, kept: Tensor) -> Tensor:
        """(N, B) 1 for each removable branch of which anything is kept, else 0.

        It stands for what costs the same at every width of the branch, such as its sum. The
        slope is that of the branch's share.
        """
        shares = (kept / self.get_buffer("channels")) @ self.get_buffer("branches").T
        return shares + ((shares > 0).to(shares.dtype) - shares).detach()

    def _streamed(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """(N, L) sizes -> (N, C) weights that do not come from a cache of each of CACHES."""
        unit = self.get_buffer("unit_weights")
        every = unit @ (self.get_buffer("out_full") * self.get_buffer("in_full"))
        share = (outputs * inputs) @ (unit / every)
        caches = torch.tensor(CACHES, dtype=share.dtype, device=share.device)
        # of all weights w: w / (1 + (c / w)^SHARP), made 1 at the dense network
        over = share[:, None] ** SHARP
        return share[:, None] * over / (over + caches**SHARP) * (1 + caches**SHARP)

    def blocked_dense(self) -> Tensor:
        """(L,) multiply-adds of each layer at full width, in whole blocks."""
        up_out, up_in, _ = self.lifts(self.get_buffer("channels")[None])
        outputs, inputs = self.get_buffer("out_full") + up_out, self.get_buffer("in_full") + up_in
        whole: Tensor = (self.get_buffer("unit_macs") * outputs * inputs)[0]
        return whole

    def shares(self) -> Tensor:
        """(T,) each term's part of its kind if time went by the MACs or channels of the kind."""
        macs, channels = self.dense_macs(), self.get_buffer("channels")
        parts = {
            "constant": torch.ones(1),
            "branches": torch.full_like(self.get_buffer("branches")[:, 0], 1)
            / max(1, len(self.get_buffer("branches"))),
            "streamed weights": torch.full((len(CACHES),), 1 / len(CACHES)),
            "widths": channels / channels.sum(),
            "width tails": channels / channels.sum(),
        }
        return torch.cat([parts.get(kind, macs / macs.sum()) for kind, _ in self.kinds])
