"""Small networks, one structure each: what may be pruned, what is frozen and why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.candidates import Slicer
from calibration.widths import Plan
from pipeline.pruning.groups import trace
from pipeline.pruning.surgery import shrink
from pipeline.unfused import run_onnx

from .networks import (
    CLASSES,
    OUTPUT,
    Groups,
    Net,
    conv,
    found,
    head,
    pooled,
    relative_gap,
    seeded,
    through,
    traced,
)


class ConvByHand(nn.Module):
    """A convolution whose weight is a bare parameter, and then some."""

    def __init__(self, outputs: int, *, after: nn.Module | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, 16, 3, 3))
        self.after = after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.after(F.conv2d(x, self.weight, padding=1))
        return made


class DepthwiseByHand(nn.Module):
    """How many convolutions there are stands in the code alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1, groups=16)


def concat() -> Net:
    return Net(
        lambda s, x: s.head(pooled(F.relu(s.c(torch.cat([s.a(x), s.b(x)], 1))))),
        a=conv(3, 16),
        b=conv(3, 8),
        c=conv(24, 16),
        head=head(16),
    )


def concat_added_to_one_producer() -> Net:
    return Net(
        lambda s, x: s.head(pooled(F.relu(s.d(x) + torch.cat([s.a(x), s.b(x)], 1)))),
        a=conv(3, 16),
        b=conv(3, 8),
        d=conv(3, 24),
        head=head(24),
    )


def dense_block() -> Net:
    """A batch norm over a concat: its rows belong to two groups."""

    def forward(s: Net, x: Tensor) -> Tensor:
        first = s.a(x)
        joined = torch.cat([first, s.b(F.relu(s.an(first)))], 1)
        return s.head(pooled(F.relu(s.jn(joined))))

    return Net(
        forward,
        a=conv(3, 16),
        an=nn.BatchNorm2d(16),
        b=conv(16, 8),
        jn=nn.BatchNorm2d(24),
        head=head(24),
    )


def grouped(channels: int = 16, outputs: int = 32) -> Net:
    return Net(
        lambda s, x: s.head(pooled(F.relu(s.b(F.relu(s.a(x)))))),
        a=conv(3, channels),
        b=conv(channels, outputs, groups=4),
        head=head(outputs),
    )


def depthwise_multiplier() -> Net:
    return Net(
        lambda s, x: s.head(pooled(F.relu(s.n(s.b(F.relu(s.a(x))))))),
        a=conv(3, 16),
        b=conv(16, 32, groups=16),
        n=nn.BatchNorm2d(32),
        head=head(32),
    )


def flattened() -> Net:
    return Net(
        lambda s, x: s.head(F.relu(s.b(torch.flatten(F.max_pool2d(F.relu(s.a(x)), 2), 1)))),
        a=conv(3, 16),
        b=nn.Linear(16 * 4 * 4, 24),
        head=head(24),
    )


def squeeze_excite() -> Net:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = F.relu(s.n(s.a(x)))
        squeezed = F.relu(s.down(y.mean((2, 3), keepdim=True)))
        return s.head(pooled(y * torch.sigmoid(s.up(squeezed))))

    return Net(
        forward,
        a=conv(3, 16),
        n=nn.BatchNorm2d(16),
        down=conv(16, 8, 1),
        up=conv(8, 16, 1),
        head=head(16),
    )


def used_twice() -> Net:
    return Net(
        lambda s, x: s.head(pooled(F.relu(s.b(F.relu(s.b(F.relu(s.a(x)))))))),
        a=conv(3, 16),
        b=conv(16, 16),
        head=head(16),
    )


def linear_norm() -> Net:
    return Net(
        lambda s, x: s.head(F.relu(s.n(s.b(pooled(s.a(x)))))),
        a=conv(3, 16),
        b=nn.Linear(16, 24),
        n=nn.BatchNorm1d(24),
        head=head(24),
    )


def layer_scale() -> Net:
    net = through(lambda s, x: F.relu(x * s.scale))
    net.scale = nn.Parameter(torch.rand(1, 16, 1, 1) + 0.5)
    return net


def pixels_padded_and_sliced() -> Net:
    return through(lambda s, x: F.pad(x, (1, 1, 1, 1))[:, :, ::2, ::2])


PRUNABLE: dict[Callable[[], Net], Groups] = {
    concat: {"a": (16, None), "b": (8, None), "c": (16, None)},
    concat_added_to_one_producer: {"d": (16, None), "d#2": (8, None)},
    dense_block: {"a": (16, None), "b": (8, None)},
    grouped: {"a": (4, None), "b": (8, None)},
    depthwise_multiplier: {"a": (16, None)},
    flattened: {"a": (16, None), "b": (24, None)},
    squeeze_excite: {"a": (16, None), "down": (8, None)},
    used_twice: {"a": (16, None)},
    linear_norm: {"a": (16, None), "b": (24, None)},
    layer_scale: {"a": (16, None), "z": (16, None)},
    pixels_padded_and_sliced: {"a": (16, None), "z": (16, None)},
}


@pytest.mark.parametrize("make", PRUNABLE, ids=lambda make: make.__name__)
def test_what_is_prunable_is_cut_as_it_is_gated(make: Callable[[], Net]) -> None:
    with seeded():
        network = traced(make())
    assert found(network) == {**PRUNABLE[make], "head": (CLASSES, OUTPUT)}
    for seed in range(3):
        assert network.gap(network.plan(seed)) < 1e-9
        sliced = run_onnx(
            Slicer(network.skeleton).slice(network.plan(seed)), network.images.numpy()
        )
        small = shrink(network.model, network.skeleton, network.plan(seed))
        with torch.no_grad():
            assert relative_gap(sliced, small(network.images).numpy()) < 1e-4


def test_a_flatten_gives_each_channel_its_pixels() -> None:
    with seeded():
        network = traced(flattened())
    (piece,) = [s for s in network.groups["a"].slices if s.tensor == "b.weight"]
    assert piece.dim == 1
    assert piece.rows[:2] == (tuple(range(16)), tuple(range(16, 32)))


def test_sub_convolutions_lose_the_same_channels() -> None:
    with seeded():
        network = traced(grouped())
    filters, inputs = (network.groups["a"].slices[i] for i in (0, -1))
    assert (filters.tensor, filters.rows[1]) == ("a.weight", (1, 5, 9, 13))
    assert (inputs.tensor, inputs.dim, inputs.rows) == ("b.weight", 1, ((0,), (1,), (2,), (3,)))


def test_a_grouped_convolution_cut_to_one_input_each_keeps_its_groups() -> None:
    with seeded():
        network = traced(grouped(16, 16))
    assert found(network) == {"a": (4, None), "b": (4, None), "head": (CLASSES, OUTPUT)}
    plan = Plan(network.skeleton.sha256, {"a": (1,), "b": (0, 3)})
    small = shrink(network.model, network.skeleton, plan)
    assert (small.b.groups, small.b.in_channels, small.b.out_channels) == (4, 4, 8)
    assert network.gap(plan) < 1e-9


def test_filters_of_a_depthwise_convolution_follow_their_input() -> None:
    with seeded():
        network = traced(depthwise_multiplier())
    (piece,) = [s for s in network.groups["a"].slices if s.tensor == "b.weight"]
    assert piece.rows[:3] == ((0, 1), (2, 3), (4, 5))
    small = shrink(network.model, network.skeleton, network.plan(0))
    kept = len(network.plan(0).kept["a"])
    assert (small.b.groups, small.b.in_channels, small.b.out_channels) == (kept, kept, 2 * kept)


# what is frozen, and why


FROZEN: dict[str, tuple[Callable[[], Net], str]] = {
    "channel slice": (
        lambda: through(lambda s, x: x[:, 2:11], z=conv(9, 16)),
        "channels are cut where no attribute of the module says",
    ),
    "unknown": (
        lambda: through(lambda s, x: torch.cumsum(x, 1)),
        "operator CumSum is not analysed",
    ),
    "softmax": (
        lambda: through(lambda s, x: torch.softmax(x, 1)),
        "Softmax over the channel axis",
    ),
    "mean over channels": (
        lambda: through(lambda s, x: x - x.mean(1, keepdim=True)),
        "ReduceMean over the channel axis",
    ),
    "group norm": (
        lambda: through(lambda s, x: s.n(x), n=nn.GroupNorm(4, 16)),
        "an operator works along another axis than the channels'",
    ),
    "layer norm over channels": (
        lambda: through(
            lambda s, x: s.n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), n=nn.LayerNorm(16)
        ),
        "LayerNorm over channels: its statistics are of all of them",
    ),
    "batch norm without parameters": (
        lambda: through(lambda s, x: s.n(x), n=nn.BatchNorm2d(16, affine=False)),
        "a constant that is not a parameter",
    ),
    "a closed channel is not nothing": (
        lambda: through(lambda s, x: torch.sigmoid(x)),
        "sliced and gated outputs differ",
    ),
    "groups by a literal": (
        lambda: through(lambda s, x: F.relu(s.hand(F.relu(x))), hand=DepthwiseByHand()),
        "no attribute of the module holds its number of groups",
    ),
    "computed weight": (
        lambda: through(lambda s, x: s.w(x), w=nn.utils.parametrizations.weight_norm(conv(16, 16))),
        "a constant that is not a parameter",
    ),
}


@pytest.mark.parametrize("case", FROZEN)
def test_what_is_not_understood_stays_full_with_its_reason(case: str) -> None:
    make, reason = FROZEN[case]
    network = traced(make())
    channels, frozen = found(network)["a"]
    # group norm ties its 4 groups, the slice tells the channels before it from those in it
    assert channels == {"group norm": 4, "channel slice": 2}.get(case, 16)
    assert reason in (frozen or "")
    assert found(network)["z"] == (16, None)  # the rest is as prunable as ever
    assert network.gap(network.plan(0)) < 1e-9


def test_a_single_slope_prelu_is_no_obstacle() -> None:
    network = traced(through(lambda s, x: s.p(x), p=nn.PReLU()))
    assert found(network)["a"] == (16, None)


def test_an_instance_norm_is_gated_behind_its_shift() -> None:
    norm = nn.InstanceNorm2d(16, affine=True)
    nn.init.uniform_(norm.bias, 0.5, 1.5)
    network = traced(through(lambda s, x: F.relu(s.n(x)), n=norm))
    assert found(network)["a"] == (16, None)
    plan = network.plan(0)
    assert network.gap(plan) < 1e-9
    assert shrink(network.model, network.skeleton, plan).n.num_features == len(plan.kept["a"])


@pytest.mark.parametrize(
    ("refusal", "words"), [(ValueError("too thin"), "too thin"), (AssertionError(), "Assertion")]
)
def test_a_network_that_asserts_its_own_widths_keeps_them(refusal: Exception, words: str) -> None:
    def checked(s: Net, x: Tensor) -> Tensor:
        if x.shape[1] != 16:
            raise refusal
        return F.relu(x)

    reason = found(traced(through(checked)))["a"][1] or ""
    assert "does not run" in reason
    assert words in reason


def test_a_hard_coded_view_is_frozen_and_does_not_crash() -> None:
    with seeded():
        net = Net(
            lambda s, x: s.head(F.relu(s.b(F.relu(s.a(x)).view(-1, 512)))),
            a=conv(3, 8),
            b=nn.Linear(512, 16),
            head=head(16),
        )
    network = traced(net)
    assert "does not run" in (found(network)["a"][1] or "")
    assert found(network)["b"] == (16, None)
    assert network.gap(network.plan(0)) < 1e-9


def test_filters_that_no_gate_can_read_are_frozen() -> None:
    reason = "its filters are not the weight of a Conv2d or Linear layer"
    network = traced(through(lambda s, x: F.relu(s.hand(F.relu(x))), hand=ConvByHand(16)))
    assert found(network)["hand"] == (16, reason)
    assert found(network)["a"] == (16, None)
    # the module's output is not even what the filters make
    after = ConvByHand(12, after=conv(12, 16))
    network = traced(through(lambda s, x: F.relu(s.hand(F.relu(x))), hand=after))
    assert found(network)["hand"] == (12, reason)
    assert network.gap(network.plan(0)) < 1e-9


def test_one_weight_under_two_names_is_never_cut_wrongly() -> None:
    net = Net(
        lambda s, x: s.head(pooled(F.relu(s.c(F.relu(s.b(F.relu(s.a(x)))))))),
        a=conv(3, 16),
        b=conv(16, 16),
        c=conv(16, 16),
        head=head(16),
    )
    net.c.weight = net.b.weight
    network = traced(net)
    assert network.skeleton.groups.prunable == ()
    assert "differ" in (found(network)["a"][1] or "")


def test_streams_are_named_as_such() -> None:
    with seeded():
        network = traced(concat_added_to_one_producer())
    assert {group.kind for group in network.skeleton.groups.prunable} == {"stream"}
    inner = trace(network.model, network.images, residual="inner")
    assert inner.groups.prunable == ()
