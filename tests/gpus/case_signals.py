"""Each signal alone: what it is held for, on its own GPU and no other."""

import os
import pathlib
import signal
import time

from box import GPUS, WITHOUT_ACTIONS, worker
from signals import COUNTED, SIGNALS
from wait import until

SEEN_SECONDS_MAX = 8
# What is only to be known stays in sight for ten minutes; a GPU has room for it.
OTHERS_LOOKED_AT = 3


def shown(box, number, name):
    """The incident of that name, once there is one."""
    return next((one for one in box.gpu(number)["incidents"] if one["signal"] == name), None)


def seen_as(gpu, name, verdict):
    """The incident of that name on a GPU, once it is held so."""
    mine = (one for one in gpu["incidents"] if one["signal"] == name)
    return next(mine, None) if gpu["verdict"] == verdict else None


def case(number, name, show, severity, verdict):
    """That of a signal on a GPU."""
    number = WITHOUT_ACTIONS if name == "recovery_event" else number
    is_counted = name in [row[0] for row in COUNTED]

    def one(row, box):
        with loaded(row, box):
            show(box.fake, number)
            # Both at one look, because what an event shows is soon over.
            are_seen = lambda: seen_as(box.gpu(number), name, verdict)
            incident, took = until(
                lambda: f"{name}, {verdict}: {box.gpu(number)}", are_seen, SEEN_SECONDS_MAX, 0.02
            )
            row.require(incident["severity"] == severity, f"{incident}, and {severity} was to be")
            row.require(incident["text"] and incident["action"], f"it says too little: {incident}")
            for _ in range(OTHERS_LOOKED_AT):
                box.others_are_well(row, number)
                time.sleep(0.05)
            healed = "" if is_counted else f", well {box.heal(number):.2f} s after its end"
        row.remark(f"{severity} after {took:.2f} s{healed}")

    return one


class loaded:
    """Requests meanwhile, of which none may fail."""

    def __init__(self, row, box):
        self.row, self.box = row, box

    def __enter__(self):
        self.box.load.resume()

    def __exit__(self, *_):
        self.row.count(self.box.load.pause())


def confidential_compute(row, box):
    """The host's alone: all GPUs wait for it, and come back by themselves."""
    box.fake.set_system(confidential_ready=0)
    all_are = lambda verdict: all(gpu["verdict"] == verdict for gpu in box.gpus())
    until("all are held back", lambda: all_are("draining"), SEEN_SECONDS_MAX)
    for gpu in box.gpus():
        row.require(
            [(one["signal"], one["severity"]) for one in gpu["incidents"] if one["severity"] != "info"]
            == [("confidential_compute", "not_ready")],
            f"{gpu}",
        )
    box.fake.ask(restore="all")
    _, took = until("all are well again", lambda: all_are("healthy"), 20)
    row.remark(f"all of the host; well after {took:.2f} s")


def stuck(row, box):
    """An engine that computes without end and gives no token is restarted, once."""
    number = 5
    row.allows = lambda outcome: "were on it" if outcome.worker == worker(number) else None
    before = starts(box, number)
    engine = engine_of(box, number)
    box.load.resume()
    try:
        # Requests are on it when it stops, as its last metrics say.
        time.sleep(3)
        box.fake.set(number, utilization=100)
        os.kill(engine, signal.SIGSTOP)
        incident, took = until("it is seen", lambda: shown(box, number, "stuck"), 15, 0.02)
        row.require(incident["severity"] == "fatal", f"{incident}")
        box.others_are_well(row, number)
        until("the engine is restarted", lambda: starts(box, number) > before, 20)
        healed = box.heal(number, 30)
    finally:
        outcomes = box.load.pause()
    row.count(outcomes)
    row.require(starts(box, number) == before + 1, f"{starts(box, number) - before} restarts")
    row.remark(f"seen after {took:.1f} s, well {healed:.1f} s after")


def starts(box, number):
    lines = (line for line in box.said() if line.get("message") == "engine is restarted for its gpu's sake")
    return sum(1 for line in lines if line["worker"] == worker(number))


def engine_of(box, number):
    """The process of a mock engine: the child of the box with its worker's folder in its command line."""
    children = pathlib.Path(f"/proc/{box.child.pid}/task").glob("*/children")
    pids = [int(pid) for listed in children for pid in listed.read_text().split()]
    words = {pid: pathlib.Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in pids}
    mine = [pid for pid, said in words.items() if any(worker(number) in word for word in said)]
    assert len(mine) == 1, f"{worker(number)} among {words}"
    return mine[0]


SCENARIOS = {f"signal {row[0]}": case(place % GPUS, *row) for place, row in enumerate(SIGNALS)}
SCENARIOS |= {"signal stuck": stuck, "signal confidential_compute": confidential_compute}
# Last: their GPU stays as it is.
LAST = {f"signal {row[0]}": case(GPUS - 1, *row) for row in COUNTED}
