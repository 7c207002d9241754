"""The paper's LPNet (arXiv 2007.02066): three fully connected layers, kept for comparison.

Input: width fractions, per-layer MACs, the same MACs in whole blocks of channels, both totals, and
which removable branches stand.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calibration.terms import Lifts, Terms

HIDDEN = (256, 64)
LR, WEIGHT_DECAY = 3e-3, 0.5
LEAST_SPREAD = 0.02  # a constant input carries nothing; a tiny divisor would blow it up


class Plain(nn.Module):
    """Layers on standardised inputs."""

    def __init__(self, terms: Terms) -> None:
        super().__init__()
        self.terms = terms
        inputs = terms.groups + 2 * terms.layers + 2 + len(terms.get_buffer("branches"))
        self.body = nn.Sequential(
            *(nn.Linear(inputs, HIDDEN[0]), nn.ReLU()),
            *(nn.Linear(HIDDEN[0], HIDDEN[1]), nn.ReLU()),
            nn.Linear(HIDDEN[1], 1),
        )
        self.register_buffer("input_mean", torch.zeros(inputs))
        self.register_buffer("input_std", torch.ones(inputs))

    def inputs(self, kept: Tensor, lifts: Lifts | None = None) -> Tensor:
        """(N, G) kept channels -> (N, inputs)."""
        terms = self.terms
        outputs, inputs = terms.sizes(kept)
        up_out, up_in, _ = terms.lifts(kept) if lifts is None else lifts
        dense, unit = terms.dense_macs(), terms.get_buffer("unit_macs")
        exact = unit * outputs * inputs
        blocked = unit * (outputs + up_out) * (inputs + up_in)
        totals = [torch.log(macs.sum(1, keepdim=True) / dense.sum()) for macs in (exact, blocked)]
        shares = kept / terms.get_buffer("channels")
        ratios = [exact / dense, blocked / dense]
        return torch.cat([shares, *ratios, *totals, terms.standing(kept)], dim=1)

    def forward(self, kept: Tensor, lifts: Lifts | None = None) -> Tensor:
        """(N, G) kept channels -> (N,) log of the latency ratio to the dense anchor."""
        mean, spread = self.get_buffer("input_mean"), self.get_buffer("input_std")
        found: Tensor = self.body((self.inputs(kept, lifts) - mean) / spread).squeeze(1)
        return found

    def fit(self, kept: Tensor, ratios: Tensor, *, steps: int, seed: int) -> None:
        """Full-batch AdamW on squared log error, cosine to zero; deterministic by the seed."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            for layer in self.body:
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
        inputs = self.inputs(kept).detach()
        self.get_buffer("input_mean").copy_(inputs.mean(0))
        self.get_buffer("input_std").copy_(inputs.std(0).clamp_min(LEAST_SPREAD))
        optimizer = torch.optim.AdamW(self.body.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            loss = nn.functional.mse_loss(self(kept), ratios.log())
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
