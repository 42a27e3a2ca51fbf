"""Waits for what is to happen."""

import time


def until(what, happened, seconds=20.0, every=0.05):
    """Waits until `happened()` is true; what it says, and after how many seconds."""
    began = time.monotonic()
    while True:
        said = happened()
        took = time.monotonic() - began
        if said:
            return said, took
        if took > seconds:
            shown = what() if callable(what) else what
            raise AssertionError(f"{shown}: not within {seconds} s")
        time.sleep(every)
