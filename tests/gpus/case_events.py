"""What the driver tells by itself: XIDs that leave a GPU in the route, and those that take it out at once."""

import time

from box import GPUS, grave, now, worker
from case_signals import loaded
from wait import until

HARMLESS = (13, 31, 43, 45, 63, 94)
LOOKED_AT_SECONDS = 1.5
ROUNDS = 3
# From the event to the last new request, in seconds: the 99th percentile and, for want of a thousand
# events, the longest.
ROUTED_SECONDS_MAX = 0.1


def harmless(row, box):
    """None of them takes a GPU out of the route."""
    with loaded(row, box):
        for number, xid in enumerate(HARMLESS):
            box.fake.xid(number, xid)
        end = now() + LOOKED_AT_SECONDS
        while now() < end:
            for gpu in box.gpus():
                row.require(gpu["verdict"] in ("healthy", "degraded"), f"{gpu}")
            time.sleep(0.02)
        seen = {xid: box.gpu(number)["incidents"] for number, xid in enumerate(HARMLESS)}
        until("all are well again", lambda: all(box.is_well(number) for number in range(GPUS)), 20)
    for xid, incidents in seen.items():
        found = [one for one in incidents if (one["signal"], one["code"]) == ("xid", xid)]
        # One that has been proven harmless meanwhile is over.
        row.require(found or xid == 94, f"XID {xid} is not told of: {incidents}")


def burst(row, box):
    """Programs that err again and again on one GPU are no accident."""
    with loaded(row, box):
        for _ in range(3):
            box.fake.xid(6, 31)
            time.sleep(0.05)
        _, took = until("it is degraded", lambda: box.gpu(6)["verdict"] == "degraded", 5, 0.02)
        box.others_are_well(row, 6)
        box.heal(6)
    row.remark(f"degraded after {took:.2f} s")


def lost(row, box):
    """A GPU that falls off the bus: its requests go on elsewhere, and no new one comes to it."""
    row.allows = lambda outcome: None
    lasts, served = [], {number: set() for number in range(GPUS)}
    for turn in range(ROUNDS):
        for number in range(GPUS):
            box.load.resume()
            time.sleep(0.3)
            told = now()
            # The order of a real one: the XID is told, and then nothing answers any more.
            box.fake.ask(gpu=number, xid=79, set={"error": 15})
            failed = lambda: box.gpu(number)["verdict"] == "failed"
            until(f"GPU {number} is failed", failed, 5, 0.02)
            box.others_are_well(row, number)
            time.sleep(0.3)
            outcomes = box.load.pause()
            row.count(outcomes)
            mine = [one.begun - told for one in outcomes if one.worker == worker(number)]
            lasts.append(max([0.0, *mine]))
            after = (one for one in outcomes if one.begun > told + ROUTED_SECONDS_MAX)
            served[number] |= {one.worker for one in after}
            row.took(box.heal(number), 15, f"GPU {number} to be well")
    for number, workers in served.items():
        row.require(len(workers) == GPUS - 1, f"{sorted(workers)} served while GPU {number} was lost")
    lasts.sort()
    worst = lasts[-1]
    row.require(worst <= ROUTED_SECONDS_MAX, f"a request came {worst * 1000:.0f} ms after the event")
    row.remark(
        f"last new request {worst * 1000:.0f} ms after the event at most, "
        f"{lasts[len(lasts) // 2] * 1000:.0f} ms at the median, of {len(lasts)} events"
    )


def once(row, box):
    """What was fatal ends by clean polls and a token, and then once."""
    number = 3
    before = len(box.changes(number))
    with loaded(row, box):
        box.fake.xid(number, 95)
        until("it drains", lambda: box.gpu(number)["verdict"] == "draining", 5, 0.02)
        _, took = until("it is well", lambda: box.is_well(number), 15, 0.02)
        time.sleep(1.5)
    changes = box.changes(number)[before:]
    row.require(changes == ["draining", "healthy"], f"its verdicts were {changes}")
    row.require(not grave(box.gpu(number)), f"{box.gpu(number)}")
    row.remark(f"back after {took:.2f} s, once")


SCENARIOS = {
    "XID 13, 31, 43, 45, 63, 94": harmless,
    "XID 31 again and again": burst,
    "GPU lost": lost,
    "back in the route": once,
}
