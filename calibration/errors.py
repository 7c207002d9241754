"""Errors of calibration; the whole tree is drawn in `pipeline/errors.py`."""

from __future__ import annotations

from targets.errors import DeployError


class GroupsError(DeployError):
    """A channel-group map, width vector or plan does not fit the network it is used on."""


class DatabaseError(DeployError):
    """The latency database is corrupt, foreign or of a newer schema."""


class FleetError(DeployError):
    """The measuring fleet cannot be joined, lost its devices, or one of them failed."""


class MeasuringError(DeployError):
    """Candidates cannot be measured: the target fails, or too many of them take it along."""


class CandidateLostError(MeasuringError):
    """One candidate hung or crashed the process that measured it; others may not."""


class PredictorError(DeployError):
    """Too few records, records that may not be mixed, or widths outside the range seen."""
