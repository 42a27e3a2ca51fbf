"""A network that is cut between the control host and a host of engines, one way or both."""

import time

from bodies import Bodies
from net import HOST_A, Cut
from scenario import PATIENCE_SECONDS, allow_streams, caught_up, is_on, settle, whole

CUT_SECONDS = 30
# New requests go elsewhere once the cut shows.
NOTICED_SECONDS = 1
# Leases are granted again, feeds and subscriptions opened.
HEALED_SECONDS_MAX = 10
STREAMS = 16


def inbound(row, cluster):
    """The host hears nothing; what it says arrives."""
    cut(row, cluster, "in")


def outbound(row, cluster):
    """The host hears all; nobody hears it."""
    cut(row, cluster, "out")


def both(row, cluster):
    """Nothing passes."""
    cut(row, cluster, "in", "out")


def cut(row, cluster, *ways):
    """Requests go on; afterwards each worker is there once."""
    settle(cluster)
    with Cut(HOST_A, *ways):
        since = time.monotonic()
        allow_streams(row, HOST_A, since)
        time.sleep(cluster.site.silence(CUT_SECONDS))
        until = time.monotonic()
    whole(row, cluster, HEALED_SECONDS_MAX)
    caught_up(row, cluster)
    begun, there = begun_between(row, cluster, since, until)
    # A host that is still heard looks well until it does not answer.
    row.remark(f"{there} of {begun} waited for the host that is cut off")


def begun_between(row, cluster, since, until):
    """How many requests began a second after a cut and before its end, and how many of them were
    answered by the host."""
    outcomes = list(cluster.load.outcomes)
    begun = [one for one in outcomes if since + NOTICED_SECONDS < one.begun < until]
    row.require(begun, "no requests went on")
    return len(begun), sum(1 for one in begun if is_on(one, HOST_A))


def mid_stream(row, cluster):
    """The host goes while it streams: streams end with an error event or go on elsewhere."""
    settle(cluster)
    bodies = Bodies(seed=7)
    streams = cluster.load.ask([bodies.long() for _ in range(STREAMS)])
    time.sleep(2)
    with Cut(HOST_A):
        since = time.monotonic()
        allow_streams(row, HOST_A, since)
        outcomes = streams.result(PATIENCE_SECONDS * 2)
        until = time.monotonic()
    on_it = [one for one in outcomes if is_on(one, HOST_A)]
    row.require(on_it, "no stream was on the host")
    row.count(outcomes)
    gone_on = sum(1 for one in on_it if one.is_good())
    row.remark(f"{gone_on} of {len(on_it)} streams went on elsewhere")
    longest = max(one.ended for one in outcomes) - since
    row.remark(f"the last ended {longest:.1f} s after the cut")
    whole(row, cluster, HEALED_SECONDS_MAX)
    begun, there = begun_between(row, cluster, since, until)
    row.require(there == 0, f"{there} of {begun} new requests went to the host that is cut off")
