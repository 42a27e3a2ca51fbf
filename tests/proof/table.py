"""What the proofs on real parts have in common: a row for each case, and the table at the end."""

import traceback

SHOWN_MAX = 5


class Row:
    """One case: what went wrong, and what was measured beside its numbers."""

    def __init__(self, name):
        self.name = name
        self.faults = []
        self.remarks = []
        self.skipped = None

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

    def numbers(self):
        """The columns between the name and the verdict, as text."""
        return ()

    def line(self):
        return (self.name, *self.numbers(), "; ".join([self.verdict(), *self.remarks]))


class Report:
    """All rows, in the order of their cases."""

    def __init__(self, head, make):
        self.head = head
        self.make = make
        self.rows = []

    def row(self, name):
        """A new row at the end."""
        self.rows.append(self.make(name))
        return self.rows[-1]

    def run(self, name, case, *given):
        """Runs a case; what it raises is a fault of its row and ends no other."""
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
        lines = [self.head] + [row.line() for row in self.rows]
        last = len(self.head) - 1
        widths = [max(len(line[column]) for line in lines) for column in range(last)]
        for line in lines:
            name, *numbers = (text.rjust(width) for text, width in zip(line, widths))
            print(" | ".join([name.strip().ljust(widths[0]), *numbers, line[last]]))
        failed = sum(1 for row in self.rows if row.faults)
        skipped = sum(1 for row in self.rows if row.skipped and not row.faults)
        passed = len(self.rows) - failed - skipped
        print(f"counted: {passed} passed; {failed} failed; {skipped} skipped", flush=True)
        return failed == 0
