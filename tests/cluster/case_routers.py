"""Routers that die: the other one answers, and without any the requests go round, which is said."""

import time

import ask
from cluster import ROUTERS, WORKERS
from scenario import caught_up, fallbacks, settle, whole

DEAD_SECONDS = 6
# Frontends miss a router that is gone within this time.
MISSED_SECONDS = 1


def one_killed(row, cluster):
    """One of two dies."""
    settle(cluster)
    answered = {one.router for one in cluster.load.outcomes}
    row.require(answered <= set(ROUTERS) and answered, f"routers that have answered: {answered}")
    cluster["router-r-1"].kill()
    killed = time.monotonic()
    time.sleep(DEAD_SECONDS)
    later = since(cluster, killed + MISSED_SECONDS)
    astray = [one for one in later if one.router != "r-2"]
    row.require(later and not astray, f"{len(astray)} of {len(later)} did not ask the one left")
    row.remark(f"{len(fallbacks(since(cluster, killed)))} placed without a router")
    cluster["router-r-1"].start()
    whole(row, cluster, 10)
    caught_up(row, cluster)


def both_killed(row, cluster):
    """Both die."""
    settle(cluster)
    before = counted(cluster)
    for router in ROUTERS:
        cluster[f"router-{router}"].kill()
    killed = time.monotonic()
    time.sleep(DEAD_SECONDS)
    later = since(cluster, killed + MISSED_SECONDS)
    astray = [one for one in later if one not in fallbacks(later)]
    row.require(later and not astray, f"{len(astray)} of {len(later)} do not say fallback")
    used = {one.worker for one in later}
    row.require(used == set(WORKERS), f"requests go round {used}")
    more, told = counted(cluster) - before, len(fallbacks(since(cluster, killed)))
    # Those in flight are counted and not yet answered.
    row.require(more >= told, f"{told} headers say fallback, kvlens_router_fallbacks_total {more}")
    row.remark(f"{told} placed without a router")
    for router in ROUTERS:
        cluster[f"router-{router}"].start()
    whole(row, cluster, 10)
    caught_up(row, cluster)
    back = time.monotonic()
    time.sleep(2)
    late = fallbacks(since(cluster, back + MISSED_SECONDS))
    row.require(not late, f"{len(late)} requests are still placed without a router")


def since(cluster, moment):
    """What was answered of the requests begun since."""
    return [one for one in list(cluster.load.outcomes) if one.begun > moment and one.is_good()]


def counted(cluster):
    urls = [url for name, url in cluster.admins().items() if name.startswith("frontend")]
    return sum(ask.metric(url, "kvlens_router_fallbacks_total") for url in urls)
