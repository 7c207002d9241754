"""Where the course of a training is written for people: CSV, TensorBoard or MLflow."""

from __future__ import annotations

import importlib.util
import shutil
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning_fabric.loggers.csv_logs import CSVLogger
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from pipeline.errors import DeployError

LoggerKind = Literal["csv", "tensorboard", "mlflow", "none"]

EXTRAS = {"tensorboard": "tensorboard", "mlflow": "mlflow"}  # kind -> package, extra of that name
RUN_ID = "mlflow-run"


class TrainingLog:
    """Numbers by step, under `logs/LABEL`; a resumed training goes on in a folder of its own."""

    def __init__(self, kind: LoggerKind, folder: Path, label: str, *, step: int) -> None:
        self._logger = _logger(kind, folder / "logs" / label.replace(" ", "-"), step)

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        if self._logger is not None:
            self._logger.log_metrics(metrics=dict(numbers), step=step)

    def save(self) -> None:
        """See to it that what was written is on the disk."""
        if self._logger is not None:
            self._logger.save()

    def close(self) -> None:
        if self._logger is not None:
            self._logger.finalize("success")


def _logger(kind: LoggerKind, folder: Path, step: int) -> Logger | None:
    if kind == "none":
        return None
    package = EXTRAS.get(kind)
    if package is not None and importlib.util.find_spec(package) is None:
        raise DeployError(
            f"--logger {kind} needs the package {package}, which is not installed",
            fix=f"run: pip install 'wgates[{kind}]', or use --logger csv",
        )
    if kind == "mlflow":
        return MLflowLogger(folder)
    version = f"from-step-{step}"
    # what a killed run wrote after its last checkpoint is done and written again
    shutil.rmtree(folder / version, ignore_errors=True)
    if kind == "tensorboard":
        return TensorBoardLogger(folder.parent, name=folder.name, version=version)
    return CSVLogger(folder.parent, name=folder.name, version=version)


class MLflowLogger(Logger):
    """A run on the tracking server that MLflow's own environment variables name.

    Its id is kept in the folder, so that a resumed training goes on in the same run.
    """

    def __init__(self, folder: Path) -> None:
        from mlflow.tracking import MlflowClient

        with _refusal_told():
            self._client = MlflowClient()
        self._folder = folder
        known = folder / RUN_ID
        if not known.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with _refusal_told():
                known.write_text(self._client.create_run("0", run_name=folder.name).info.run_id)
        self._run = known.read_text()

    @property
    def name(self) -> str:
        return self._folder.name

    @property
    def version(self) -> str:
        return self._run

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with _refusal_told():
            for name, value in metrics.items():
                self._client.log_metric(self._run, name, value, step=step)

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        values = vars(params) if isinstance(params, Namespace) else params
        for name, value in values.items():
            self._client.log_param(self._run, name, value)

    def finalize(self, status: str) -> None:
        with _refusal_told():
            self._client.set_terminated(self._run, "FINISHED" if status == "success" else "FAILED")


@contextmanager
def _refusal_told() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise DeployError(
            f"MLflow does not take what is logged: {error}",
            fix="set MLFLOW_TRACKING_URI to a server that answers, or use --logger csv; the same "
            "command resumes",
        ) from error
