"""What all scenarios have in common: requests all along, and what must hold at their ends."""

import time

from cluster import WHOLE_SECONDS_MAX, WORKERS
from wait import until

# Longer than any promise: what takes so long is shown as it is.
PATIENCE_SECONDS = 30
STREAM_CUT = "streams ended with an error event"


LINES_SHOWN = 4


def run(report, cluster, name, case):
    """Runs a scenario under load; the cluster is whole again afterwards."""
    begins = {process: process.said_bytes() for process in cluster.processes.values()}

    def under_load(row):
        cluster.load.resume()
        try:
            case(row, cluster)
        finally:
            row.count(cluster.load.pause())
        same(row, cluster)
        for process in cluster.ended():
            row.fault(f"{process.name} has ended")
        for process, begin in begins.items():
            row.require("panicked" not in process.said_from(begin), f"{process.name} has panicked")

    row = report.run(name, under_load)
    if row.faults:
        tell(begins)
        cluster.mend()


def tell(begins):
    """Shows what processes have said in a failed scenario, the last of it."""
    for process, begin in begins.items():
        for line in process.said_from(begin).splitlines()[-LINES_SHOWN:]:
            print(f"    {process.name}: {line[:400]}", flush=True)


def settle(cluster):
    """Some load with nothing wrong, so that the next fault meets the cluster at work."""
    time.sleep(2 if cluster.site.is_quick else 5)


def whole(row, cluster, seconds_max=WHOLE_SECONDS_MAX):
    """All workers are registered, listed and well again, within the time given."""
    took = whole_at_last(cluster)
    row.took(took, seconds_max, "the lists of workers")


def whole_at_last(cluster):
    """The same after something that takes its time, as a start does; how many seconds it took."""
    return until(cluster.what_lacks, cluster.is_whole, PATIENCE_SECONDS)[1]


def caught_up(row, cluster):
    """Every index knows, within two seconds, what the ledgers know now."""
    records = {worker: cluster.record(worker) for worker in WORKERS}
    goals = {worker: record["ledger"]["sequence"] for worker, record in records.items() if record}
    behind = lambda: cluster.behind(goals)
    _, took = until(behind, lambda: not behind(), PATIENCE_SECONDS)
    row.took(took, WHOLE_SECONDS_MAX, "the indexes' catching up")


def same(row, cluster):
    """Without requests every index is what the ledgers say, within two seconds."""
    differs = cluster.differences
    _, took = until(differs, lambda: not differs(), PATIENCE_SECONDS)
    row.took(took, WHOLE_SECONDS_MAX, "the indexes' being the ledgers")


def fallbacks(outcomes):
    """The requests whose frontend had no router to ask."""
    return [one for one in outcomes if one.router.startswith("fallback")]


def is_on(outcome, machine):
    """Whether a host's engine has answered it."""
    return outcome.worker in WORKERS and WORKERS[outcome.worker][0] == machine


def allow_streams(row, machine, since):
    """Streams that a host had begun may end with an error event, and say so."""

    def allows(outcome):
        is_stream = outcome.is_stream and outcome.kind == "event"
        return STREAM_CUT if is_stream and outcome.begun < since + 1 else None

    row.allows = allows
