"""Processes that are there and do nothing: systemd notices and starts them again."""

import os
import signal
import time

from host import ENGINES, ROUTERS, child, command, drop_in, pid, show, systemctl
from wait import until

# The units' own are longer; a proof is not to wait for them.
WATCHDOG_SECONDS = 2
RESTART_SECONDS_MAX = 3 * WATCHDOG_SECONDS + 8


def router(row, host):
    hangs(row, host, ROUTERS[0], pid)


def engine(row, host):
    row.allows = lambda outcome: "were on it" if outcome.worker == "gpu-0" else None
    hangs(row, host, ENGINES[0], child)


def hangs(row, host, unit, stuck):
    with drop_in(unit, f"WatchdogSec={WATCHDOG_SECONDS}"):
        systemctl("restart", unit)
        systemctl("reset-failed", unit)
        host.whole(row)
        before, since = int(show(unit, "NRestarts")), time.time()
        with host.loaded(row):
            time.sleep(1)
            os.kill(stuck(unit), signal.SIGSTOP)
            restarts = lambda: int(show(unit, "NRestarts")) - before
            _, took = until(f"a restart of {unit}", restarts, RESTART_SECONDS_MAX)
            row.remark(f"restarted after {took:.1f} s")
            host.whole(row)
        row.require(restarts() == 1, f"{restarts()} restarts")
        said = command("journalctl", "--no-pager", "--output=cat", f"--since=@{since}", f"--unit={unit}")
        row.require("Watchdog timeout" in said, f"it was not the watchdog: {said[-500:]!r}")
    systemctl("restart", unit)
    host.whole(row)
