"""A driver that does not return from calls on one GPU."""

import time

from box import DEADLINE_SECONDS, LOST_SECONDS, POLL_SECONDS, now
from case_signals import loaded, shown
from wait import until

# An event of another GPU is told meanwhile as fast as ever.
EVENT_SECONDS_MAX = 0.5


def polls(box, number):
    """How often the driver was asked for the temperature of a GPU."""
    return box.fake.counters(number).get("nvmlDeviceGetTemperature", 0)


def others_go_on(row, box, seconds):
    """Whether GPU 5 is polled and heard on time while another hangs."""
    before, began = polls(box, 5), now()
    told = now()
    box.fake.xid(5, 45)
    heard = lambda: any((one["signal"], one["code"]) == ("xid", 45) for one in box.gpu(5)["incidents"])
    _, took = until("the event of another GPU", heard, 3, 0.01)
    time.sleep(max(0.0, seconds - (now() - told)))
    rate = (polls(box, 5) - before) / (now() - began)
    row.require(took <= EVENT_SECONDS_MAX, f"the event of another GPU took {took:.2f} s")
    row.require(rate >= 0.7 / POLL_SECONDS, f"another GPU was polled {rate:.1f} times a second")
    return took


def awhile(row, box):
    number = 2
    with loaded(row, box):
        began = now()
        box.fake.hang(number, 2500)
        verdict = lambda: box.gpu(number)["verdict"]
        _, unknown = until("it is unknown", lambda: verdict() == "unknown", 3, 0.02)
        took = others_go_on(row, box, 1)
        box.others_are_well(row, number)
        row.require(verdict() == "unknown", f"it is {verdict()} {now() - began:.1f} s after")
        healed = box.heal(number)
    row.remark(f"unknown after {unknown:.2f} s, other's event {took * 1000:.0f} ms, well {healed:.2f} s after")


def for_ever(row, box):
    number = 4
    with loaded(row, box):
        box.fake.hang(number)
        verdict = lambda: box.gpu(number)["verdict"]
        _, unknown = until("it is unknown", lambda: verdict() == "unknown", 3, 0.02)
        took = others_go_on(row, box, 1)
        _, failed = until("it is failed", lambda: verdict() == "failed", LOST_SECONDS + 3, 0.02)
        row.require(shown(box, number, "hang")["severity"] == "fatal", f"{box.gpu(number)}")
        box.others_are_well(row, number)
        healed = box.heal(number)
    late = unknown - DEADLINE_SECONDS - POLL_SECONDS
    row.require(late <= 0.6, f"unknown only after {unknown:.2f} s")
    whole = unknown + 1 + failed
    row.require(whole <= LOST_SECONDS + 1.5, f"failed only after {whole:.2f} s")
    row.remark(
        f"unknown after {unknown:.2f} s, failed after {whole:.1f} s, other's event {took * 1000:.0f} ms, "
        f"well {healed:.2f} s after it returned"
    )


SCENARIOS = {"calls hang for 2.5 s": awhile, "calls hang for ever": for_ever}
