"""Frontends with a router inside each, which tell each other what they have booked."""

import ask
from bodies import Bodies
from cluster import FRONTENDS, ROUTERS
from scenario import PATIENCE_SECONDS, caught_up, settle, whole_at_last
from wait import until

STREAMS = 8
# A router that is silent for five seconds has booked nothing.
FREED_SECONDS_MAX = 6.0


def shared(row, cluster):
    """What one has booked the other counts, and no longer once the one is dead."""
    use(row, cluster, "embedded")
    settle(cluster)
    caught_up(row, cluster)
    row.count(cluster.load.pause())
    first, second = cluster.load.frontends
    bodies = Bodies(seed=13)
    cluster.load.frontends = [first]
    # They end with their frontend.
    streams = cluster.load.ask([bodies.long(tokens=800) for _ in range(STREAMS)])
    cluster.load.frontends = [first, second]
    other = cluster.admins()["frontend-f-2"]
    _, took = until("bookings are told", lambda: requests(other) == STREAMS, PATIENCE_SECONDS)
    row.took(took, 1.5, "bookings' being told")
    cluster["frontend-f-1"].kill()
    _, took = until("bookings are freed", lambda: requests(other) == 0, PATIENCE_SECONDS)
    row.require(took <= FREED_SECONDS_MAX, f"bookings of the dead are freed after {took:.1f} s")
    row.remark(f"bookings of a dead frontend freed after {took:.1f} s")
    row.require(
        {one.kind for one in streams.result(PATIENCE_SECONDS)} == {"cut"}, "a stream did not end"
    )
    cluster["frontend-f-1"].start()
    whole_at_last(cluster)
    cluster.load.resume()
    settle(cluster)
    use(row, cluster, "remote")


def requests(url):
    """The requests in flight that a router knows of."""
    return sum(rank["requests"] for entry in ask.workers(url) for rank in entry["load"])


def use(row, cluster, place):
    """Frontends start again, with a router inside or without."""
    cluster.is_embedded = place == "embedded"
    if not cluster.is_embedded:
        for router in ROUTERS:
            cluster[f"router-{router}"].start()
    for frontend in FRONTENDS:
        row.count(cluster.load.pause())
        cluster[f"frontend-{frontend}"].stop()
        cluster.add(cluster.frontend(frontend, place)).start()
        cluster.load.resume()
    if cluster.is_embedded:
        for router in ROUTERS:
            cluster[f"router-{router}"].stop()
    whole_at_last(cluster)
