"""A row of the run: what was asked, predicted and reported."""

import table


class Row(table.Row):
    """One case: what was asked, predicted and reported, and what went wrong."""

    def __init__(self, name):
        super().__init__(name)
        self.requests = 0
        self.predicted_tokens = 0
        self.reported_tokens = 0

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

    def numbers(self):
        numbers = (self.requests, self.predicted_tokens, self.reported_tokens)
        return tuple(f"{number:,}" for number in numbers)


HEAD = ("case", "requests", "predicted tokens", "reported (cached) tokens", "verdict")


def new_report():
    """A report without rows."""
    return table.Report(HEAD, Row)
