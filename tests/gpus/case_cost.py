"""What watching costs: the time that the threads of the GPUs take."""

import pathlib
import tempfile
import time

import fake_nvml
from box import GPUS, Process
from wait import until

LOOKED_AT_SECONDS = 10
SHARE_MAX = 0.001


def spent(pid):
    """Seconds that each thread of a GPU has computed so far."""
    times = {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        if name.startswith("gpu-"):
            times[name] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return times


def cost(row, box):
    """With the defaults, as an operator has them."""
    with tempfile.TemporaryDirectory(prefix="kvlens-", dir="/tmp") as folder:
        library = fake_nvml.place(box.library, folder)
        watch = Process(folder, "watch", [box.kvlens, "gpus", "--watch"], library, text="")
        try:
            until("the threads are there", lambda: len(spent(watch.child.pid)) == GPUS, 10)
            time.sleep(2)
            before, began = spent(watch.child.pid), time.monotonic()
            time.sleep(LOOKED_AT_SECONDS)
            after, took = spent(watch.child.pid), time.monotonic() - began
        finally:
            watch.child.terminate()
            watch.child.wait(10)
    shares = [(after[name] - before[name]) / took for name in before]
    row.require(len(shares) == GPUS and max(shares) <= SHARE_MAX, f"shares of a core: {shares}")
    row.remark(f"{max(shares):.4%} of a core for each GPU at most, the fake's own time included")


SCENARIOS = {"what polling costs": cost}
