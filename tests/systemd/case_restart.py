"""Each unit restarted under load: nobody notices."""

import time

from host import FRONTEND, SERVICES, pid, systemctl

BEFORE_SECONDS = 1


def restarted(unit):
    def case(row, host):
        with host.loaded(row):
            time.sleep(BEFORE_SECONDS)
            begun, before = time.monotonic(), pid(unit)
            systemctl("restart", unit)
            row.remark(f"{time.monotonic() - begun:.1f} s")
            row.require(pid(unit) != before, "it is the same process")
            host.whole(row)
        if unit == FRONTEND:
            row.require(not row.refused, f"{row.refused} connections were refused")

    return case


SCENARIOS = {f"{unit} restarted": restarted(unit) for unit in SERVICES if "gpu-1" not in unit}
