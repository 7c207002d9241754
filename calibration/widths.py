"""Channel groups, width vectors and plans: the one map that gates, slices and files share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from calibration.branches import Branch, check_branches, removed
from calibration.errors import GroupsError

Kind = Literal["inner", "stream"]
PLAN_SCHEMA = 2  # 1: no group without channels
GRAPH_ONLY = "graph:"  # starts the names of tensors that only the ONNX skeleton has
MOST_ROWS = 1_000_000  # of one slice; a damaged file must not fill the memory


@dataclass(frozen=True)
class Slice:
    """The rows of one tensor that belong to a group, channel by channel.

    `tensor` is a state-dict name that is also the ONNX initializer name; `rows[c]` are the rows
    that channel `c` owns along `dim`. A flatten after a convolution, a concat offset or a grouped
    convolution differ only in these rows. A number that counts channels is written as a tensor of
    that many rows: a module's integer by its path (`conv.groups`, `block.width`), and one of the
    skeleton's under a name of its own (`GRAPH_ONLY`): an initializer, or a node's attribute.
    """

    tensor: str
    dim: int
    rows: tuple[tuple[int, ...], ...]
    gate: bool = False  # the output of the module that owns `tensor` carries the group's gate

    @property
    def rows_per_channel(self) -> int:
        return len(self.rows[0])


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that live or die together, and every tensor row that goes with them."""

    name: str  # of the first layer that produces the channels
    channels: int
    slices: tuple[Slice, ...]
    kind: Kind = "inner"  # "stream": several layers add into the same channels
    frozen: str | None = None  # why it must stay full; None: it may be pruned

    def __post_init__(self) -> None:
        for piece in self.slices:
            if len(piece.rows) != self.channels:
                raise GroupsError(
                    f"group {self.name}: {piece.tensor} has rows for {len(piece.rows)} channels, "
                    f"the group has {self.channels}",
                    fix="run: pipeline trace",
                )


@dataclass(frozen=True)
class WidthVector:
    """Kept channels per prunable group, in group order."""

    groups: tuple[str, ...]
    kept: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.groups) != len(self.kept):
            raise GroupsError(f"{len(self.kept)} widths for {len(self.groups)} groups")

    def as_array(self) -> NDArray[np.int64]:
        """Kept channels as a (G,) array."""
        return np.array(self.kept, dtype=np.int64)


@dataclass(frozen=True)
class Plan:
    """Kept channel indices per prunable group: immutable, made once, applied once.

    None of a group whose residual branch goes as a whole.
    """

    skeleton_sha256: str  # of the dense skeleton the indices refer to
    kept: Mapping[str, tuple[int, ...]]

    def widths(self) -> WidthVector:
        return WidthVector(tuple(self.kept), tuple(len(rows) for rows in self.kept.values()))

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": PLAN_SCHEMA,
            "skeleton_sha256": self.skeleton_sha256,
            "kept": {group: list(rows) for group, rows in self.kept.items()},
        }

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Read a plan; GroupsError unless every index list is sorted, unique and whole."""
        schema = document.get("schema") if isinstance(document, dict) else None
        if type(schema) is not int or not 1 <= schema <= PLAN_SCHEMA:
            raise GroupsError(f"not a plan of schema 1 to {PLAN_SCHEMA}", fix="run: pipeline prune")
        kept, digest = document.get("kept"), document.get("skeleton_sha256")
        if not isinstance(kept, dict) or not isinstance(digest, str):
            raise GroupsError(
                "the plan lacks `kept` or `skeleton_sha256`", fix="run: pipeline prune"
            )
        fewest = 1 if schema == 1 else 0
        found = {str(name): _channel_indices(name, rows, fewest) for name, rows in kept.items()}
        return cls(digest, found)


def _channel_indices(name: str, rows: Any, fewest: int) -> tuple[int, ...]:
    whole = isinstance(rows, list) and all(type(row) is int and row >= 0 for row in rows)
    if not whole or len(rows) < fewest or sorted(set(rows)) != rows:
        raise GroupsError(
            f"plan: channels of {name} are not sorted, unique, whole numbers",
            fix="run: pipeline prune",
        )
    return tuple(rows)


@dataclass(frozen=True)
class ChannelGroups:
    """All groups of one network. Only those without a `frozen` reason have a width."""

    every: tuple[ChannelGroup, ...]
    branches: tuple[Branch, ...] = ()  # that may go as a whole

    @property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        return tuple(group for group in self.every if group.frozen is None)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(group.name for group in self.prunable)

    def full(self) -> WidthVector:
        return WidthVector(self.names, tuple(group.channels for group in self.prunable))

    def floor(self, multiple: int) -> WidthVector:
        """The narrowest legal width of every group, without the branches that may go."""
        least = tuple(legal_widths(g.channels, multiple)[0] for g in self.prunable)
        return self.bare(WidthVector(self.names, least))

    def bare(self, widths: WidthVector) -> WidthVector:
        """The same without any of the branches that may go."""
        gone = {name for branch in self.branches for name in branch.groups}
        pairs = zip(widths.groups, widths.kept, strict=True)
        return WidthVector(widths.groups, tuple(0 if n in gone else kept for n, kept in pairs))

    def removed(self, widths: WidthVector) -> tuple[Branch, ...]:
        """The branches that go at these widths; GroupsError if any other group keeps nothing."""
        return removed(self.branches, dict(zip(widths.groups, widths.kept, strict=True)))

    def check(self, plan: Plan) -> None:
        """GroupsError unless the plan names exactly these groups and their channels."""
        if tuple(plan.kept) != self.names:
            raise GroupsError(
                "the plan is for other groups than this network's", fix="run: pipeline prune"
            )
        self.removed(plan.widths())
        for group in self.prunable:
            if max(plan.kept[group.name], default=-1) >= group.channels:
                raise GroupsError(
                    f"plan: {group.name} keeps channel {max(plan.kept[group.name])} "
                    f"of {group.channels}",
                    fix="run: pipeline prune",
                )

    def dropped_rows(self, plan: Plan) -> dict[tuple[str, int], NDArray[np.int64]]:
        """For each sliced (tensor, dim), the rows to drop, sorted."""
        dropped: dict[tuple[str, int], list[int]] = {}
        for group in self.prunable:
            gone = sorted(set(range(group.channels)) - set(plan.kept[group.name]))
            for piece in group.slices:
                rows = dropped.setdefault((piece.tensor, piece.dim), [])
                rows.extend(row for channel in gone for row in piece.rows[channel])
        return {key: np.unique(np.array(rows, np.int64)) for key, rows in dropped.items()}

    def first_channels(self, widths: WidthVector, skeleton_sha256: str) -> Plan:
        """The plan that keeps the first channels of each group: for latency, any will do."""
        kept = dict(zip(widths.groups, widths.kept, strict=True))
        return Plan(skeleton_sha256, {name: tuple(range(kept[name])) for name in self.names})

    def to_json(self) -> list[dict[str, Any]]:
        return [_group_to_json(group) for group in self.every]

    @classmethod
    def from_json(cls, document: Any, branches: Any = ()) -> Self:
        try:
            found = cls(
                tuple(_group_from_json(item) for item in document),
                tuple(Branch.from_json(item) for item in branches),
            )
            check_branches(found.branches, found.names)
            return found
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise GroupsError(
                f"groups.json is damaged: {error or type(error).__name__}",
                fix="run: pipeline trace",
            ) from error


def legal_widths(channels: int, multiple: int) -> tuple[int, ...]:
    """Widths worth measuring: multiples of `multiple` from the floor up, and full width.

    The floor is max(8, a tenth of the channels): a narrower layer saves nothing on any runtime we
    know and risks closing completely.
    """
    floor = min(channels, max(8, -(-channels // 10)))
    steps = range(-(-floor // multiple) * multiple, channels, multiple)
    return (*steps, channels)


def snap(kept: Sequence[int], full: Sequence[int], multiple: int) -> tuple[int, ...]:
    """The nearest legal width of each group; ties go up, so that accuracy is not given away."""
    pairs = zip(kept, full, strict=True)
    return tuple(nearest(legal_widths(channels, multiple), width) for width, channels in pairs)


def nearest(widths: Sequence[int], width: float) -> int:
    """The one of `widths` that is nearest to `width`; the wider of two."""
    return min(widths, key=lambda one: (abs(one - width), -one))


def _compact(rows: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    """Rows as runs where they are regular: channel c owns start + c*stride + i*step, i < count.

    A VGG's flatten alone would otherwise be 25 088 numbers.
    """
    first = rows[0]
    stride = rows[1][0] - first[0] if len(rows) > 1 else 1
    step = first[1] - first[0] if len(first) > 1 else 1
    run = {"start": first[0], "stride": stride, "count": len(first), "step": step}
    if _expand({**run, "channels": len(rows)}) == rows:
        return {**run, "channels": len(rows)}
    return {"explicit": [list(row) for row in rows]}


def _expand(document: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    if "explicit" in document:
        return tuple(tuple(rows) for rows in document["explicit"])
    start, stride, count, step, channels = (
        document[key] for key in ("start", "stride", "count", "step", "channels")
    )
    if not count * channels <= MOST_ROWS:
        raise ValueError(f"{channels} channels of {count} rows each")
    return tuple(
        tuple(start + channel * stride + i * step for i in range(count))
        for channel in range(channels)
    )


def _group_to_json(group: ChannelGroup) -> dict[str, Any]:
    return {
        "name": group.name,
        "channels": group.channels,
        "kind": group.kind,
        "frozen": group.frozen,
        "slices": [
            {"tensor": s.tensor, "dim": s.dim, "gate": s.gate, "rows": _compact(s.rows)}
            for s in group.slices
        ],
    }


def _group_from_json(item: Any) -> ChannelGroup:
    name, kind, frozen = item["name"], item["kind"], item["frozen"]
    if type(name) is not str or kind not in get_args(Kind) or type(frozen) not in (str, NoneType):
        raise ValueError(f"{name!r}, {kind!r}, {frozen!r} are not a name, a kind and a reason")
    slices = tuple(_slice_from_json(piece) for piece in item["slices"])
    return ChannelGroup(name, whole(item["channels"], 1), slices, kind, frozen)


def _slice_from_json(item: Any) -> Slice:
    tensor, gate, rows = item["tensor"], item["gate"], _expand(item["rows"])
    owned = [whole(row) for channel in rows for row in channel]
    alike = len({len(channel) for channel in rows}) == 1
    if not owned or not alike or len(set(owned)) < len(owned) or max(owned) >= MOST_ROWS:
        raise ValueError(f"the rows of {tensor} are not distinct, equally many for each channel")
    if type(tensor) is not str or type(gate) is not bool:
        raise ValueError(f"{tensor!r}, {gate!r} are not a tensor name and whether it is gated")
    return Slice(tensor, whole(item["dim"]), rows, gate)


def whole(value: Any, least: int = 0) -> int:
    """`value`, if it is a whole number of at least `least`; else ValueError."""
    if type(value) is not int or value < least:
        raise ValueError(f"{value!r} is not a whole number of at least {least}")
    return value


def dump(document: Any) -> str:
    """JSON as all our files have it: indented, ordered as written, no NaN."""
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
