"""A row of the run: what was sent, and what became of it."""

import collections

import table


class Row(table.Row):
    """One scenario: what was sent, what became of it, and what else must hold."""

    def __init__(self, name):
        super().__init__(name)
        self.sent = self.failed = self.allowed = self.refused = 0
        # Seconds until all was as before, the longest of the scenario.
        self.converged = None
        # Why a request that failed may have: it takes an outcome, and returns a word or nothing.
        self.allows = lambda outcome: None

    def count(self, outcomes):
        """Counts requests; each that failed is a fault, unless this scenario allows it."""
        reasons = collections.Counter()
        self.sent += len(outcomes)
        for outcome in outcomes:
            self.refused += outcome.refused
            if outcome.is_good():
                continue
            if reason := self.allows(outcome):
                self.allowed += 1
                reasons[reason] += 1
                continue
            self.failed += 1
            self.fault(f"request {outcome.story()}")
        for reason, count in reasons.items():
            self.remark(f"{count} {reason}")

    def took(self, seconds, seconds_max, what):
        """Notes how long it took until all was as before, which has a limit."""
        self.converged = max(self.converged or 0.0, seconds)
        self.require(seconds <= seconds_max, f"{what} took {seconds:.2f} s, at most {seconds_max}")

    def numbers(self):
        took = "-" if self.converged is None else f"{self.converged:.2f}"
        numbers = (self.sent, self.failed, self.allowed, self.refused)
        return (*(f"{number:,}" for number in numbers), took)


HEAD = ("scenario", "requests", "failed", "allowed", "connects again", "whole after s", "verdict")


def new_report():
    """A report without rows."""
    return table.Report(HEAD, Row)
