"""Random faults over all signals, several at once, held against a model of their own."""

import random

from box import GPUS, WITHOUT_ACTIONS, worker
from wait import until

FAULTS = 1_000
SEED = 8
AT_ONCE_MAX = 4
SEEN_SECONDS_MAX = 10

# A fault: what is set, back to what, the signal, its severity. Counters only grow, so that they have no
# way back: they are raised by so much.
LEVELS = {
    "recovery_reset": ({"recovery_action": 1}, {"recovery_action": 0}, "recovery_action", "fatal"),
    "sram": ({"sram_threshold_exceeded": 1}, {"sram_threshold_exceeded": 0}, "sram_threshold", "fatal"),
    "pending": ({"remap_pending": 1}, {"remap_pending": 0}, "remap_pending", "degraded"),
    "failed": ({"remap_failed": 1}, {"remap_failed": 0}, "remap_failed", "fatal"),
    "banks": ({"remap_histogram": [3071, 0, 0, 0, 1]}, {"remap_histogram": [3072, 0, 0, 0, 0]}, "remap_exhausted", "degraded"),
    "pages": ({"retired_pages_pending": 1}, {"retired_pages_pending": 0}, "retired_pages", "degraded"),
    "fabric": ({"fabric_state": 1}, {"fabric_state": 3}, "fabric", "not_ready"),
    "width": ({"pcie_width": 8}, {"pcie_width": 16}, "pcie_link", "degraded"),
    "brake": ({"throttle_reasons": 0x80}, {"throttle_reasons": 0}, "hw_slowdown", "degraded"),
    "warm": ({"temperature": 85}, {"temperature": 45}, "temperature", "degraded"),
    "prohibited": ({"compute_mode": 2}, {"compute_mode": 0}, "compute_mode", "fatal"),
    "mig": ({"mig": 1, "mig_pending": 1}, {"mig": 0, "mig_pending": 0}, "mig", "fatal"),
    "persistence": ({"persistence": 0}, {"persistence": 1}, "persistence", "info"),
    "power": ({"errors": {"nvmlDeviceGetPowerUsage": 999}}, {"errors": None}, "power", "degraded"),
    "irq": ({"error": 11}, {"error": None}, "irq", "fatal"),
    "lost": ({"error": 15}, {"error": None}, "gpu_lost", "fatal"),
    "reset": ({"error": 16}, {"error": None}, "reset_required", "fatal"),
    "gone": ({"error": 28}, {"error": None}, "gpu_not_ready", "fatal"),
    "mismatch": ({"error": 18}, {"error": None}, "driver_mismatch", "fatal"),
    "no_driver": ({"error": 9}, {"error": None}, "no_driver", "unknown"),
}
COUNTERS = {
    "ecc": ("ecc_uncorrected", 1, "ecc_uncorrected", "fatal"),
    "fatal": ("pcie_fatal_errors", 1, "pcie_errors", "fatal"),
}
# None of an application's, three of which in ten minutes count as more than each alone.
EVENTS = {
    "xid 95": (95, "fatal"),
    "xid 79": (79, "fatal"),
    "xid 92": (92, "degraded"),
    "xid 63": (63, "info"),
    "xid 500": (500, "fatal"),
}
FAILED = {"gpu_lost", "gpu_not_ready", "xid 79"}
RANKS = ["info", "degraded", "unknown", "not_ready", "fatal"]


def verdict_of(faults):
    """The model: the worst counts, and what leaves nothing to compute with is worse than what drains."""
    worst = max((RANKS.index(severity) for _, severity in faults), default=0)
    is_failed = any(severity == "fatal" and name in FAILED for name, severity in faults)
    return "failed" if is_failed else ["healthy", "degraded", "unknown", "draining", "draining"][worst]


class Gpu:
    """One GPU: its counters, and what is set of it."""

    def __init__(self, number, chance):
        self.number = number
        self.chance = chance
        self.counters = dict.fromkeys((row[0] for row in COUNTERS.values()), 0)
        self.is_set = {}
        self.was_silent = False

    def choose(self):
        """The next faults: names, none of which speaks of the same field as another."""
        names = [*LEVELS, *COUNTERS, *EVENTS]
        if self.number == WITHOUT_ACTIONS:
            names.remove("recovery_reset")
        chosen, touched = [], set()
        for name in self.chance.sample(names, self.chance.randint(2, AT_ONCE_MAX)):
            fields = set(LEVELS[name][0]) if name in LEVELS else {name}
            # Where no call answers nothing else can be read, and the next try to open it comes later each time.
            is_silent = "error" in fields
            if fields & touched or "error" in touched or (is_silent and (chosen or self.was_silent)):
                continue
            touched |= fields
            chosen.append(name)
        self.was_silent = "error" in touched
        return chosen

    def show(self, fake, chosen):
        """Makes the GPU ill so; what is to be seen of it: names and severities."""
        self.is_set, expected = {}, set()
        for name in chosen:
            if name in LEVELS:
                fields, back, signal, severity = LEVELS[name]
                fake.set(self.number, **fields)
                self.is_set |= back
            elif name in COUNTERS:
                field, by, signal, severity = COUNTERS[name]
                self.counters[field] += by
                fake.set(self.number, **{field: self.counters[field]})
            else:
                (xid, severity), signal = EVENTS[name], name
                # A GPU that is being opened anew after its last fault is told nothing.
                if not fake.xid(self.number, xid):
                    continue
            expected.add((signal, severity))
        return expected

    def next_round(self, fake, before):
        """Mends what is set, and makes the GPU ill anew."""
        self.mend(fake)
        chosen = self.choose()
        return Round(self, chosen, self.show(fake, chosen), before)

    def mend(self, fake):
        if self.is_set:
            fake.set(self.number, **self.is_set)


def seen(gpu):
    """What a GPU is held for beyond what is only to be known, which stays in sight for a while."""
    grave = (one for one in gpu["incidents"] if one["severity"] != "info")
    return {(named(one["signal"], one["code"]), one["severity"]) for one in grave}


def named(signal, code):
    return f"xid {code}" if signal == "xid" else signal


def random_faults(row, box):
    """One round after the other: what is new is seen, what is mended goes, and each verdict is the model's."""
    chance = random.Random(SEED)
    gpus = [Gpu(number, chance) for number in range(GPUS)]
    rounds = [Round(gpu, (), set(), set()) for gpu in gpus]
    shown = turns = looks = 0
    while shown < FAULTS and not row.faults:
        turns += 1
        before, begin = [one.held for one in rounds], box.log_end()
        rounds = [gpu.next_round(box.fake, held) for gpu, held in zip(gpus, before)]
        shown += sum(len(one.chosen) for one in rounds)
        looks += settle(row, box, rounds, begin)
    for gpu in gpus:
        gpu.mend(box.fake)
    looks += settle(row, box, [Round(gpu, (), set(), set()) for gpu in gpus], box.log_end())
    row.remark(f"{shown:,} faults in {turns} rounds, at most {AT_ONCE_MAX} at once on each GPU; {looks:,} looks")


class Round:
    """What a GPU is ill with now: what stays until it is mended, and what passes by itself."""

    def __init__(self, gpu, chosen, expected, before):
        self.gpu, self.chosen = gpu, chosen
        grave = {one for one in expected if one[1] != "info"}
        lasting = {(LEVELS[name][2], LEVELS[name][3]) for name in chosen if name in LEVELS}
        self.lasting, self.unseen = grave & lasting, set(grave)
        # Where no call answers, nothing shows that what was before is over.
        is_silent = any("error" in LEVELS[name][0] for name in chosen if name in LEVELS)
        self.allowed = grave | (before if is_silent else set())
        self.held = set(before)

    def look(self, row, told):
        """Whether it is settled, but for what may have passed unseen."""
        self.held = seen(told)
        self.unseen -= self.held
        model = verdict_of(self.held)
        if told["verdict"] != model:
            row.fault(f"{self.chosen}: {model} is to be with {sorted(self.held)}, and it is {told}")
        return self.lasting <= self.held <= self.allowed

    def hear(self, told):
        """Takes in what the log told of it."""
        mine = (one[1:] for one in told if one[0] == worker(self.gpu.number))
        self.unseen -= {(named(signal, code), severity) for signal, code, severity in mine}


def settle(row, box, rounds, begin):
    """Waits until each GPU is held for what it has, and for nothing else; how often was looked."""
    looks = 0

    def are_settled():
        nonlocal looks
        looks += 1
        if not all([one.look(row, told) for one, told in zip(rounds, box.gpus())]):
            return False
        if any(one.unseen for one in rounds):
            told = box.incidents_since(begin)
            for one in rounds:
                one.hear(told)
        return not any(one.unseen for one in rounds)

    try:
        until("as the model says", are_settled, SEEN_SECONDS_MAX, 0.02)
    except AssertionError:
        for one, told in zip(rounds, box.gpus()):
            if not one.look(row, told) or one.unseen:
                row.fault(f"{one.chosen}, not seen {sorted(one.unseen)}, lasting {sorted(one.lasting)}: {told}")
    return looks * GPUS
