"""Units that are stopped under load finish what they have."""

import time

from host import ENGINES, FRONTEND, SERVICES, SOCKETS, show, systemctl
from wait import until

# What the units promise: the grace, and what is added to it.
STOP_SECONDS_MAX = 35
STREAMS = 20


def frontend(row, host):
    streams = begun(host)
    stop(row, *SOCKETS, FRONTEND)
    row.count(streams.result())
    ended_well(row, FRONTEND)
    systemctl("start", *SOCKETS, FRONTEND)
    host.whole(row)


def engine(row, host):
    with host.loaded(row):
        streams = begun(host)
        stop(row, ENGINES[0])
        row.count(streams.result())
        ended_well(row, ENGINES[0])
        systemctl("start", ENGINES[0])
        host.whole(row)


def all_of_it(row, host):
    streams = begun(host)
    begun_at = time.monotonic()
    # It waits for the target alone.
    systemctl("stop", "kvlens.target")
    active = lambda: [unit for unit in SERVICES if show(unit, "ActiveState") != "inactive"]
    until(lambda: f"the end of {active()}", lambda: not active(), STOP_SECONDS_MAX)
    row.took(time.monotonic() - begun_at, STOP_SECONDS_MAX, "the stop")
    row.count(streams.result())
    for unit in SERVICES:
        ended_well(row, unit)


def begun(host):
    """Streams of some seconds, all of which have begun."""
    streams = host.asks([host.bodies.long(120) for _ in range(STREAMS)])
    time.sleep(1.5)
    return streams


def stop(row, *units):
    begun_at = time.monotonic()
    systemctl("stop", *units)
    row.took(time.monotonic() - begun_at, STOP_SECONDS_MAX, "the stop")


def ended_well(row, unit):
    said = {name: show(unit, name) for name in ("ActiveState", "Result", "ExecMainStatus")}
    expected = {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"}
    row.require(said == expected, f"{unit} ended as {said}")
