"""Measuring again what neighbours disturbed, for networks that judge a calibration."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from calibration.database import LatencyDatabase
from calibration.errors import CandidateLostError
from calibration.measure import Measurer
from calibration.pace import calm
from calibration.widths import WidthVector

# before each more time that a disturbed network is measured: neighbours compute for tens of seconds
PAUSES_S = (2.0, 4.0, 8.0, 16.0)


def repeat_disturbed(
    measurer: Measurer,
    database: LatencyDatabase,
    wanted: Sequence[WidthVector],
    *,
    precision: float = 0.01,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Measure again what others disturbed, a few times; of each the calmest stays.

    `wait` is given the seconds until the next time.
    """
    ours = set(wanted)
    for pause_s in PAUSES_S:
        records = database.records(measurer.skeleton_sha256, measurer.fingerprint)
        judged = zip(records, calm(records), strict=True)
        disturbed = [record for record, quiet in judged if not quiet and record.widths in ours]
        if not disturbed:
            return
        wait(pause_s)
        for before in disturbed:
            with suppress(CandidateLostError):  # the earlier measurement is good for something
                row = measurer.row(before.widths, precision=precision)
                if row.anchor_ms < before.anchor_ms:
                    database.add(row)
