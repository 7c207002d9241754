"""The course of a training as people read it."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import pytest

from pipeline.errors import DeployError
from pipeline.training import Trainer, Upkeep, loop
from pipeline.training.logs import TrainingLog

from .small import Killed, make_model, recipe, train


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_a_line_for_each_epoch_and_some_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    _, trainer = train(tmp_path, recipe(2), upkeep=Upkeep(logger="csv"))
    found = rows(tmp_path / "logs" / "dense" / "from-step-0" / "metrics.csv")
    epochs = [row for row in found if row["epoch_val_top1"]]
    assert [int(row["step"]) for row in epochs] == [5, 10]
    assert [float(row["epoch_val_top1"]) for row in epochs] == [
        epoch.val_top1 for epoch in trainer.history
    ]
    steps = [row for row in found if row["lr"]]
    assert [int(row["step"]) for row in steps] == [2, 4, 7, 9]
    assert all(float(row["loss"]) > 0 for row in steps)
    assert float(steps[-1]["lr"]) < float(steps[0]["lr"])


def test_a_resumed_training_goes_on_in_a_file_of_its_own(tmp_path: Path) -> None:
    def stop(trainer: Trainer) -> None:
        if len(trainer.history) == 1 and trainer.progress.steps == 2:
            raise Killed

    for _ in range(2):  # the second time it is killed at the same place
        with pytest.raises(Killed):
            train(tmp_path, recipe(2), on_step=stop, upkeep=Upkeep(logger="csv"))
    train(tmp_path, recipe(2), model=make_model(seed=4), upkeep=Upkeep(logger="csv"))
    files = sorted(tmp_path.glob("logs/dense/*/metrics.csv"))
    assert [path.parent.name for path in files] == ["from-step-0", "from-step-5"]
    assert [len(rows(path)) for path in files] == [1, 1]


def test_nothing_is_written_when_nobody_asks(tmp_path: Path) -> None:
    train(tmp_path, recipe(1))
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_a_missing_package_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeployError, match=f"--logger {kind} needs the package") as caught:
        TrainingLog(kind, tmp_path, "dense", step=0)  # type: ignore[arg-type]
    assert f"pip install 'wgates[{kind}]'" in caught.value.fix


@pytest.mark.filterwarnings("ignore")  # of packages that are not ours
def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, recipe(2), upkeep=Upkeep(logger="tensorboard"))
    events = EventAccumulator(str(tmp_path / "logs" / "dense" / "from-step-0"))
    events.Reload()
    assert [event.step for event in events.Scalars("epoch_loss")] == [5, 10]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "server").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "false")
    with pytest.raises(DeployError, match="MLflow does not take") as caught:
        TrainingLog("mlflow", tmp_path, "dense", step=0)
    assert "MLFLOW_TRACKING_URI" in caught.value.fix
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for step in (0, 5):
        log = TrainingLog("mlflow", tmp_path, "masked weights", step=step)
        log.write({"loss": 2.0 - step / 10}, step)
        log.close()
    client = MlflowClient()
    (run,) = client.search_runs(["0"])
    assert run.info.run_name == "masked-weights"
    assert run.info.status == "FINISHED"
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == [
        (0, 2.0),
        (5, 1.5),
    ]
