"""LPNet: the latency predict net of W-Gates, bound to one network and one fingerprint.

The net inside is `structured`, a non-negative sum of what layers cost, or `plain`, the three fully
connected layers of the paper (arXiv 2007.02066). Both see channels in the runtime's blocks; the
rounding is straight-through: the forward sees the step, the gradient its slope.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from calibration.cost import NetworkCost
from calibration.database import LatencyRecord
from calibration.errors import PredictorError
from calibration.heldout import FOLDS, HeldOutError, judges_of, outer_folds
from calibration.pace import RANGE, exposures
from calibration.plain import Plain
from calibration.schemas import LPNET
from calibration.skeleton import Skeleton
from calibration.structured import Structured
from calibration.terms import Lifts, Terms
from calibration.widths import WidthVector, dump, whole
from targets.fingerprint import Fingerprint

FEWEST_RECORDS = 20
FEWEST_WITH_PRIOR = 8
CI95 = 2 * 1.96  # a 95 % interval in standard errors

Net = Literal["structured", "plain"]


@dataclass(frozen=True)
class FitOptions:
    """Which net is fitted, and how."""

    net: Net = "structured"
    steps: int = 1200  # of gradient descent; the structured net needs none
    seed: int = 0
    # weights of the same network's law on another device or runtime, which a structured net's
    # are drawn to where records are few
    prior: tuple[float, ...] = ()


class LPNet(nn.Module):
    """Differentiable `predict_ms`, bound to one network, one fingerprint and the range it saw."""

    def __init__(self, terms: Terms, options: FitOptions, centres: int = 0) -> None:
        super().__init__()
        self.options = options
        self.net = Structured(terms, centres) if options.net == "structured" else Plain(terms)
        self.register_buffer("seen_low", torch.zeros(terms.groups))
        self.register_buffer("seen_high", terms.get_buffer("channels").clone())
        self.register_buffer("anchor_ms", torch.ones(()))
        self.fingerprint: Fingerprint | None = None
        self.held_out: HeldOutError | None = None
        self.skeleton_sha256 = ""
        self.held_out_ratios: tuple[float, ...] = ()  # each record as predicted by a net without it

    @property
    def block(self) -> int:
        return self.net.terms.block

    def forward(self, kept: Tensor, lifts: Lifts | None = None) -> Tensor:
        """(N, G) kept channels -> (N,) log of the latency ratio to the dense anchor.

        `lifts` fixes the rounding to blocks, for gradient checks.
        """
        found: Tensor = self.net(kept, lifts)
        return found

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

    def interval_ms(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """(N, G) kept channels -> (N,) low and high ends of the 90 % interval in milliseconds.

        Conformal: it holds for networks drawn as the measured ones were.
        """
        assert self.held_out is not None
        middle, spread = self.predict_ms(kept), self.held_out.spread
        return middle / spread, middle * spread

    def save(self, folder: Path) -> None:
        """Write `lpnet.safetensors` and `lpnet.json`."""
        assert self.fingerprint is not None
        assert self.held_out is not None
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "lpnet.safetensors")
        document = {
            "schema": LPNET,
            "skeleton_sha256": self.skeleton_sha256,
            "block": self.block,
            "options": asdict(self.options),
            "fingerprint": self.fingerprint.to_json(),
            "held_out": asdict(self.held_out),
        }
        (folder / "lpnet.json").write_text(dump(document), encoding="utf-8")

    def as_prior(self, block: int) -> tuple[float, ...]:
        """What an LPNet of the same network may begin from on a device with this `block`.

        PredictorError where the two see a network in different terms.
        """
        if not isinstance(self.net, Structured) or (self.block == 1) != (block == 1):
            raise PredictorError(
                "this LPNet has no terms that another could begin from",
                fix="give one fitted by pipeline calibrate on a runtime that works in blocks, too",
            )
        weights: list[float] = self.net.get_buffer("weights").tolist()
        return tuple(weights)

    @classmethod
    def open(cls, folder: Path, skeleton: Skeleton) -> Self:
        """Read an LPNet back; PredictorError if it belongs to another network or is damaged."""
        try:
            document = json.loads((folder / "lpnet.json").read_text(encoding="utf-8"))
            _check_origin(document, skeleton)
            return cls._from(document, load_file(folder / "lpnet.safetensors"), skeleton)
        except (
            AttributeError,
            KeyError,
            OverflowError,
            RecursionError,
            TypeError,
            ValueError,
            RuntimeError,
            safetensors.SafetensorError,
        ) as error:
            raise PredictorError(
                f"the stored LPNet is damaged: {error!r}", fix="run: pipeline calibrate"
            ) from error

    @classmethod
    def _from(cls, document: Any, tensors: dict[str, Tensor], skeleton: Skeleton) -> Self:
        options = FitOptions(**document["options"])
        options = replace(options, prior=tuple(float(weight) for weight in options.prior))
        if options.net not in get_args(Net):
            raise ValueError(f"{options.net!r} is no net")
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise ValueError("a tensor is not finite")
        centres = len(tensors["net.centres"]) if options.net == "structured" else 0
        terms = Terms(NetworkCost.of(skeleton), whole(document["block"], 1))
        lpnet = cls(terms, options, centres)
        lpnet.load_state_dict(tensors)
        lpnet.fingerprint = Fingerprint.from_json(document["fingerprint"])
        found = {name: float(value) for name, value in document["held_out"].items()}
        lpnet.held_out = HeldOutError(int(found.pop("records")), **found)
        lpnet.skeleton_sha256 = skeleton.sha256
        return lpnet.eval().requires_grad_(False)


def _check_origin(document: Any, skeleton: Skeleton) -> None:
    """PredictorError unless the LPNet is of this version and this network."""
    again = "run: pipeline calibrate"
    if document["schema"] != LPNET:
        said = f"the stored LPNet has schema {document['schema']}, this version reads {LPNET}"
        raise PredictorError(said, fix=again)
    if document["skeleton_sha256"] != skeleton.sha256:
        raise PredictorError("the LPNet is of another network", fix=again)


@dataclass(frozen=True)
class _Records:
    """Measurements as arrays."""

    kept: Tensor  # (N, G) channels
    ratios: NDArray[np.float64]  # (N,)
    errors: NDArray[np.float64]  # (N,) standard errors of the log ratios
    exposures: NDArray[np.float64]  # (N,) see calibration.pace

    @classmethod
    def of(cls, records: Sequence[LatencyRecord]) -> _Records:
        low, high = np.array([record.ratio_ci95 for record in records]).T
        exposed = exposures(records)
        return cls(
            torch.tensor([record.widths.kept for record in records], dtype=torch.float32),
            np.array([record.ratio for record in records]),
            np.hypot(np.log(high / low) / CI95, RANGE * exposed),
            exposed,
        )

    def only(self, rows: NDArray[np.bool_]) -> _Records:
        arrays = (self.ratios, self.errors, self.exposures)
        return _Records(self.kept[torch.from_numpy(rows)], *(array[rows] for array in arrays))


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
    The error is that of `judges_of` the records.
    """
    told = on_fold if on_fold is not None else lambda done, total: None
    lpnet = fit_once(records, skeleton, fingerprint, block=block, options=options)
    told(1, FOLDS + 1)
    every = _Records.of(records)
    predicted = np.empty(len(records))
    folds = outer_folds(len(records), lpnet.options.seed)
    for fold in range(FOLDS):
        out = folds == fold
        net = _train(every.only(~out), skeleton, block, lpnet.options)
        with torch.no_grad():
            predicted[out] = net(every.only(out).kept).exp().double().numpy()
        told(fold + 2, FOLDS + 1)
    judges = judges_of(records, skeleton.groups.full(), fewest=FEWEST_RECORDS)
    lpnet.held_out = HeldOutError.of(predicted[judges], every.ratios[judges])
    lpnet.held_out_ratios = tuple(predicted.tolist())
    return lpnet


def fit_once(
    records: Sequence[LatencyRecord],
    skeleton: Skeleton,
    fingerprint: Fingerprint,
    *,
    block: int,
    options: FitOptions | None = None,
) -> LPNet:
    """Fit without cross-validation: a sixth of the time; states no error and cannot be stored.

    `block=1` makes an LPNet without steps, for gates to learn under.
    """
    options = FitOptions() if options is None else options
    fewest = FEWEST_WITH_PRIOR if options.prior else FEWEST_RECORDS
    if len(records) < fewest:
        raise PredictorError(
            f"{len(records)} measured networks are too few for an LPNet (at least {fewest})",
            fix="run: pipeline calibrate --samples 60",
        )
    lpnet = _train(_Records.of(records), skeleton, block, options)
    lpnet.get_buffer("anchor_ms").fill_(float(np.median([r.anchor_ms for r in records])))
    lpnet.fingerprint, lpnet.skeleton_sha256 = fingerprint, skeleton.sha256
    return lpnet


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
def _train(seen: _Records, skeleton: Skeleton, block: int, options: FitOptions) -> LPNet:
    lpnet = LPNet(Terms(NetworkCost.of(skeleton), block), options)
    if isinstance(lpnet.net, Structured):
        measured = lpnet.net.measured(seen.kept, seen.ratios, seen.errors, seen.exposures)
        lpnet.net.fit(seen.kept, measured, np.array(options.prior))
    else:
        ratios = torch.tensor(seen.ratios, dtype=torch.float32)
        lpnet.net.fit(seen.kept, ratios, steps=options.steps, seed=options.seed)
    lpnet.get_buffer("seen_low").copy_(seen.kept.min(0).values)
    lpnet.get_buffer("seen_high").copy_(seen.kept.max(0).values)
    return lpnet.eval().requires_grad_(False)
