"""The rows of the run, and the table at its end."""

import collections
import traceback

SHOWN_MAX = 5


class Row:
    """One scenario: what was sent, what became of it, and what else must hold."""

    def __init__(self, name):
        self.name = name
        self.sent = self.failed = self.allowed = self.refused = 0
        # Seconds until all was as before, the longest of the scenario.
        self.converged = None
        self.faults = []
        self.remarks = []
        self.skipped = None
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

    def fault(self, text):
        self.faults.append(text)
        if len(self.faults) <= SHOWN_MAX:
            print(f"  {self.name}: {text}", flush=True)

    def require(self, holds, text):
        if not holds:
            self.fault(text)

    def remark(self, text):
        """Something measured that the table shows beside the verdict."""
        self.remarks.append(text)

    def skip(self, reason):
        self.skipped = reason

    def verdict(self):
        if self.faults:
            return f"FAILED ({len(self.faults)})"
        return f"skipped: {self.skipped}" if self.skipped else "ok"

    def line(self):
        took = "-" if self.converged is None else f"{self.converged:.2f}"
        numbers = (self.sent, self.failed, self.allowed, self.refused)
        verdict = "; ".join([self.verdict(), *self.remarks])
        return (self.name, *(f"{number:,}" for number in numbers), took, verdict)


HEAD = ("scenario", "requests", "failed", "allowed", "connects again", "whole after s", "verdict")


class Report:
    """All rows, in the order of their scenarios."""

    def __init__(self):
        self.rows = []

    def row(self, name):
        """A new row at the end."""
        self.rows.append(Row(name))
        return self.rows[-1]

    def run(self, name, case, *given):
        """Runs a scenario; what it raises is a fault of its row and ends no other."""
        row = self.row(name)
        print(f"-- {name}", flush=True)
        try:
            case(row, *given)
        except Exception as error:
            row.fault("".join(traceback.format_exception(error, limit=-4)))
        except BaseException:
            row.fault("it was not ended")
            raise
        print(f"-- {' | '.join(row.line())}", flush=True)
        return row

    def print(self):
        """Prints the table and the count; whether nothing failed."""
        lines = [HEAD] + [row.line() for row in self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD) - 1)]
        for line in lines:
            name, *numbers = (text.rjust(width) for text, width in zip(line, widths))
            print(" | ".join([name.strip().ljust(widths[0]), *numbers, line[-1]]))
        failed = sum(1 for row in self.rows if row.faults)
        skipped = sum(1 for row in self.rows if row.skipped and not row.faults)
        passed = len(self.rows) - failed - skipped
        print(f"counted: {passed} passed; {failed} failed; {skipped} skipped", flush=True)
        return failed == 0
