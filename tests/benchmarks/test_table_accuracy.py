from __future__ import annotations

from typing import Any

from benchmarks.table_accuracy import accuracy, longer, variants

FORM = {
    "networks": ["net"],
    "images": 10_000,
    "adapt_epochs": 3,
    "gate_epochs": 6,
    "finetune_epochs": 10,
}
PROTOCOL = {"form": FORM, "train_precision": "bf16-mixed"}


def arm(top1: float, ratio: float) -> dict[str, Any]:
    return {
        "test": {"top1": top1, "ci95": [top1 - 0.01, top1 + 0.01]},
        "ratio_to_dense": ratio,
        "options": {"prune": {"worth_steps": 70}},
    }


def study(ours: float, l1: float, uniform: dict[str, Any]) -> dict[str, Any]:
    return {
        "budgets": {"0.5x": {"wgates": arm(ours, 0.49), "l1": arm(l1, 0.48), "uniform": uniform}},
        "made": {"0.5x": {"device": "a CPU"}},
        "dense": {"test": {"top1": 0.9}},
    }


def text(*studies: dict[str, Any]) -> str:
    named = {f"net-seed{seed}": study for seed, study in enumerate(studies)}
    return accuracy({"protocol": PROTOCOL, "studies": named})


def test_one_seed_has_intervals_of_images() -> None:
    found = text(study(0.85, 0.86, arm(0.8, 0.47)))
    assert "| wgates | 85.00 (84.00 to 86.00) at 0.490x |" in found
    assert "the plans that lose least are trained for 70 steps each" in found
    said = (
        "W-Gates is 1.00 points behind the best baseline (l1), 5.00 points ahead of the best "
        "without this selection (uniform), 5.00 points behind dense"
    )
    assert said in found


def test_baselines_without_the_selection_have_a_best_of_their_own() -> None:
    assert "the best without this selection (uniform)" in text(study(0.85, 0.86, arm(0.8, 0.47)))
    failed = text(study(0.85, 0.86, {"complaint": "error: no plan met it"}))
    assert "without this selection" not in failed


def test_several_seeds_have_their_range() -> None:
    found = text(*(study(top1, 0.84, arm(0.8, 0.47)) for top1 in (0.85, 0.87)))
    assert "| wgates | 86.00 (85.00 to 87.00) at 0.490x |" in found
    assert "2.00 points (+1.00 to +3.00) ahead of the best baseline (l1)" in found


def test_leads_are_of_the_seeds_that_both_have() -> None:
    more = study(0.80, 0.84, arm(0.8, 0.47))
    del more["budgets"]["0.5x"]["uniform"]
    more["budgets"]["0.8x"] = {"wgates": arm(0.88, 0.79)}
    more["made"]["0.8x"] = {"device": "a CPU"}
    found = text(study(0.86, 0.84, arm(0.8, 0.47)), more)
    assert "| uniform | – | 80.00 (79.00 to 81.00) at 0.470x; 1 seed |" in found
    assert "1.00 points (-4.00 to +2.00) behind the best baseline (l1), 6.00 points ahead" in found
    assert "- 0.8x: W-Gates is 2.00 points behind dense." in found


def test_an_arm_without_a_plan_is_no_baseline() -> None:
    failed = {"complaint": "error: no plan met it"}
    found = text(study(0.85, 0.84, failed), study(0.85, 0.84, arm(0.99, 0.5)))
    assert "| uniform | 99.00 at 0.500x; 1 missed it |" in found.replace(" (98.00 to 100.00)", "")
    assert "the best baseline (l1)" in found
    assert "met it." not in found
    alone = text(study(0.85, 0.84, failed))
    assert "| uniform | no plan met it |" in alone
    assert "No plan of uniform met it." in alone


def test_an_ablation_is_no_baseline() -> None:
    given = study(0.85, 0.84, arm(0.8, 0.47))
    given["budgets"]["0.5x"]["l1 by count"] = arm(0.86, 0.49)
    found = text(given)
    said = (
        "1.00 points ahead of the best baseline (l1), 5.00 points ahead of the best without this "
        "selection (uniform), 1.00 points behind l1 by count, "
    )
    assert said in found


def test_baselines_of_the_same_widths_are_named() -> None:
    given = study(0.85, 0.84, arm(0.8, 0.47))
    for name, kept in (("wgates", 16), ("l1", 16), ("uniform", 8)):
        given["budgets"]["0.5x"][name]["widths"] = [{"group": "a", "full": 32, "kept": kept}]
    found = text(given)
    assert "It keeps as many channels of every group as l1." in found
    assert "l1. Scores have the channels of 1 of 1 groups to choose." in found
    assert "as many channels" not in text(study(0.85, 0.84, arm(0.8, 0.47)))


def test_where_groups_are_whole_or_gone_scores_are_said_to_choose_nothing() -> None:
    given = study(0.85, 0.84, arm(0.8, 0.47))
    widths = [{"group": "a", "full": 32, "kept": 32}, {"group": "b", "full": 32, "kept": 0}]
    for name in ("wgates", "l1"):
        given["budgets"]["0.5x"][name]["widths"] = widths
    assert "All groups are whole or gone, so that no score has a channel to choose." in text(given)


def test_arms_that_one_budget_has_not_are_told_from_those_without_a_plan() -> None:
    given = study(0.85, 0.84, arm(0.8, 0.47))
    assert "not trained" not in text(given)
    given["budgets"]["0.8x"] = {"wgates": arm(0.88, 0.79), "l1": arm(0.87, 0.78)}
    found = text(given)
    assert "| uniform | – | 80.00 (79.00 to 81.00) at 0.470x |" in found
    assert "- –: not trained." in found
    given["made"]["0.8x"] = {"device": "another CPU"}
    assert "- Trained and measured on a CPU (0.8x: another CPU)." in text(given)


def test_variants_of_w_gates_are_told_by_how_far_they_lie_apart() -> None:
    given = study(0.85, 0.84, arm(0.8, 0.47))
    for name, top1 in (
        ("wgates ste", 0.83),
        ("wgates drawn", 0.84),
        ("wgates tanh", 0.86),
        ("l1 by count", 0.85),
    ):
        given["budgets"]["0.5x"][name] = arm(top1, 0.49)
    found = variants({"protocol": PROTOCOL, "studies": {"net-seed0": given}})
    assert "16 epochs an arm, 10 of them after W-Gates' pruning, in `bf16-mixed`" in found
    assert "| wgates tanh | 86.00 (85.00 to 87.00) at 0.490x |" in found
    said = (
        "5.00 points ahead of the best without this selection (uniform), 5.00 points behind "
        "dense. The variants go from 83.00 (wgates ste) to 86.00 (wgates tanh)."
    )
    assert said in found


def test_a_longer_study_says_how_long() -> None:
    studies = {"net-seed1": study(0.87, 0.86, arm(0.8, 0.47))}
    found = longer({"protocol": PROTOCOL, "studies": studies})
    assert "6 with gates and 10 of fine-tuning, 16 for each arm" in found
    assert "1.00 points ahead of the best baseline (l1)" in found
