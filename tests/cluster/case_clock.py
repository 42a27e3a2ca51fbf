"""A host whose clock is wrong by an hour, either way, and jumps between."""

import time

import net
from cluster import WORKERS
from members import registered
from scenario import settle, whole_at_last

LIBRARY = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
OFFSETS = ["+3600", "-3600", "+0"]
STEP_SECONDS = 12


def jumps(row, cluster):
    """Leases, limiters and time-outs are by a clock that does not jump."""
    offset = cluster.site.path("clock")
    set_clock(offset, OFFSETS[0])
    environment = {
        "LD_PRELOAD": LIBRARY,
        "FAKETIME_TIMESTAMP_FILE": offset,
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    there = [worker for worker, (machine, *_) in WORKERS.items() if machine == net.HOST_A]
    replace(row, cluster, there, environment)
    leases = leases_of(there)
    for text in OFFSETS:
        set_clock(offset, text)
        began = time.monotonic()
        while time.monotonic() - began < STEP_SECONDS:
            lacks = cluster.what_lacks()
            row.require(not lacks, f"with a clock of {text} s: {lacks}")
            time.sleep(1)
    row.require(leases_of(there) == leases, f"leases were {leases}, are {leases_of(there)}")
    replace(row, cluster, there, {})


def set_clock(path, text):
    with open(path, "w") as file:
        file.write(f"{text}\n")


def leases_of(workers):
    found = registered() or {}
    return {worker: found[worker][1] for worker in workers if worker in found}


def replace(row, cluster, workers, environment):
    """Agents and engines of a host start again, with another clock."""
    for worker in workers:
        cluster[f"agent-{worker}"].stop()
        cluster[f"engine-{worker}"].stop()
        cluster.add(cluster.engine(worker, environment)).start()
        cluster.add(cluster.agent(worker, environment=environment)).start()
        whole_at_last(cluster)
    settle(cluster)
