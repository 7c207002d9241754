"""Every error a user can cause, as one tree over the three packages.

::

    DeployError                    message and fix; the command line exits with 1        targets
      TargetUnavailableError       the runtime or the device is missing                  targets
      BuildError                   the runtime refused the model                         targets
      EngineError                  a built engine failed to load or to run               targets
      FingerprintError             latencies of unlike set-ups may not be compared       targets
      GroupsError                  groups, widths or plan do not fit the network         calibration
      DatabaseError                the latency database is corrupt or too new            calibration
      FleetError                   the measuring fleet is not there, or a device failed  calibration
      PredictorError               too few records, a mixture, or outside the range      calibration
      ModelError                   the model cannot be made, or its weights do not fit   pipeline
      DataError                    no data, corrupt data, or data that does not fit      pipeline
      MissingInputError            a stage has not run yet                               pipeline
      TrainingError                the loss became NaN, or memory or a process is gone    pipeline
      ParityError                  two forms of one network give different outputs       pipeline
      BudgetUnreachableError       even the narrowest widths are too slow                pipeline
      BudgetMissedError            the verified engine is slower than the budget         pipeline
      RegressionError              a check found the candidate worse than it may be      pipeline
      InconclusiveError            too noisy for a verdict (exit code 3)                 pipeline
      BundleError                  wrong schema, or a file's digest differs              pipeline
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from calibration.errors import DatabaseError, FleetError, GroupsError, PredictorError
from targets.errors import (
    BuildError,
    DeployError,
    EngineError,
    FingerprintError,
    TargetUnavailableError,
)

EXIT_FAILED = 1

__all__ = [
    "EXIT_FAILED",
    "BudgetMissedError",
    "BudgetUnreachableError",
    "BuildError",
    "BundleError",
    "DataError",
    "DatabaseError",
    "DeployError",
    "EngineError",
    "FingerprintError",
    "FleetError",
    "GroupsError",
    "InconclusiveError",
    "MissingInputError",
    "ModelError",
    "ParityError",
    "PredictorError",
    "RegressionError",
    "TargetUnavailableError",
    "TrainingError",
    "in_words",
    "loader_faults_told",
]


class ModelError(DeployError):
    """The model cannot be made, or its weights do not fit."""


class DataError(DeployError):
    """No data, corrupt data, or data that does not fit the model."""


class MissingInputError(DeployError):
    """A stage has not run yet."""


class TrainingError(DeployError):
    """The loss became NaN or infinite, memory ran out, or a process that trains is gone."""


class ParityError(DeployError):
    """Two forms of one network give different outputs."""


class BudgetUnreachableError(DeployError):
    """Even the narrowest widths are too slow."""


class BudgetMissedError(DeployError):
    """The verified engine is slower than the budget."""


class RegressionError(DeployError):
    """A check found the candidate worse than it may be."""


class InconclusiveError(DeployError):
    """The machine was too noisy for a verdict."""


class BundleError(DeployError):
    """Wrong schema, a missing file, or a file whose digest differs."""


def in_words(error: DeployError) -> str:
    """What happened in one line, and what to do in another."""
    return f"error: {error.message}" + (f"\n  fix: {error.fix}" if error.fix else "")


@contextmanager
def loader_faults_told() -> Iterator[None]:
    """DataError if a process that decodes images dies inside.

    torch learns of it by a signal and raises wherever the program happens to be, so this stands
    around whole stages.
    """
    try:
        yield
    except RuntimeError as failure:
        if "DataLoader worker" not in str(failure):
            raise
        raise DataError(
            f"a process that decodes images died: {failure}",
            fix="see that there is memory for all of them, or lower --loader-workers",
        ) from failure
