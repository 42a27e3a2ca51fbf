"""The rows of the run, and the table at its end."""

import traceback

SHOWN_MAX = 3


class Row:
    """One case: what was asked, predicted and reported, and what went wrong."""

    def __init__(self, name):
        self.name = name
        self.requests = 0
        self.predicted_tokens = 0
        self.reported_tokens = 0
        self.faults = []
        self.remarks = []
        self.skipped = None

    def count(self, told):
        """Counts a request whose prediction need not hold."""
        self.requests += 1
        self.predicted_tokens += told.predicted_tokens
        self.reported_tokens += told.reported_tokens

    def compare(self, told):
        """Counts a request, whose prediction must be what the engine reports."""
        self.count(told)
        if told.predicted_tokens != told.reported_tokens:
            self.fault(f"predicted and reported differ\n{told.story()}")

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


class Report:
    """All rows, in the order of their cases."""

    def __init__(self):
        self.rows = []

    def row(self, name):
        """A new row at the end."""
        self.rows.append(Row(name))
        return self.rows[-1]

    def run(self, name, case, *given):
        """Runs a case; what it raises is a fault of its row and ends no other."""
        row = self.row(name)
        print(f"-- {name}", flush=True)
        try:
            case(row, *given)
        except Exception:
            row.fault(traceback.format_exc())
        print(f"-- {name}: {row.verdict()}", flush=True)

    def print(self):
        """Prints the table and the count; whether nothing failed."""
        head = ("case", "requests", "predicted tokens", "reported (cached) tokens", "verdict")
        lines = [head] + [line_of(row) for row in self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(4)]
        for line in lines:
            name, *numbers = (text.rjust(width) for text, width in zip(line, widths))
            print(" | ".join([name.strip().ljust(widths[0]), *numbers, line[4]]))
        failed = sum(1 for row in self.rows if row.faults)
        skipped = sum(1 for row in self.rows if row.skipped and not row.faults)
        passed = len(self.rows) - failed - skipped
        print(f"counted: {passed} passed; {failed} failed; {skipped} skipped", flush=True)
        return failed == 0


def line_of(row):
    numbers = (row.requests, row.predicted_tokens, row.reported_tokens)
    verdict = "; ".join([row.verdict(), *row.remarks])
    return (row.name, *(f"{number:,}" for number in numbers), verdict)
