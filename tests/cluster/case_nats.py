"""NATS away, too fast for a reader, or losing messages: what is missed is seen, and asked for."""

import time

import net
from bodies import Bodies
from cluster import CONTROL, NATS_PORT
from lossy import Lossy
from processes import Stopped
from scenario import PATIENCE_SECONDS, caught_up, fallbacks, same, settle, whole, whole_at_last
from wait import until

AWAY_SECONDS = 60
LOSING_SECONDS = 20
STANDSTILL_SECONDS = 8
# Small enough that the server cannot put seconds of events into them.
BUFFER_BYTES = "4096 16384 16384"
RECEIVE_BUFFERS, SEND_BUFFERS = "/proc/sys/net/ipv4/tcp_rmem", "/proc/sys/net/ipv4/tcp_wmem"


def stopped(row, cluster):
    """It stands still: connections to it stay open, and nothing comes."""
    settle(cluster)
    with Stopped(cluster["nats"].pid):
        time.sleep(cluster.site.silence(AWAY_SECONDS))
    again(row, cluster)


def killed(row, cluster):
    """It dies, and comes back later."""
    settle(cluster)
    cluster["nats"].kill()
    time.sleep(cluster.site.silence(AWAY_SECONDS))
    cluster["nats"].start()
    again(row, cluster)


def restarted(row, cluster):
    """It is restarted, as for an upgrade."""
    settle(cluster)
    cluster["nats"].stop()
    cluster["nats"].start()
    again(row, cluster)


def again(row, cluster):
    """What was missed is made up for, and routers are asked again."""
    caught_up(row, cluster)
    whole(row, cluster)
    time.sleep(1)
    row.remark(f"{len(fallbacks(cluster.load.outcomes))} placed without a router")
    since = time.monotonic()
    time.sleep(2)
    late = [one for one in fallbacks(cluster.load.outcomes) if one.begun > since]
    row.require(not late, f"{len(late)} requests are still placed without a router")


def slow_router(row, cluster):
    """A router that reads nothing for a while, in a storm of events, is cut off and comes back."""
    with Buffers(SEND_BUFFERS):
        # A connection keeps what it began with.
        with Buffers(RECEIVE_BUFFERS):
            cluster["router-r-1"].restart()
            whole_at_last(cluster)
        storm(row, cluster)
    caught_up(row, cluster)
    whole(row, cluster)


def storm(row, cluster):
    """It stands still while engines store more than fits into the buffers between."""
    settle(cluster)
    bodies = Bodies(seed=3)
    chats = [bodies.chat(bodies.words(300), 1, stream=False) for _ in range(200)]
    said_before = cluster["nats"].said()
    with Stopped(cluster["router-r-1"].pid):
        answered = cluster.load.ask(chats)
        time.sleep(STANDSTILL_SECONDS)
    row.count(answered.result(PATIENCE_SECONDS))
    said = cluster["nats"].said()[len(said_before) :]
    row.require("Slow Consumer" in said, "NATS did not find it slow")


class Buffers:
    """While this is entered, sockets of the control host have small buffers of a kind."""

    def __init__(self, kind):
        self.kind = kind
        self.usual = " ".join(net.run(*net.inside(net.CONTROL, "cat", kind)).split())

    def __enter__(self):
        self.set(BUFFER_BYTES)

    def __exit__(self, *_):
        self.set(self.usual)

    def set(self, sizes):
        words = f"echo {sizes} >{self.kind}"
        net.run(*net.inside(net.CONTROL, "sh", "-c", words))


def lossy(row, cluster):
    """One event message of twenty is lost, then the last ones before a silence."""
    with Lossy((CONTROL, NATS_PORT)) as between:
        replace_agent(row, cluster, between.address)
        time.sleep(cluster.site.silence(LOSING_SECONDS))
        row.count(cluster.load.pause())
        same(row, cluster)
        row.remark(f"{between.lost} of {between.seen} messages lost")
        row.require(between.lost > 2, "hardly a message was lost")
        last_lost(row, cluster, between)
        cluster.load.resume()
        cluster["agent-a-0"].stop()
    replace_agent(row, cluster, None)


def last_lost(row, cluster, between):
    """All that some requests cause is lost; nothing comes after it but heartbeats."""
    sequence = lambda: cluster.record("a-0")["ledger"]["sequence"]
    before = sequence()
    between.every = 1
    bodies = Bodies(seed=5)
    silent = [bodies.chat(bodies.words(60), 1, stream=False) for _ in range(40)]
    row.count(cluster.load.ask(silent).result(PATIENCE_SECONDS))
    # By the time that its own record says so, the agent has told it.
    until("a-0 stores something new", lambda: sequence() > before, 5)
    between.every = 0
    same(row, cluster)


def replace_agent(row, cluster, nats):
    """The agent of a-0 reaches NATS by another address, or by its own."""
    if cluster["agent-a-0"].is_running():
        cluster["agent-a-0"].stop()
    cluster.add(cluster.agent("a-0", nats)).start()
    whole_at_last(cluster)
