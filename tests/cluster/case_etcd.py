"""etcd away, killed, or without what it knew: nobody who asks for an answer sees it."""

import time

from processes import Stopped
from scenario import settle, whole

AWAY_SECONDS = 60


def stopped(row, cluster):
    """It stands still: connections to it stay open, and no answer comes."""
    settle(cluster)
    with Stopped(cluster["etcd"].pid):
        time.sleep(cluster.site.silence(AWAY_SECONDS))
        still_listed(row, cluster)
    whole(row, cluster)


def killed(row, cluster):
    """It dies, and comes back with its data, in which the leases have not run out."""
    settle(cluster)
    cluster["etcd"].kill()
    time.sleep(cluster.site.silence(AWAY_SECONDS))
    still_listed(row, cluster)
    cluster["etcd"].start().ready()
    whole(row, cluster)


def lost(row, cluster):
    """It comes back knowing nothing: no lease, no worker, and revisions from the first on."""
    settle(cluster)
    cluster["etcd"].kill()
    cluster["etcd"].lose()
    time.sleep(2)
    cluster["etcd"].start().ready()
    whole(row, cluster)
    # What watches it goes on from the new revisions: a worker that comes now is seen.
    cluster["agent-b-1"].restart()
    whole(row, cluster, 10)


def still_listed(row, cluster):
    """Absence from etcd is a suspicion, and takes no worker out."""
    lacks = [lack for lack in cluster.what_lacks().split("; ") if " lists " in lack]
    row.require(not lacks, f"with etcd away: {lacks}")
