"""Each unit restarted under load: nobody notices."""

import time

from host import FRONTEND, SERVICES, systemctl

BEFORE_SECONDS = 1


def restarted(unit):
    def case(row, host):
        with host.loaded(row):
            time.sleep(BEFORE_SECONDS)
            begun = time.monotonic()
            systemctl("restart", unit)
            row.remark(f"{time.monotonic() - begun:.1f} s")
            host.whole(row)
        if unit == FRONTEND:
            row.require(not row.refused, f"{row.refused} connections were refused")

    return case


SCENARIOS = {f"{unit} restarted": restarted(unit) for unit in SERVICES if "gpu-1" not in unit}
