"""Proves that sick GPUs leave the route and well ones never do, on eight fake GPUs: each fault is a row.

usage: prove.py KVLENS_BINARY FAKE_LIBRARY FOLDER SECONDS_MAX [ROW...]

`FAKE_LIBRARY` stands in for NVIDIA's libnvidia-ml.so.1 (tests/fake_nvml): nothing here was seen on a real
GPU. Prints a table, and last `counted: P passed; F failed; S skipped`; exits 1 when a row failed.
"""

import pathlib
import signal
import sys
import traceback

import case_cost
import case_driver
import case_events
import case_hang
import case_random
import case_signals
from box import Box
from sent import new_report

SCENARIOS = {
    **case_signals.SCENARIOS,
    # Before the XIDs, of which one softens errors of memory that come within a minute.
    "1,000 random faults": case_random.random_faults,
    **case_events.SCENARIOS,
    **case_hang.SCENARIOS,
    **case_driver.SCENARIOS,
    **case_cost.SCENARIOS,
    **case_signals.LAST,
}


class Late(BaseException):
    """The run takes too long; it ends no single row, but all of them."""


def late(*_):
    raise Late


def main(kvlens, library, folder, seconds_max, *chosen):
    if unknown := [name for name in chosen if name not in SCENARIOS]:
        sys.exit(f"no row {unknown[0]!r}; there are: {', '.join(SCENARIOS)}")
    signal.signal(signal.SIGALRM, late)
    signal.alarm(int(seconds_max))
    report = new_report()
    box = None
    try:
        kvlens, library = (pathlib.Path(path).resolve() for path in (kvlens, library))
        box = Box(kvlens, library, folder)
        for name, case in SCENARIOS.items():
            if not chosen or name in chosen:
                report.run(name, case, box)
    except BaseException:
        # What was found so far is told, whatever ends the run.
        report.row("the run").fault(traceback.format_exc())
    finally:
        signal.alarm(0)
        if box:
            box.stop()
    return 0 if report.print() else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
