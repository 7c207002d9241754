"""What users get wrong: one line that says what, one that says what to do, never a traceback."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from .conftest import Done
from .project import DATA, SETTINGS, STAGES, complaint_of, events, invoke, stages_run, write_plan

RunUntil = Callable[[str], Path]


def prepare(project: Path, *flags: str | Path) -> tuple[str, str]:
    """(message, fix) of a prepare that must fail."""
    result = invoke("prepare", "run", "--config", "plan.toml", "--json", *flags)
    assert not (project / "run" / "prepare").exists()
    return complaint_of(result)


@pytest.fixture
def state(whole_run: Done) -> dict[str, torch.Tensor]:
    return load_file(whole_run.folder / "prepare" / "dense.safetensors")


# weights --------------------------------------------------------------------------------------


def test_no_such_weights_file(project: Path) -> None:
    message, fix = prepare(project, "--weights", "nowhere.pt")
    assert "no weights file nowhere.pt" in message
    assert fix == "check the path"


def test_weights_of_another_network(project: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({f"backbone.{key}": value for key, value in state.items()}, "other.pt")
    message, _ = prepare(project, "--weights", "other.pt", "--dense-epochs", "0")
    assert "other.pt does not fit the model" in message
    assert "missing: conv1.weight" in message
    assert "unexpected: backbone." in message


def test_weights_of_another_width(project: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({**state, "conv3.weight": torch.zeros(48, 64, 3, 3)}, "narrow.pt")
    message, _ = prepare(project, "--weights", "narrow.pt")
    assert "conv3.weight: (48, 64, 3, 3) in the file, (64, 64, 3, 3) in the model" in message


def test_class_count_that_does_not_fit_the_head(
    project: Path, state: dict[str, torch.Tensor]
) -> None:
    head = {"linear.weight": torch.zeros(7, 64), "linear.bias": torch.zeros(7)}
    torch.save({**state, **head}, "seven.pt")
    message, fix = prepare(project, "--weights", "seven.pt")
    assert "7 outputs, the data has 10 classes" in message
    assert "train without weights" in fix


class Dropper:
    """Unpickling it would create a file."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("owned"),)  # type: ignore[return-value]


def test_weights_with_code_in_them_are_not_run(project: Path) -> None:
    (project / "evil.pt").write_bytes(pickle.dumps({"conv1.weight": Dropper()}))
    message, fix = prepare(project, "--weights", "evil.pt")
    assert "holds code" in message
    assert "safetensors" in fix
    assert not (project / "owned").exists()
    # the file does what it says when it is trusted: the test above can fail
    pickle.loads((project / "evil.pt").read_bytes())
    assert (project / "owned").exists()


# data, model, target --------------------------------------------------------------------------


def test_no_such_data_folder(project: Path) -> None:
    message, _ = prepare(project, "--data", "imagefolder:nowhere")
    assert "nowhere" in message


def test_data_folder_without_images(project: Path) -> None:
    (project / "images" / "train" / "cat").mkdir(parents=True)
    message, _ = prepare(project, "--data", "imagefolder:images")
    assert "images" in message


def test_data_folder_with_one_class(project: Path) -> None:
    for split in ("train", "test"):
        folder = project / "images" / split / "cat"
        folder.mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (16, 16), (index, 0, 0)).save(folder / f"{index}.png")
    message, _ = prepare(project, "--data", "imagefolder:images", "--image-size", "16")
    assert "class" in message


def test_unknown_data(project: Path) -> None:
    message, fix = prepare(project, "--data", "mnist")
    assert message == "unknown data 'mnist'"
    assert "imagefolder:DIR" in fix


def test_mistake_in_the_users_file(project: Path) -> None:
    (project / "tiny.py").write_text("def tiny(num_classes):\n    return undefined_name\n")
    message, _ = prepare(project)
    assert "tiny.py, line 2 failed with NameError" in message


@pytest.mark.parametrize(
    ("model", "suggestion"),
    [("wgates:resnet21", "wgates:resnet20"), ("resnet50", "torchvision:resnet50")],
)
def test_unknown_model(project: Path, model: str, suggestion: str) -> None:
    message, fix = prepare(project, "--model", model)
    assert message == f"unknown model {model!r}"
    assert suggestion in fix


def test_unknown_target(run_until: RunUntil) -> None:
    result = invoke("calibrate", run_until("calibrate"), "--json", "--target", "ort-cpuu")
    message, fix = complaint_of(result)
    assert message == "there is no target 'ort-cpuu'"
    assert fix.startswith("did you mean 'ort-cpu'?")


@pytest.mark.parametrize(
    "flags",
    [
        ("--device", "abacus"),
        ("--train-precision", "3-mixed"),
        # fabric would train in bf16 instead and only warn
        ("--train-precision", "16-mixed"),
    ],
)
def test_device_or_precision_that_cannot_be_had(project: Path, flags: tuple[str, str]) -> None:
    message, fix = prepare(project, *flags)
    assert message.startswith("cannot train on ")
    assert flags[1] in message
    assert "--train-precision 32-true" in fix


def test_network_without_a_width_to_prune(project: Path) -> None:
    (project / "tiny.py").write_text(
        "from torch import nn\n\n\ndef tiny(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(256, num_classes))\n"
    )
    assert invoke("prepare", "run", "--config", "plan.toml", "--json").exit_code == 0
    message, _ = complaint_of(invoke("trace", "run", "--json"))
    assert "no layer of this model can be pruned" in message


# budgets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["0.01x", "0.000001ms"])
def test_budget_below_the_floor_stops_before_any_training(
    run_until: RunUntil, monkeypatch: pytest.MonkeyPatch, budget: str
) -> None:
    def no_step(*_: object, **__: object) -> None:
        raise AssertionError("a gradient step was made")

    monkeypatch.setattr(torch.optim.SGD, "step", no_step)
    folder = run_until("prune")
    message, fix = complaint_of(invoke("prune", folder, "--json", "--budget", budget))
    calibration = json.loads((folder / "calibrate" / "calibration.json").read_text())
    floor = calibration["floor"]
    assert f"the budget {budget} " in message
    assert f"{floor['ms']:.3f} ms ({floor['ratio']:.2f}x of dense)" in message
    assert fix.startswith("ask for at least ")
    asked_for = float(fix.removeprefix("ask for at least ").removesuffix("x"))
    assert floor["ratio"] < asked_for < 1.2 * floor["ratio"] + 0.02
    assert not list(folder.rglob("gates*.safetensors"))


# training that diverges -----------------------------------------------------------------------


def test_data_that_makes_the_loss_infinite(project: Path) -> None:
    message, fix = prepare(project, "--data", "digits.py:poisoned")
    assert "dense: " in message
    assert "of epoch 1; there is no checkpoint" in message
    assert fix == "lower --dense-lr"


def test_diverging_finetuning_keeps_the_last_good_checkpoint(run_until: RunUntil) -> None:
    folder = run_until("finetune")
    flags = ("--finetune-lr", "1e12", "--finetune-epochs", "40", "--json")
    message, fix = complaint_of(invoke("finetune", folder, *flags))
    assert message.startswith("finetune: ")
    assert fix == "lower --finetune-lr"
    for path in (folder / "finetune.partial").glob("*.safetensors"):
        assert all(bool(torch.isfinite(value).all()) for value in load_file(path).values())
    assert not (folder / "finetune").exists()
    # the fix works
    assert (
        invoke("finetune", folder, "--finetune-lr", "0.01", "--finetune-epochs", "1").exit_code == 0
    )


# a run folder's state -------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES[1:])
def test_missing_input_names_the_command_to_run(project: Path, stage: str) -> None:
    message, fix = complaint_of(invoke(stage, "empty", "--json"))
    assert message.startswith("empty has no ")
    needed = fix.removeprefix("run: pipeline ").removesuffix(" empty")
    assert STAGES.index(needed) < STAGES.index(stage)
    assert f"empty has no {needed}/" in message


def test_damaged_input_of_a_stage(run_until: RunUntil) -> None:
    folder = run_until("finetune")
    gated = folder / "prune" / "gated.safetensors"
    gated.write_bytes(gated.read_bytes()[:1000])
    complaint_of(invoke("finetune", folder, "--json"))


def test_edited_data_file_is_read_again(project: Path) -> None:
    command = ("prepare", "run", "--config", "plan.toml", "--json")
    assert invoke(*command).exit_code == 0
    assert invoke(*command).exit_code == 0
    assert stages_run(events(project / "run")) == ["prepare"]
    (project / "digits.py").write_text(DATA.replace("* 15", "* 14"))
    assert invoke(*command).exit_code == 0
    assert stages_run(events(project / "run")) == ["prepare", "prepare"]


def test_plan_with_a_wrong_type(project: Path) -> None:
    write_plan(project / "plan.toml", {**SETTINGS, "calibrate": {"samples": "many"}})
    message, fix = prepare(project)
    assert message == ("plan.toml: [calibrate] samples = 'many' will not do: it is a whole number")
    assert fix == "samples: most width vectors to measure"
