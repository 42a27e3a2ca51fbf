"""The units themselves, and their first start."""

import re

from host import AGENTS, ENGINES, FRONTEND, PLANES, ROUTERS, SERVICES, SOCKETS, command

STARTED_SECONDS_MAX = 5.0
# systemd's own scores, times ten.
EXPOSURES_MAX = {
    **dict.fromkeys((FRONTEND, *ROUTERS), 12),
    **dict.fromkeys(PLANES, 15),
    **dict.fromkeys((*AGENTS, *ENGINES), 18),
}


def sound(row, _host):
    """Nothing is to be said of any unit, and each is as closed as it is promised to be."""
    said = command("systemd-analyze", "verify", "--man=no", *SERVICES, *SOCKETS, "kvlens.target")
    row.require(not said.strip(), f"systemd-analyze verify says {said!r}")
    for unit, exposure_max in EXPOSURES_MAX.items():
        said = command("systemd-analyze", "security", "--no-pager", unit)
        found = re.search(r"Overall exposure level for \S+ ([0-9.]+)", said)
        exposure = float(found[1]) if found else None
        row.require(
            exposure is not None and exposure * 10 <= exposure_max,
            f"{unit} has exposure {exposure}, at most {exposure_max / 10}",
        )


def started(row, host):
    """All is there within seconds, and a picture is found again."""
    row.took(host.start(), STARTED_SECONDS_MAX, "the start")
    body = host.picture()
    first, second = [host.asks([body]).result()[0] for _ in range(2)]
    row.count([first, second])
    overlap, blocks = map(int, second.headers.get("x-kvlens-overlap", "0/0").split("/"))
    row.require(0 < blocks == overlap, f"the same picture again overlaps {overlap} of {blocks}")
    row.require(first.worker == second.worker, f"{first.worker}, then {second.worker}")
    is_placed = second.router and not second.router.startswith("fallback")
    row.require(is_placed, f"the router is {second.router!r}")
    table = host.run("units", "status")
    print(table, flush=True)
    for unit in (*SERVICES, *SOCKETS):
        lines = (line.split() for line in table.splitlines())
        state = next((words[1] for words in lines if words[:1] == [unit]), None)
        row.require(state == "active", f"`kvlens units status` says of {unit}: {state}")
