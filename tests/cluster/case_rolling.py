"""Every process restarted in turn, as for an upgrade: no request notices."""

import itertools
import time

import ask
from cluster import CONTROL, FRONTENDS, ROUTERS, WORKERS
from scenario import caught_up, whole_at_last

REQUESTS = 10_000
# A router or an agent is there again before the next one goes.
BETWEEN_SECONDS = 1


def rolling(row, cluster):
    """All roles in turn, over and over, until each was restarted and enough requests were sent."""
    begun, restarts = cluster.load.sent, 0
    every = list(turns(cluster))
    for turn in itertools.cycle(every):
        if restarts >= len(every) and cluster.load.sent - begun >= REQUESTS:
            break
        turn()
        restarts += 1
        whole_at_last(cluster)
        time.sleep(BETWEEN_SECONDS)
    caught_up(row, cluster)
    row.remark(f"{restarts} processes restarted")


def turns(cluster):
    """What restarts each process."""
    for router in ROUTERS:
        yield cluster[f"router-{router}"].restart
    for worker in WORKERS:
        yield cluster[f"agent-{worker}"].restart
        yield cluster[f"engine-{worker}"].restart
    for frontend in FRONTENDS:
        yield lambda frontend=frontend: hand_over(cluster, frontend)


def hand_over(cluster, frontend):
    """The next life listens before the one before stops to."""
    process = cluster[f"frontend-{frontend}"]
    ready = f"http://{CONTROL}:{FRONTENDS[frontend]}"
    process.succeed(lambda: "frontend ready" in process.said() and is_ready(ready))


def is_ready(url):
    return ask.get(url, "/ready")[0] == 200
