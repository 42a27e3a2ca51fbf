"""Holds a cluster of kvlens against all that breaks in a rack: each scenario under load.

usage: prove.py KVLENS_BINARY WORK_FOLDER SECONDS_MAX [quick] [SCENARIO...]

Needs namespaces of its own, which `inside` makes. WORK_FOLDER is short and empty; `quick` shortens
the long silences. Prints a table, and last `counted: P passed; F failed; S skipped`; exits 1 when a
scenario failed.
"""

import signal
import sys
import time
import traceback

import case_clock
import case_embedded
import case_engines
import case_etcd
import case_nats
import case_partition
import case_permissions
import case_rolling
import case_routers
import net
import scenario
from cluster import Cluster
from ground import Site
from sent import new_report

SCENARIOS = {
    "nothing wrong": lambda row, cluster: time.sleep(5),
    "etcd stands still": case_etcd.stopped,
    "etcd killed, back with its data": case_etcd.killed,
    "etcd killed, back without its data": case_etcd.lost,
    "who may say what on the bus": case_permissions.held,
    "NATS stands still": case_nats.stopped,
    "NATS killed, away": case_nats.killed,
    "NATS restarted": case_nats.restarted,
    "a router stands still in a storm": case_nats.slow_router,
    "events lost, the last ones too": case_nats.lossy,
    "one router killed": case_routers.one_killed,
    "both routers killed": case_routers.both_killed,
    "host hears nothing": case_partition.inbound,
    "host is not heard": case_partition.outbound,
    "host cut off": case_partition.both,
    "host cut off mid-stream": case_partition.mid_stream,
    "engine killed": case_engines.killed,
    "kvlens engine killed": case_engines.role_killed,
    "agent killed": case_engines.agent_killed,
    "engine stands still": case_engines.stopped,
    "agent stands still": case_engines.agent_stopped,
    "a deadly request": case_engines.deadly,
    "clock off by an hour": case_clock.jumps,
    "routers inside frontends": case_embedded.shared,
    "rolling restart": case_rolling.rolling,
}


class Late(BaseException):
    """The run takes too long; it ends no single scenario, but all of them."""


def late(*_):
    raise Late


def main(binary, folder, seconds_max, *words):
    is_quick = words[:1] == ("quick",)
    chosen = words[1:] if is_quick else words
    if unknown := [name for name in chosen if name not in SCENARIOS]:
        sys.exit(f"no scenario {unknown[0]!r}; there are: {', '.join(SCENARIOS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    signal.signal(signal.SIGALRM, late)
    signal.alarm(int(seconds_max))
    print("a quick run: silences are short" if is_quick else "a full run", flush=True)
    report = new_report()
    try:
        net.build()
        cluster = Cluster(Site(binary, folder, is_quick))
        cluster.start()
        for name, case in SCENARIOS.items():
            if not chosen or name in chosen:
                scenario.run(report, cluster, name, case)
    except BaseException:
        # What was found so far is told, whatever ends the run.
        report.row("the run").fault(traceback.format_exc())
    return 0 if report.print() else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
