"""Has NVIDIA's own nvidia-ml-py judge the fake libnvidia-ml.so.1 of tests/fake_nvml.

usage: client.py LIBFAKE_NVML_SO

An independent client of the ABI: it declares each structure by itself. The fake must answer all that it
knows, in the places where NVIDIA's client looks. Prints `counted: P passed; F failed; S skipped`; exits 1
when anything failed.
"""

import os
import sys
import tempfile
import traceback
from pathlib import Path

SECONDS_MAX = 5.0


def main(library):
    """Runs itself again where the loader finds a copy of `library` by NVIDIA's name."""
    with tempfile.TemporaryDirectory(prefix="kvlens-", dir="/tmp") as folder:
        placed = fake_nvml.place(library, folder)
        words = [sys.executable, "-B", __file__, "--in", str(placed)]
        environment = os.environ | {"LD_LIBRARY_PATH": folder}
        return os.spawnve(os.P_WAIT, sys.executable, words, environment)


def judge(placed):
    """Runs every case against the placed copy; whether all passed."""
    import case_events
    import case_faults
    import case_library
    import case_readings
    import pynvml

    control = fake_nvml.FakeNvml(placed.parent / "control.sock", SECONDS_MAX)
    cases = [*case_readings.CASES, *case_faults.CASES, *case_events.CASES, *case_library.CASES]
    failed = 0
    pynvml.nvmlInit()
    for case in cases:
        control.restore()
        try:
            case(pynvml, control)
            print(f"ok {case.__name__}")
        except Exception:
            failed += 1
            print(f"FAILED {case.__name__}")
            traceback.print_exc()
    pynvml.nvmlShutdown()
    print(f"counted: {len(cases) - failed} passed; {failed} failed; 0 skipped")
    return failed == 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "proof"))
    import fake_nvml

    if sys.argv[1] == "--in":
        sys.exit(0 if judge(Path(sys.argv[2])) else 1)
    sys.exit(main(sys.argv[1]))
