"""Operators that move channels about: reshape, transpose, concat, split, slice, pad, shuffle.

Where such an operator holds a size in the graph, the size is made to follow the width; where the
module's own code holds one (`self.width`), the integer becomes part of the channels' group.
"""

from __future__ import annotations

import numpy as np
import onnx

from pipeline.pruning.identities import Ids
from pipeline.pruning.propagation import Propagation, Rule, integers_of

PADDED = "channels are padded by fixed amounts (padding shortcut)"


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(item.i) for item in node.attribute if item.name == name), default)


def integers(walk: Propagation, node: onnx.NodeProto, index: int, name: str) -> list[int] | None:
    """An integer list given as input `index` or, in older opsets, as an attribute."""
    if len(node.input) > index and node.input[index]:
        value = walk.constant(node.input[index])
        return None if value is None else [int(v) for v in np.ravel(value)]
    return integers_of(node, name)


def pass_on(walk: Propagation, node: onnx.NodeProto) -> None:
    """Every output has the channels of the first input."""
    if not walk.has_channels(node.input[0]):
        return walk.give_up(node, f"{node.op_type} of a constant")
    for name in node.output:
        walk.emit(name, walk.channels(node.input[0]), walk.axis(node.input[0]))
    return None


def _reshape(walk: Propagation, node: onnx.NodeProto) -> None:
    source, sink = node.input[0], node.output[0]
    if not walk.has_channels(source):
        return walk.give_up(node, f"{node.op_type} to a computed shape")
    before, after, axis = walk.shape(source), walk.shape(sink), walk.axis(source)
    along = [1] * len(before)
    along[axis] = -1
    spread = np.broadcast_to(walk.channels(source).reshape(along), before).reshape(after)
    where, ids = _one_axis(walk, spread)
    walk.emit(sink, ids, where)
    if node.op_type == "Reshape":
        walk.adapting[node.name, 1] = [*after[:where], -1, *after[where + 1 :]]
    return None


def _one_axis(walk: Propagation, spread: Ids) -> tuple[int, Ids]:
    """The axis along which channels lie, and theirs; ties those that another axis tells apart.

    A channel axis that was split in two (shuffle, heads, radix) keeps its number of parts: each
    part must lose the same channels. The longer one is taken for the channels.
    """
    roots = walk.identities.roots(spread)
    varying = [axis for axis in range(roots.ndim) if (np.take(roots, [0], axis) != roots).any()]
    where = max(varying, key=lambda axis: (roots.shape[axis], axis), default=min(1, roots.ndim - 1))
    rows = np.unique(np.moveaxis(roots, where, -1).reshape(-1, roots.shape[where]), axis=0)
    for other in rows[1:]:
        walk.identities.tie(rows[0], other)
    return where, rows[0]


def _transpose(walk: Propagation, node: onnx.NodeProto) -> None:
    source = node.input[0]
    order = integers_of(node, "perm") or list(reversed(range(len(walk.shape(source)))))
    walk.emit(node.output[0], walk.channels(source), order.index(walk.axis(source)))


def _unsqueeze(walk: Propagation, node: onnx.NodeProto) -> None:
    """Axes of size 1 come or go: the channel axis is the same one among the others."""
    source, sink = node.input[0], node.output[0]
    axes = integers(walk, node, 1, "axes")
    if axes is None:
        return walk.give_up(node, f"{node.op_type} of axes that are not constant")
    axis = walk.axis(source)
    if node.op_type == "Unsqueeze":
        rank = len(walk.shape(sink))
        left = [where for where in range(rank) if where not in {a % rank for a in axes}]
        return walk.emit(sink, walk.channels(source), left[axis])
    rank = len(walk.shape(source))
    gone = {a % rank for a in axes}
    if axis in gone:
        return walk.give_up(node, "a single channel's axis is removed")
    return walk.emit(sink, walk.channels(source), axis - sum(where < axis for where in gone))


def _concat(walk: Propagation, node: onnx.NodeProto) -> None:
    shape = walk.shape(node.output[0])
    joined = attribute(node, "axis", 1) % len(shape)
    sources = [name for name in node.input if walk.has_channels(name)]
    axes = {walk.axis(name) for name in sources}
    if axes == {joined}:
        parts = [
            walk.channels(name)
            if name in sources
            else walk.identities.frozen(walk.shape(name)[joined], "a constant in a concat")
            for name in node.input
        ]
        return walk.emit(node.output[0], np.concatenate(parts), joined)
    if len(axes) > 1 or len(sources) < len(node.input):
        return walk.give_up(node, "concat of unlike tensors")
    first = walk.channels(sources[0])
    for name in sources[1:]:
        walk.identities.tie(first, walk.channels(name))
    return walk.emit(node.output[0], first, axes.pop())


def _pad(walk: Propagation, node: onnx.NodeProto) -> None:
    """Padded channels are zeros that stay; the others go on between them."""
    pads, axes = integers(walk, node, 1, "pads"), integers(walk, node, 3, "axes")
    source = node.input[0]
    rank, axis = len(walk.shape(source)), walk.axis(source)
    if pads is None or min(pads) < 0:
        return walk.give_up(node, "padding by amounts that are not constant")
    axes = list(range(rank)) if axes is None else [where % rank for where in axes]
    if axis not in axes:
        return pass_on(walk, node)
    place = axes.index(axis)
    before, after = pads[place], pads[place + len(axes)]
    zeros = walk.identities.new(before + after)
    walk.identities.freeze(zeros, PADDED)
    ids = np.concatenate([zeros[:before], walk.channels(source), zeros[before:]])
    return walk.emit(node.output[0], ids, axis)


def _slice(walk: Propagation, node: onnx.NodeProto) -> None:
    source, sink = node.input[0], node.output[0]
    axis, ids = walk.axis(source), walk.channels(source)
    bounds = [integers(walk, node, 1 + i, name) for i, name in enumerate(("starts", "ends"))]
    rank = len(walk.shape(source))
    axes = integers(walk, node, 3, "axes") or list(range(rank))
    if walk.shape(source)[axis] == walk.shape(sink)[axis]:
        return pass_on(walk, node) if _to_the_end(walk, node, bounds[1], axes) else None
    steps = integers(walk, node, 4, "steps") or [1] * len(axes)
    if bounds[0] is None or bounds[1] is None or len(axes) != 1 or steps != [1]:
        return walk.give_up(node, "channels are sliced at bounds that are not constant")
    start, stop, _ = slice(bounds[0][0], bounds[1][0]).indices(len(ids))
    _cut(walk, node, ids, start, stop)
    for index, bound in ((1, start), (2, stop)):
        if bound > 0:
            walk.bound(node, index, ids[:bound])
    return walk.emit(sink, ids[start:stop], axis)


def _to_the_end(
    walk: Propagation, node: onnx.NodeProto, ends: list[int] | None, axes: list[int]
) -> bool:
    """Whether a slice that takes all channels does so at any width."""
    rank, axis = len(walk.shape(node.input[0])), walk.axis(node.input[0])
    if any(where % rank == axis for where in axes) and (ends is None or min(ends) < 0):
        walk.give_up(node, "channels are sliced at bounds that are not constant")
        return False
    return True


def _split(walk: Propagation, node: onnx.NodeProto) -> None:
    source, ids = node.input[0], walk.channels(node.input[0])
    axis, rank = walk.axis(source), len(walk.shape(source))
    if attribute(node, "axis", 0) % rank != axis:
        return pass_on(walk, node)
    sizes = [walk.shape(name)[axis] for name in node.output]
    parts = np.split(ids, np.cumsum(sizes)[:-1])
    if listed := _listed(walk, node, sizes):
        for index, name in enumerate(listed):
            walk.count(name, parts[index % len(parts)])
        for part in parts:
            walk.bound(node, 1, part)
    elif len(set(sizes)) == 1:
        _cut(walk, node, ids, 0, sizes[0])
        walk.adapting[node.name, 1] = []
    else:
        return walk.give_up(node, "channels are cut where no attribute of the module says")
    for name, part in zip(node.output, parts, strict=True):
        walk.emit(name, part, axis)
    return None


def _listed(walk: Propagation, node: onnx.NodeProto, sizes: list[int]) -> list[str]:
    """The items of a module's lists that hold these sizes."""
    return next(
        (found for path in walk.scopes(node) if (found := walk.code.listing(path, sizes))), []
    )


def _cut(walk: Propagation, node: onnx.NodeProto, ids: Ids, start: int, stop: int) -> None:
    """Ties equal parts; makes integers of the module that say where to cut part of the group."""
    total, size = len(ids), stop - start
    wanted = {total: ids, size: ids[start:stop]}
    if start % size == 0 and total % size == 0:
        parts = ids.reshape(-1, size)
        for other in parts[1:]:
            walk.identities.tie(parts[0], other)
        _count(walk, node, wanted)
        return
    for bound in {start, stop} - {0, total}:
        if not _count(walk, node, {bound: ids[:bound]}):
            walk.identities.freeze(ids, "channels are cut where no attribute of the module says")


def _count(walk: Propagation, node: onnx.NodeProto, wanted: dict[int, Ids]) -> bool:
    for path in walk.scopes(node):
        found = [
            (name, value)
            for value in wanted
            for name in walk.code.holding(path, value)
            if not name.endswith(".groups")  # a convolution's, not a place to cut
        ]
        for name, value in found:
            walk.count(name, wanted[value])
        if found:
            return True
    return False


def _expand(walk: Propagation, node: onnx.NodeProto) -> None:
    source, after = node.input[0], list(walk.shape(node.output[0]))
    axis = walk.axis(source) + len(after) - len(walk.shape(source))
    ids = walk.channels(source)
    if len(ids) != after[axis]:
        return walk.give_up(node, "one channel is broadcast over many")
    after[axis] = 1  # a size of 1 leaves the axis as it is
    walk.adapting[node.name, 1] = after
    return walk.emit(node.output[0], ids, axis)


def _resize(walk: Propagation, node: onnx.NodeProto) -> None:
    """Sizes that hold the channels too become sizes of the other axes."""
    source, after = node.input[0], walk.shape(node.output[0])
    axis = walk.axis(source)
    if len(node.input) > 3 and node.input[3] and integers_of(node, "axes") is None:
        walk.adapting[node.name, 3] = [*after[:axis], *after[axis + 1 :]]
        node.attribute.append(
            onnx.helper.make_attribute("axes", [i for i in range(len(after)) if i != axis])
        )
    return pass_on(walk, node)


def _gather(walk: Propagation, node: onnx.NodeProto) -> None:
    source, where = node.input[0], attribute(node, "axis", 0)
    if not walk.has_channels(source) or walk.has_channels(node.input[1]):
        return walk.give_up(node, "channels are used as indices")
    axis, rank = walk.axis(source), len(walk.shape(source))
    if where % rank == axis:
        return walk.give_up(node, "channels are picked by index")
    grown = len(walk.shape(node.output[0])) - rank
    after = axis + grown if where % rank < axis else axis
    return walk.emit(node.output[0], walk.channels(source), after)


def _shuffled_pixels(walk: Propagation, node: onnx.NodeProto) -> None:
    """DepthToSpace makes a block of pixels of as many channels, SpaceToDepth the opposite."""
    ids, block = walk.along(node.input[0], 1), attribute(node, "blocksize", 1) ** 2
    last = next((item.s for item in node.attribute if item.name == "mode"), b"DCR") == b"CRD"
    if node.op_type == "SpaceToDepth":
        return walk.emit(node.output[0], np.tile(ids, block))
    parts = ids.reshape(-1, block).T if last else ids.reshape(block, -1)
    for other in parts[1:]:
        walk.identities.tie(parts[0], other)
    return walk.emit(node.output[0], parts[0])


def _shape(walk: Propagation, node: onnx.NodeProto) -> None:
    """Sizes that the graph asks for itself follow the width; they are no channels."""


OPERATORS: dict[str, Rule] = {
    "Shape": _shape,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Expand": _expand,
    "Resize": _resize,
    "Gather": _gather,
    "DepthToSpace": _shuffled_pixels,
    "SpaceToDepth": _shuffled_pixels,
}
