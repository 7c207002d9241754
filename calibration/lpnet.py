"""LPNet: the latency predict net of W-Gates (arXiv 2007.02066), three fully connected layers.

Input: width fractions, per-layer MACs, the same MACs with channels rounded up to the runtime's
block, and both totals. Output: log of the latency as a multiple of the dense anchor's. The
rounding is straight-through: the forward sees the step, the gradient its slope.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from torch import Tensor, nn

from calibration.cost import NetworkCost
from calibration.database import LatencyRecord
from calibration.errors import PredictorError
from calibration.skeleton import Skeleton
from calibration.widths import WidthVector, dump, whole
from targets.fingerprint import Fingerprint

FEWEST_RECORDS = 20
FOLDS = 5


@dataclass(frozen=True)
class HeldOutError:
    """How wrong the LPNet was on records it did not see (cross-validation)."""

    records: int
    mean: float  # of |predicted / measured - 1|
    p90: float
    within_5: float  # share of records
    within_10: float
    spearman: float
    interval_90: float  # half width: 90 % of ratios measured / predicted lie in exp(+-this)
    interval_95: float


@dataclass(frozen=True)
class FitOptions:
    """How one LPNet is trained."""

    steps: int = 1200
    lr: float = 3e-3
    weight_decay: float = 0.5
    hidden: tuple[int, int] = (256, 64)
    seed: int = 0


class LPNet(nn.Module):
    """Differentiable `predict_ms`, bound to one network, one fingerprint and the range it saw."""

    def __init__(self, cost: NetworkCost, block: int, options: FitOptions) -> None:
        super().__init__()
        self.block, self.options = block, options
        for name, array in (
            ("channels", cost.channels),
            ("unit_macs", cost.unit_macs),
            ("out_full", cost.outputs.full),
            ("out_rows", cost.outputs.rows),
            ("in_full", cost.inputs.full),
            ("in_rows", cost.inputs.rows),
        ):
            self.register_buffer(name, torch.tensor(array, dtype=torch.float32))
        groups, layers = len(cost.channels), len(cost.unit_macs)
        inputs = groups + 2 * layers + 2
        first, second = options.hidden
        self.body = nn.Sequential(
            *(nn.Linear(inputs, first), nn.ReLU()),
            *(nn.Linear(first, second), nn.ReLU()),
            nn.Linear(second, 1),
        )
        self.register_buffer("input_mean", torch.zeros(inputs))
        self.register_buffer("input_std", torch.ones(inputs))
        self.register_buffer("seen_low", torch.zeros(groups))
        self.register_buffer("seen_high", self.get_buffer("channels").clone())
        self.register_buffer("anchor_ms", torch.ones(()))
        self.fingerprint: Fingerprint | None = None
        self.held_out: HeldOutError | None = None
        self.skeleton_sha256 = ""
        self.held_out_ratios: tuple[float, ...] = ()  # each record as predicted by a net without it

    def features(self, kept: Tensor, offsets: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(N, G) kept channels -> (N, inputs); `offsets` fixes the rounding (gradient checks)."""
        channels, unit = self.get_buffer("channels"), self.get_buffer("unit_macs")
        outputs = self.get_buffer("out_full") - (channels - kept) @ self.get_buffer("out_rows").T
        inputs = self.get_buffer("in_full") - (channels - kept) @ self.get_buffer("in_rows").T
        up = offsets if offsets is not None else self.rounding(outputs, inputs)
        exact = unit * outputs * inputs
        rounded = unit * (outputs + up[0]) * (inputs + up[1])
        dense = unit * self.get_buffer("out_full") * self.get_buffer("in_full")
        totals = [torch.log(macs.sum(1, keepdim=True) / dense.sum()) for macs in (exact, rounded)]
        joined: Tensor = torch.cat(
            [kept / channels, exact / dense, rounded / dense, *totals], dim=1
        )
        return joined

    def rounding(self, outputs: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """What rounding up to the block adds; without gradient, hence straight-through."""

        def lift(sizes: Tensor, full: Tensor) -> Tensor:
            up = torch.ceil(sizes / self.block) * self.block - sizes
            # one input a filter (depthwise) and the image's own channels are not blocked
            return torch.where(full <= 4, torch.zeros_like(up), up).detach()

        return (
            lift(outputs, self.get_buffer("out_full")),
            lift(inputs, self.get_buffer("in_full")),
        )

    def forward(self, kept: Tensor, offsets: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(N, G) kept channels -> (N,) log of the latency ratio to the dense anchor."""
        x = (self.features(kept, offsets) - self.get_buffer("input_mean")) / self.get_buffer(
            "input_std"
        )
        out: Tensor = self.body(x).squeeze(1)
        return out

    def predict_ms(self, kept: Tensor) -> Tensor:
        """(N, G) kept channels -> (N,) milliseconds; PredictorError outside the range seen."""
        low, high = self.get_buffer("seen_low"), self.get_buffer("seen_high")
        outside = (~((kept >= low - 0.5) & (kept <= high + 0.5))).any(0).nonzero().ravel()
        if len(outside):
            group = int(outside[0])
            raise PredictorError(
                f"width {float(kept[:, group].min()):g} to {float(kept[:, group].max()):g} of "
                f"group {group} is outside the {float(low[group]):g} to {float(high[group]):g} "
                "the LPNet was fitted on",
                fix="run: pipeline calibrate with more samples",
            )
        found: Tensor = self.get_buffer("anchor_ms") * self(kept).exp()
        return found

    def predict_one_ms(self, widths: WidthVector) -> float:
        """Milliseconds of one width vector."""
        with torch.no_grad():
            kept = torch.tensor(
                [widths.kept], dtype=torch.float32, device=self.get_buffer("anchor_ms").device
            )
            return float(self.predict_ms(kept))

    def save(self, folder: Path) -> None:
        """Write `lpnet.safetensors` and `lpnet.json`."""
        assert self.fingerprint is not None
        assert self.held_out is not None
        save_file(self.state_dict(), folder / "lpnet.safetensors")
        document = {
            "schema": 1,
            "skeleton_sha256": self.skeleton_sha256,
            "block": self.block,
            "options": asdict(self.options),
            "fingerprint": self.fingerprint.to_json(),
            "held_out": asdict(self.held_out),
        }
        (folder / "lpnet.json").write_text(dump(document), encoding="utf-8")

    @classmethod
    def open(cls, folder: Path, skeleton: Skeleton) -> Self:
        """Read an LPNet back; PredictorError if it belongs to another network or is damaged."""
        try:
            document = json.loads((folder / "lpnet.json").read_text(encoding="utf-8"))
            if document["schema"] != 1 or document["skeleton_sha256"] != skeleton.sha256:
                raise PredictorError(
                    "the LPNet is of another network", fix="run: pipeline calibrate"
                )
            options = document["options"]
            options["hidden"] = tuple(options["hidden"])
            net = cls(NetworkCost.of(skeleton), whole(document["block"], 1), FitOptions(**options))
            net.load_state_dict(load_file(folder / "lpnet.safetensors"))
            net.fingerprint = Fingerprint.from_json(document["fingerprint"])
            found = {name: float(value) for name, value in document["held_out"].items()}
            net.held_out = HeldOutError(int(found.pop("records")), **found)
            net.skeleton_sha256 = skeleton.sha256
        except (
            AttributeError,
            KeyError,
            OverflowError,
            TypeError,
            ValueError,
            RuntimeError,
            safetensors.SafetensorError,
        ) as error:
            raise PredictorError(
                f"the stored LPNet is damaged: {error!r}", fix="run: pipeline calibrate"
            ) from error
        return net.eval().requires_grad_(False)


def fit_lpnet(
    records: Sequence[LatencyRecord],
    skeleton: Skeleton,
    fingerprint: Fingerprint,
    *,
    block: int,
    options: FitOptions | None = None,
    on_fold: Callable[[int, int], None] | None = None,
) -> LPNet:
    """Fit on all records; the held-out error comes from 5-fold cross-validation.

    Every record is predicted once by a net that did not see it; the net returned saw them all.
    """
    options = FitOptions() if options is None else options
    if len(records) < FEWEST_RECORDS:
        raise PredictorError(
            f"{len(records)} measured networks are too few for an LPNet "
            f"(at least {FEWEST_RECORDS})",
            fix="run: pipeline calibrate --samples 60",
        )
    cost = NetworkCost.of(skeleton)
    kept = torch.tensor([record.widths.kept for record in records], dtype=torch.float32)
    target = torch.tensor([record.ratio for record in records]).log()
    folds = np.random.default_rng(options.seed).permutation(len(records)) % FOLDS
    residuals = torch.empty(len(records))
    for fold in range(FOLDS):
        out = torch.from_numpy(folds == fold)
        net = _train(LPNet(cost, block, options), kept[~out], target[~out])
        with torch.no_grad():
            residuals[out] = target[out] - net(kept[out])
        if on_fold is not None:
            on_fold(fold + 1, FOLDS + 1)
    net = _train(LPNet(cost, block, options), kept, target)
    if on_fold is not None:
        on_fold(FOLDS + 1, FOLDS + 1)
    net.get_buffer("anchor_ms").fill_(float(np.median([r.anchor_ms for r in records])))
    net.held_out = _held_out(target, residuals)
    net.held_out_ratios = tuple((target - residuals).exp().tolist())
    net.fingerprint, net.skeleton_sha256 = fingerprint, skeleton.sha256
    return net


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from threads, and lose much where others run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def _train(net: LPNet, kept: Tensor, target: Tensor) -> LPNet:
    """Full-batch AdamW on squared log error, cosine to zero; deterministic by the seed."""
    options = net.options
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(options.seed)
        for layer in net.body:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    inputs = net.features(kept).detach()
    net.get_buffer("input_mean").copy_(inputs.mean(0))
    # a constant input carries nothing; a tiny divisor would blow it up outside the samples
    net.get_buffer("input_std").copy_(inputs.std(0).clamp_min(0.02))
    net.get_buffer("seen_low").copy_(kept.min(0).values)
    net.get_buffer("seen_high").copy_(kept.max(0).values)
    optimizer = torch.optim.AdamW(
        net.body.parameters(), lr=options.lr, weight_decay=options.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    for _ in range(options.steps):
        loss = nn.functional.mse_loss(net(kept), target)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return net.eval().requires_grad_(False)


def _held_out(target: Tensor, residuals: Tensor) -> HeldOutError:
    error = (residuals.exp() - 1).abs()
    size = residuals.abs().sort().values

    def conformal(share: float) -> float:
        return float(size[min(len(size) - 1, int(np.ceil(share * (len(size) + 1))) - 1)])

    return HeldOutError(
        records=len(target),
        mean=float(error.mean()),
        p90=float(error.quantile(0.9)),
        within_5=float((error <= 0.05).float().mean()),
        within_10=float((error <= 0.10).float().mean()),
        spearman=float(spearmanr(target, target - residuals).statistic),
        interval_90=conformal(0.90),
        interval_95=conformal(0.95),
    )
