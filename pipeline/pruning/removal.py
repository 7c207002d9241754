"""The numerical proof of branches that may go: gated, sliced and the skeleton's cut agree."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import onnx
from torch import nn

from calibration.branches import Branch
from calibration.skeleton import Skeleton
from calibration.widths import Plan
from pipeline.errors import ModelError
from pipeline.pruning.branching import find_branches
from pipeline.pruning.groups import Proof, check_onnx_cut, random_plan

MARK = "removable branches"


def with_removable_branches(
    model: nn.Module, skeleton: Skeleton
) -> tuple[Skeleton, Mapping[str, str]]:
    """The skeleton with the branches that may go, and why others must stay, by a group of theirs.

    ModelError if the network has none that may.
    """
    found = find_branches(model, skeleton)
    claimed = _with(skeleton, found.branches)
    blamed = _Branches(Proof.of(model, skeleton), claimed).blame(found.branches)
    refused = {**found.refused, **{b.groups[0]: why for b, why in blamed.items()}}
    kept = tuple(branch for branch in found.branches if branch not in blamed)
    if not kept:
        raise ModelError(
            f"--remove-blocks: no residual branch of this model can go as a whole: {_why(refused)}",
            fix="trace it without --remove-blocks",
        )
    proved = _with(_marked(skeleton, kept), kept)
    for some in (kept, kept[::2]):
        check_onnx_cut(model, proved, removing(proved, some))
    return proved, refused


def removing(skeleton: Skeleton, branches: Collection[Branch], seed: int = 0) -> Plan:
    """A random plan (`random_plan`) without these branches."""
    plan = random_plan(skeleton, skeleton.groups.names, seed)
    gone = {name for branch in branches for name in branch.groups}
    kept = {name: () if name in gone else rows for name, rows in plan.kept.items()}
    return Plan(plan.skeleton_sha256, kept)


@dataclass(frozen=True)
class _Branches:
    """The proof of branches on a skeleton that claims them all."""

    proof: Proof
    skeleton: Skeleton

    def blame(self, branches: tuple[Branch, ...]) -> dict[Branch, str]:
        """Those that cannot go, each with how it fails; halving finds a few among many quickly."""
        if not branches:
            return {}
        reason = self.proof.gap(self.skeleton, removing(self.skeleton, branches))
        if reason is None:
            return {}
        if len(branches) == 1:
            return {branches[0]: reason}
        half = len(branches) // 2
        return self.blame(branches[:half]) | self.blame(branches[half:])


def _marked(skeleton: Skeleton, branches: tuple[Branch, ...]) -> Skeleton:
    """Another graph by its hash: plans and latencies with and without branches do not mix."""
    proto = skeleton.proto()
    onnx.helper.set_model_props(proto, {MARK: ",".join(branch.name for branch in branches)})
    return replace(skeleton, onnx_bytes=proto.SerializeToString())


def _with(skeleton: Skeleton, branches: tuple[Branch, ...]) -> Skeleton:
    return replace(skeleton, groups=replace(skeleton.groups, branches=branches))


def _why(refused: Mapping[str, str]) -> str:
    if not refused:
        return "channels that are its own end in no sum with a skip"
    return "; ".join(f"that with {name} {reason}" for name, reason in list(refused.items())[:2])
