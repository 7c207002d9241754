"""prune: a method under the predicted latency, in a closed loop with the real runtime."""

from __future__ import annotations

from contextlib import ExitStack

from pipeline.errors import BudgetMissedError
from pipeline.models.weights import save_weights
from pipeline.options import PruneOptions
from pipeline.run import Context
from pipeline.stages.closed_loop import ClosedLoop, Limit, Round


def execute(context: Context) -> None:
    options = context.options(PruneOptions)
    limit = Limit.of(options, context.run.document("calibrate", "calibration.json"))
    with ExitStack() as stack:
        loop = ClosedLoop(context, limit, stack)
        rounds = loop.run()
        chosen = _best(rounds, limit)
        history = [*loop.history, *loop.train_on_masks(chosen.plan)]
    plan = chosen.plan
    context.write_json("plan.json", plan.to_json())
    loop.lpnet.save(context.partial)
    save_weights(loop.pruner.trained, context.partial / "gated.safetensors")
    full = loop.skeleton.groups.full()
    widths = zip(full.groups, full.kept, plan.widths().kept, strict=True)
    context.write_json(
        "prune.json",
        {
            "method": options.method,
            "budget": str(limit.budget),
            "budget_ms": limit.budget_ms,
            "aim_ms": limit.p50_ms * (1 - options.margin),
            "predicted_ms": chosen.predicted_ms,
            "history": [
                {**epoch.to_json(), "epoch": number} for number, epoch in enumerate(history, 1)
            ],
            "rounds": [item.to_json() for item in rounds],
            "widths": [{"group": g, "full": f, "kept": k} for g, f, k in widths],
        },
    )


def _best(rounds: list[Round], limit: Limit) -> Round:
    """The slowest plan that met the budget: it kept the most."""
    met = [item for item in rounds if item.met]
    if not met:
        raise BudgetMissedError(
            f"no plan met {limit.p50_ms:.3f} ms in {rounds[-1].round} rounds; the last measured "
            f"{rounds[-1].measured_ms:.3f} ms",
            fix="calibrate with more --samples, or widen --margin",
        )
    return max(met, key=lambda item: item.ratio)
