from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file

from calibration.cost import NetworkCost
from calibration.database import LatencyRecord
from calibration.errors import PredictorError
from calibration.heldout import judges_of
from calibration.lpnet import FitOptions, LPNet, fit_lpnet, fit_once
from calibration.sampling import first_widths
from calibration.schemas import LPNET
from calibration.skeleton import Skeleton
from calibration.structured import ROWS
from targets.base import TargetOptions
from targets.fake import FakeTarget

from .chain import chain

BLOCK = 16
NOISE = 0.003  # of a measured ratio
LOW = float(np.exp(-1.96 * NOISE))
WIDTHS = (64, 96, 128, 128, 160)
FINGERPRINT = FakeTarget(TargetOptions(batch=2)).fingerprint()


def known_ratio(skeleton: Skeleton, kept: tuple[int, ...]) -> float:
    """A constant and MACs with channels rounded up to the block, dearer if the last is not full."""
    cost = NetworkCost.of(skeleton)

    def ms(widths: np.ndarray) -> float:
        sizes = [law.at(widths, cost.channels) for law in (cost.outputs, cost.inputs)]
        out, inner = (np.where(s <= 4, s, np.ceil(s / BLOCK) * BLOCK) for s in sizes)
        slow = 1 + 0.15 * (sizes[0] % BLOCK != 0)
        return 0.2 + float((cost.unit_macs * out * inner * slow).sum()) / 2e7

    return ms(np.array([kept], float)) / ms(cost.channels[None])


def records_of(skeleton: Skeleton, count: int) -> list[LatencyRecord]:
    rng = np.random.default_rng(0)
    found = []
    for widths in first_widths(skeleton.groups, 8, count, seed=0):
        ratio = known_ratio(skeleton, widths.kept) * float(np.exp(rng.normal(0, NOISE)))
        found.append(LatencyRecord(widths, ratio, (ratio * LOW, ratio / LOW), 4.0, 4.0 * ratio, ()))
    return found


@pytest.fixture(scope="module")
def skeleton() -> Skeleton:
    return chain(WIDTHS)


@pytest.fixture(scope="module")
def fitted(skeleton: Skeleton) -> LPNet:
    return fit_lpnet(records_of(skeleton, 60), skeleton, FINGERPRINT, block=BLOCK)


def kept_of(*rows: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_a_known_law_with_steps_is_learned(skeleton: Skeleton) -> None:
    told: list[tuple[int, int]] = []
    records = records_of(skeleton, 150)
    net = fit_lpnet(
        records,
        skeleton,
        FINGERPRINT,
        block=BLOCK,
        on_fold=lambda done, total: told.append((done, total)),
    )
    held = net.held_out
    assert held is not None
    assert held.records == judges_of(records, skeleton.groups.full(), fewest=1).sum()
    assert held.mean < 0.005
    assert held.within_5 == 1
    assert held.spearman > 0.995
    assert held.interval_90 < 0.012
    assert told == [(fold, 6) for fold in range(1, 7)]
    unseen = first_widths(skeleton.groups, 8, 40, seed=9)
    errors = [net.predict_one_ms(w) / 4 / known_ratio(skeleton, w.kept) - 1 for w in unseen]
    assert np.abs(errors).mean() < 0.005
    assert np.abs(errors).max() < 0.03


def test_forty_records_are_enough_for_five_percent(skeleton: Skeleton) -> None:
    net = fit_once(records_of(skeleton, 40), skeleton, FINGERPRINT, block=BLOCK)
    unseen = first_widths(skeleton.groups, 8, 60, seed=9)
    errors = [net.predict_one_ms(w) / 4 / known_ratio(skeleton, w.kept) - 1 for w in unseen]
    assert np.mean(np.abs(errors) < 0.05) > 0.9


def test_the_plain_net_learns_less_and_is_kept(skeleton: Skeleton, tmp_path: Path) -> None:
    net = fit_lpnet(
        records_of(skeleton, 100), skeleton, FINGERPRINT, block=BLOCK, options=FitOptions("plain")
    )
    assert net.held_out is not None
    assert 0.005 < net.held_out.mean < 0.1
    net.save(tmp_path)
    opened = LPNet.open(tmp_path, skeleton)
    kept = kept_of(WIDTHS, (32, 48, 64, 64, 80))
    assert torch.equal(opened.predict_ms(kept), net.predict_ms(kept))
    assert opened.options.net == "plain"


def test_the_interval_covers_what_it_promises(skeleton: Skeleton) -> None:
    """90 % of new networks, measured with the same noise, lie in the interval."""
    net = fit_lpnet(records_of(skeleton, 100), skeleton, FINGERPRINT, block=BLOCK)
    rng = np.random.default_rng(5)
    unseen = first_widths(skeleton.groups, 8, 400, seed=9)
    low, high = net.interval_ms(kept_of(*(widths.kept for widths in unseen)))
    noise = np.exp(rng.normal(0, NOISE, len(unseen)))
    measured = 4 * np.array([known_ratio(skeleton, widths.kept) for widths in unseen]) * noise
    inside = (low.numpy() <= measured) & (measured <= high.numpy())
    assert 0.82 <= inside.mean() <= 0.98


def test_an_ill_measured_record_counts_little(skeleton: Skeleton) -> None:
    records = records_of(skeleton, 60)
    spoilt = [
        replace(r, ratio=r.ratio * 1.3, ratio_ci95=(r.ratio * 0.9, r.ratio * 1.9))
        if index % 4 == 0
        else r
        for index, r in enumerate(records)
    ]
    net = fit_once(spoilt, skeleton, FINGERPRINT, block=BLOCK)
    errors = [net.predict_one_ms(r.widths) / 4 / r.ratio - 1 for r in records]
    assert np.abs(errors).mean() < 0.01


def test_a_whole_block_more_is_never_faster(fitted: LPNet) -> None:
    rng = np.random.default_rng(3)
    kept = kept_of(*(tuple(rng.integers(8, w - BLOCK + 1) for w in WIDTHS) for _ in range(200)))
    before = fitted(kept)
    for group in range(len(WIDTHS)):
        wider = kept.clone()
        wider[:, group] += BLOCK
        assert (fitted(wider) >= before - 1e-6).all()


def test_gates_get_a_net_without_steps(skeleton: Skeleton) -> None:
    net = fit_once(records_of(skeleton, 80), skeleton, FINGERPRINT, block=1)
    line = torch.tensor(WIDTHS, dtype=torch.float32).repeat(57, 1)
    line[:, 0] = torch.arange(8, 65)
    ms = net.predict_ms(line).double()
    rises = ms.diff()
    assert (rises > 0).all()
    assert rises.max() < 1.5 * rises.min()
    assert net.held_out is None


def test_ten_thousand_width_vectors_take_milliseconds(fitted: LPNet) -> None:
    kept = torch.tensor(WIDTHS, dtype=torch.float32).repeat(10_000, 1)
    net = copy.deepcopy(fitted)
    net.net.centres = torch.rand(400, len(WIDTHS))  # the largest correction there can be
    net.net.heights = torch.full((400,), 1e-3)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        net.predict_ms(kept)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.15  # some 5 ms on one quiet core; benchmarks/calibration.py tells


def test_rows_are_predicted_alike_however_many_there_are(fitted: LPNet) -> None:
    kept = torch.tensor(WIDTHS, dtype=torch.float32).repeat(2 * ROWS + 1, 1)
    kept[:, 0] = torch.arange(len(kept)) % 57 + 8
    together, kept = fitted.predict_ms(kept.requires_grad_()), kept.detach()
    alone = torch.cat([fitted.predict_ms(row[None]) for row in kept[:: ROWS // 2]])
    torch.testing.assert_close(together.detach()[:: ROWS // 2], alone)
    assert together.requires_grad


def test_the_held_out_error_is_consistent(fitted: LPNet, skeleton: Skeleton) -> None:
    held, records = fitted.held_out, records_of(skeleton, 60)
    assert held is not None
    judges = judges_of(records, skeleton.groups.full(), fewest=1)
    predicted = np.array(fitted.held_out_ratios)[judges]
    measured = np.array([record.ratio for record in records])[judges]
    errors = np.abs(predicted / measured - 1)
    assert held.mean == pytest.approx(errors.mean(), rel=1e-6)
    assert 0 <= held.mean <= held.p90
    assert 0 <= held.within_5 <= held.within_10 <= 1
    assert -1 <= held.spearman <= 1
    logs = np.abs(np.log(predicted / measured))
    assert (logs <= held.interval_90 + 1e-6).mean() >= 0.9


def test_the_held_out_error_is_of_nets_that_did_not_see_the_record(skeleton: Skeleton) -> None:
    """A record with a wild label is predicted as its neighbours are: nobody learned it."""
    records = records_of(skeleton, 60)
    wild = 17
    records[wild] = replace(records[wild], ratio=50 * records[wild].ratio)
    net = fit_lpnet(records, skeleton, FINGERPRINT, block=BLOCK)
    assert net.held_out_ratios[wild] < records[wild].ratio / 5


def test_the_same_records_give_the_same_net(fitted: LPNet, skeleton: Skeleton) -> None:
    again = fit_lpnet(records_of(skeleton, 60), skeleton, FINGERPRINT, block=BLOCK)
    ours, theirs = fitted.state_dict(), again.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert again.held_out == fitted.held_out


def test_the_gradient_agrees_with_finite_differences(fitted: LPNet) -> None:
    net = copy.deepcopy(fitted).double()
    kept = torch.tensor([[37.0, 50.0, 70.0, 91.0, 130.0]], dtype=torch.float64)
    lifts = net.net.terms.lifts(kept)
    assert max(float(lift.max()) for lift in lifts) > 0
    assert torch.equal(net(kept, lifts), net(kept))
    point = kept.clone().requires_grad_(True)
    net(point).sum().backward()  # straight-through: as if the rounding were fixed here
    assert point.grad is not None
    step = 1e-5
    for group in range(kept.shape[1]):
        nudge = torch.zeros_like(kept)
        nudge[0, group] = step
        rise = float(net(kept + nudge, lifts) - net(kept - nudge, lifts))
        assert float(point.grad[0, group]) == pytest.approx(rise / (2 * step), rel=1e-5, abs=1e-9)


def test_milliseconds_are_the_ratio_times_the_anchor(fitted: LPNet) -> None:
    kept = kept_of(WIDTHS, (32, 48, 64, 64, 80))
    assert torch.allclose(fitted.predict_ms(kept), 4 * fitted(kept).exp())
    assert fitted.predict_ms(kept).shape == (2,)


@pytest.mark.parametrize("width", [7.0, 65.0, float("nan")])
def test_widths_that_were_never_seen_are_refused(fitted: LPNet, width: float) -> None:
    kept = torch.tensor([[32.0, 48, 64, 64, 80], [width, 48, 64, 64, 80]])
    with pytest.raises(PredictorError, match="group 0 is outside the 8 to 64") as caught:
        fitted.predict_ms(kept)
    assert "calibrate" in caught.value.fix
    fitted.predict_ms(kept[:1])


def test_the_range_is_that_of_the_records_not_of_the_network(skeleton: Skeleton) -> None:
    records = [r for r in records_of(skeleton, 120) if max(r.widths.kept) < 128]
    net = fit_lpnet(records, skeleton, FINGERPRINT, block=BLOCK)
    with pytest.raises(PredictorError, match="outside"):
        net.predict_one_ms(skeleton.groups.full())


def test_too_few_records_are_refused(skeleton: Skeleton) -> None:
    with pytest.raises(PredictorError, match="19 measured networks are too few") as caught:
        fit_lpnet(records_of(skeleton, 19), skeleton, FINGERPRINT, block=BLOCK)
    assert "--samples" in caught.value.fix
    fit_lpnet(records_of(skeleton, 20), skeleton, FINGERPRINT, block=BLOCK)


# files


def test_a_stored_net_predicts_the_same(fitted: LPNet, skeleton: Skeleton, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    opened = LPNet.open(tmp_path, skeleton)
    kept = torch.tensor([w.kept for w in first_widths(skeleton.groups, 8, 40, seed=0)]).float()
    assert torch.equal(opened.predict_ms(kept), fitted.predict_ms(kept))
    assert opened.held_out == fitted.held_out
    assert opened.fingerprint == FINGERPRINT
    assert opened.options == fitted.options
    assert not any(parameter.requires_grad for parameter in opened.parameters())
    with pytest.raises(PredictorError, match="outside"):
        opened.predict_ms(kept_of((1, 48, 64, 64, 80)))


def test_a_net_of_another_network_is_refused(fitted: LPNet, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    with pytest.raises(PredictorError, match="another network"):
        LPNet.open(tmp_path, chain(WIDTHS, seed=1))


Change = Callable[[dict[str, Any]], object]

CHANGES: dict[str, Change] = {
    "older schema": lambda d: d.update(schema=2),
    "newer schema": lambda d: d.update(schema=LPNET + 1),
    "no block": lambda d: d.pop("block"),
    "block is zero": lambda d: d.update(block=0),
    "block is text": lambda d: d.update(block="16"),
    "block is one": lambda d: d.update(block=1),
    "no options": lambda d: d.pop("options"),
    "options is a list": lambda d: d.update(options=[]),
    "unknown option": lambda d: d["options"].update(colour=1),
    "unknown net": lambda d: d["options"].update(net="deep"),
    "another net": lambda d: d["options"].update(net="plain"),
    "fingerprint is null": lambda d: d.update(fingerprint=None),
    "fingerprint lacks a field": lambda d: d["fingerprint"].pop("device"),
    "held_out is a list": lambda d: d.update(held_out=[]),
    "held_out lacks a field": lambda d: d["held_out"].pop("mean"),
    "held_out is text": lambda d: d["held_out"].update(mean="small"),
    "records are infinite": lambda d: d["held_out"].update(records=float("inf")),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_damaged_document_is_refused(
    fitted: LPNet, skeleton: Skeleton, tmp_path: Path, case: str
) -> None:
    fitted.save(tmp_path)
    path = tmp_path / "lpnet.json"
    document = json.loads(path.read_text())
    CHANGES[case](document)
    path.write_text(json.dumps(document))
    with pytest.raises(PredictorError) as caught:
        LPNet.open(tmp_path, skeleton)
    assert caught.value.fix == "run: pipeline calibrate"


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000], ids=lambda t: t[:3] or "-")
def test_what_is_no_document_is_refused(
    fitted: LPNet, skeleton: Skeleton, tmp_path: Path, text: str
) -> None:
    fitted.save(tmp_path)
    (tmp_path / "lpnet.json").write_text(text)
    with pytest.raises(PredictorError, match="damaged"):
        LPNet.open(tmp_path, skeleton)


def test_damaged_weights_are_refused(fitted: LPNet, skeleton: Skeleton, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    path = tmp_path / "lpnet.safetensors"
    whole, tensors = path.read_bytes(), load(path.read_bytes())
    for damaged in (b"", whole[:-1], whole[: len(whole) // 2], b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(PredictorError, match="damaged"):
            LPNet.open(tmp_path, skeleton)
    save_file({k: v for k, v in tensors.items() if k != "seen_low"}, path)
    with pytest.raises(PredictorError, match="seen_low"):
        LPNet.open(tmp_path, skeleton)
    endless = tensors | {"net.weights": torch.full_like(tensors["net.weights"], float("nan"))}
    save_file(endless, path)
    with pytest.raises(PredictorError, match="not finite"):
        LPNet.open(tmp_path, skeleton)
