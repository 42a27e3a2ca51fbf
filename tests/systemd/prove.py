"""Proves kvlens' units under a real systemd, which `boot` starts: each scenario is a row.

usage: prove.py KVLENS_BINARY SECONDS_MAX [SCENARIO...]

Runs as root in a machine of its own, installs kvlens there and takes it away again. Prints a table,
and last `counted: P passed; F failed; S skipped`; exits 1 when a scenario failed.
"""

import signal
import sys
import traceback

import case_agent
import case_boot
import case_gone
import case_journal
import case_refused
import case_restart
import case_stop
import case_watchdog
from host import Host
from sent import new_report

SCENARIOS = {
    "every unit is sound": case_boot.sound,
    "the target starts": case_boot.started,
    **case_restart.SCENARIOS,
    "agent restarted": case_agent.restarted,
    "agent killed": case_agent.killed,
    "router hangs": case_watchdog.router,
    "engine hangs": case_watchdog.engine,
    "frontend stopped": case_stop.frontend,
    "engine stopped": case_stop.engine,
    **case_refused.SCENARIOS,
    "what the journal has": case_journal.structured,
    "all stopped": case_stop.all_of_it,
    "uninstalled": case_gone.uninstalled,
}


class Late(BaseException):
    """The run takes too long; it ends no single scenario, but all of them."""


def late(*_):
    raise Late


def main(binary, seconds_max, *chosen):
    if unknown := [name for name in chosen if name not in SCENARIOS]:
        sys.exit(f"no scenario {unknown[0]!r}; there are: {', '.join(SCENARIOS)}")
    signal.signal(signal.SIGALRM, late)
    signal.alarm(int(seconds_max))
    report = new_report()
    try:
        host = Host(binary)
        host.install()
        if chosen and not {"every unit is sound", "the target starts"} & set(chosen):
            host.start()
        for name, case in SCENARIOS.items():
            if not chosen or name in chosen:
                row = report.run(name, case, host)
                if row.faults:
                    host.tell(row)
    except BaseException:
        # What was found so far is told, whatever ends the run.
        report.row("the run").fault(traceback.format_exc())
    return 0 if report.print() else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
