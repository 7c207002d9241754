"""prune: a method under a cost; a latency in a closed loop with the real runtime."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from calibration.lpnet import LPNet
from pipeline.errors import BudgetMissedError
from pipeline.models.weights import save_weights
from pipeline.options import PruneOptions
from pipeline.run import Context
from pipeline.serving import target_of
from pipeline.stages.closed_loop import ClosedLoop, Limit
from pipeline.stages.common import skeleton_of
from pipeline.stages.company import is_beside
from pipeline.stages.counted import CountLimit, solve_counted
from pipeline.stages.learner import learn_along
from pipeline.stages.rounds import Round
from pipeline.stages.solving import Solving


@dataclass(frozen=True)
class Solution:
    """The plan that was taken, how it was found, and the LPNet as it then was."""

    chosen: Round
    rounds: list[Round]
    limit: dict[str, Any]
    lpnet: LPNet


def execute(context: Context) -> None:
    if is_beside(context.run):
        learn_along(context)
        return
    with ExitStack() as stack:
        if context.options(PruneOptions).objective == "latency":
            solving, solution = _by_latency(context, stack)
        else:
            solving, solution = _by_count(context, stack)
        learner = solving.learner
        history = [*learner.history, *learner.train_on_masks(solution.chosen.plan)]
    plan = solution.chosen.plan
    context.write_json("plan.json", plan.to_json())
    solution.lpnet.save(context.partial)
    save_weights(learner.pruner.trained, context.partial / "gated.safetensors")
    full = solving.skeleton.groups.full()
    widths = zip(full.groups, full.kept, plan.widths().kept, strict=True)
    context.write_json(
        "prune.json",
        {
            "method": "plan" if solving.options.plan else solving.options.method,
            "objective": solving.options.objective,
            **solution.limit,
            "predicted_ms": solution.chosen.predicted_ms,
            "history": [
                {**epoch.to_json(), "epoch": number} for number, epoch in enumerate(history, 1)
            ],
            "rounds": [item.to_json() for item in solution.rounds],
            "widths": [{"group": g, "full": f, "kept": k} for g, f, k in widths],
        },
    )


def _by_latency(context: Context, stack: ExitStack) -> tuple[Solving, Solution]:
    options = context.options(PruneOptions)
    limit = Limit.of(options, context.run.document("calibrate", "calibration.json"))
    loop = ClosedLoop(Solving(context, stack), limit)
    rounds = loop.run()
    stated = {**limit.to_json(), "aim_ms": loop.predicted_aim_ms}
    return loop.solving, Solution(_best(rounds, limit, options), rounds, stated, loop.lpnet)


def _by_count(context: Context, stack: ExitStack) -> tuple[Solving, Solution]:
    multiple = target_of(context.run).channel_multiple
    limit = CountLimit.of(context.options(PruneOptions), skeleton_of(context.run), multiple)
    solving = Solving(context, stack)
    chosen = solve_counted(solving, limit)
    return solving, Solution(chosen, [chosen], limit.to_json(), solving.lpnet)


def _best(rounds: list[Round], limit: Limit, options: PruneOptions) -> Round:
    """Of the plans that met the budget safely the slowest, which kept the most; or the safest."""
    met = [item for item in rounds if item.met]
    if not met:
        raise BudgetMissedError(
            f"no plan met {limit.p50_ms:.3f} ms in {rounds[-1].round} rounds; the last measured "
            f"{rounds[-1].measured_ms:.3f} ms",
            fix="give another --plan, or ask for a larger --budget"
            if options.plan
            else "calibrate with more --samples, or widen --margin",
        )
    safe = [item for item in met if item.safe]
    if not safe:
        return min(met, key=lambda item: item.ratio_ci95[1])
    return max(safe, key=lambda item: item.ratio)
