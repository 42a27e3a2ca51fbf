"""Every process restarted in turn, as for an upgrade: no request notices."""

import time

import ask
from cluster import CONTROL, FRONTENDS, ROUTERS, WORKERS
from scenario import caught_up, whole_at_last

REQUESTS = 10_000
# A router or an agent is there again before the next one goes.
BETWEEN_SECONDS = 1


def rolling(row, cluster):
    """All roles in turn, over and over, until enough requests were sent."""
    begun = cluster.load.sent
    restarts = 0
    while cluster.load.sent - begun < REQUESTS or restarts == 0:
        for turn in turns(cluster):
            turn()
            restarts += 1
            whole_at_last(cluster)
            time.sleep(BETWEEN_SECONDS)
            if restarts > len(WORKERS) * 2 + 4 and cluster.load.sent - begun >= REQUESTS:
                break
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
