"""Engines and agents that die or stand still, and a request of which engines die."""

import os
import signal
import time

from bodies import Bodies
from cluster import DEADLY, WORKERS
from processes import Stopped
from scenario import PATIENCE_SECONDS, STREAM_CUT, caught_up, settle, whole, whole_at_last

STANDSTILL_SECONDS = 20
BYSTANDER = "requests were on both engines that died"
BYSTANDERS_MAX = 3
DEADLY_STATUS, REFUSED_STATUS = 502, 422
ENGINES_KILLED_MAX = 2


def killed(row, cluster):
    """An engine dies: what it had not begun to answer is placed again."""
    settle(cluster)
    allow_events(row)
    pid = cluster.engine_pid("a-0")
    os.kill(pid, signal.SIGKILL)
    time.sleep(3)
    whole_at_last(cluster)
    row.require(cluster.engine_pid("a-0") != pid, "it is the same process")


def role_killed(row, cluster):
    """`kvlens engine` dies, and its engine with it; nobody answers there until it is back."""
    settle(cluster)
    allow_events(row)
    cluster["engine-b-1"].kill()
    time.sleep(3)
    cluster["engine-b-1"].start()
    whole_at_last(cluster)


def agent_killed(row, cluster):
    """An agent dies: its engine serves on."""
    settle(cluster)
    cluster["agent-a-1"].kill()
    time.sleep(cluster.site.silence(STANDSTILL_SECONDS))
    cluster["agent-a-1"].start()
    whole(row, cluster, 10)
    caught_up(row, cluster)


def stopped(row, cluster):
    """An engine stands still; it is not taken for dead."""
    settle(cluster)
    allow_events(row)
    pid = cluster.engine_pid("b-0")
    with Stopped(pid):
        time.sleep(STANDSTILL_SECONDS)
    whole_at_last(cluster)
    row.require(cluster.engine_pid("b-0") == pid, "it was restarted")


def agent_stopped(row, cluster):
    """An agent stands still: its engine serves on, and its lease may run out."""
    settle(cluster)
    with Stopped(cluster["agent-b-1"].pid):
        time.sleep(STANDSTILL_SECONDS)
    whole(row, cluster)
    caught_up(row, cluster)


def deadly(row, cluster):
    """A request that kills every engine it meets takes two down, and then is refused."""
    settle(cluster)
    allow_bystanders(row)
    pids = {worker: cluster.engine_pid(worker) for worker in WORKERS}
    body = Bodies(seed=11).chat(DEADLY, 8, stream=False)
    statuses = []
    for _ in range(3):
        [outcome] = cluster.load.ask([body]).result(PATIENCE_SECONDS)
        statuses.append(outcome.status)
    expected = [DEADLY_STATUS, REFUSED_STATUS, REFUSED_STATUS]
    row.require(statuses == expected, f"it is answered {statuses}, not {expected}")
    whole_at_last(cluster)
    died = [worker for worker, pid in pids.items() if cluster.engine_pid(worker) != pid]
    row.require(len(died) <= ENGINES_KILLED_MAX, f"it killed {died}")
    row.remark(f"{len(died)} engines died")


def allow_bystanders(row):
    """Whoever was on both engines that died is answered as the deadly one is: nobody can tell which of
    them it was. There are few, because each is placed where it costs least."""
    left = [BYSTANDERS_MAX]

    def allows(one):
        if one.is_stream and one.kind == "event":
            return STREAM_CUT
        if one.status != DEADLY_STATUS or "engine_failed" not in one.said or not left[0]:
            return None
        left[0] -= 1
        return BYSTANDER

    row.allows = allows


def allow_events(row):
    """Streams that cannot go on elsewhere end with an error event."""
    row.allows = lambda one: STREAM_CUT if one.is_stream and one.kind == "event" else None
