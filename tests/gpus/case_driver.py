"""Hosts whose driver is not there, or is another than the library's: agents wait, and go on when it is."""

import json
import pathlib
import tempfile

import ask
import fake_nvml
from box import Process, free_port
from wait import until

GPU = "GPU-6b766c65-6e73-4000-8000-000000000003"


class Agent:
    """An agent beside a mock engine, whose GPU's driver is at `library`, or will be."""

    def __init__(self, kvlens, folder, library):
        engine, agent = free_port(), free_port()
        self.address = f"http://127.0.0.1:{agent}"
        self.engine = Process(folder, "engine", [kvlens, "mock-engine", "--port", engine], library)
        words = ["worker", "--worker", "gpu-3", "--engine-url", f"http://127.0.0.1:{engine}", "--model", "demo"]
        words += ["--listen", f"127.0.0.1:{agent}", "--gpu", GPU]
        self.agent = Process(folder, "agent", [kvlens, *words], library)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.agent.stop()
        self.engine.stop()

    def gpu(self):
        assert self.agent.child.poll() is None, self.agent.log.read_text()[-2000:]
        status, body = ask.get(self.address, "/kvlens/v1/gpus")
        gpus = json.loads(body)["gpus"] if status == 200 else []
        return gpus[0] if gpus else None

    def worker(self):
        found = ask.workers(self.address)
        return found[0] if found else None

    def shows(self, signal, verdict, seconds=15):
        """Waits for an incident and a verdict; the incident."""

        def found():
            gpu = self.gpu()
            if not gpu or gpu["verdict"] != verdict:
                return None
            return next((one for one in gpu["incidents"] if one["signal"] == signal), None)

        return until(lambda: f"{signal}, {verdict}: {self.gpu()}", found, seconds)[0]

    def is_well(self):
        gpu, worker = self.gpu(), self.worker()
        return gpu and worker and gpu["verdict"] == worker["verdict"] == "healthy"


def absent(row, box):
    with tempfile.TemporaryDirectory(prefix="kvlens-", dir="/tmp") as folder:
        library = pathlib.Path(folder) / "libnvidia-ml.so.1"
        with Agent(box.kvlens, folder, library) as agent:
            incident = agent.shows("no_driver", "unknown")
            row.require(str(library) in incident["text"], f"{incident}")
            row.require("driver" in incident["action"], f"{incident}")
            # The engine answers, so that nothing is taken out of the route.
            until("the worker takes requests", lambda: ask.get(agent.address, "/ready")[0] == 200, 10)
            row.require(agent.worker()["verdict"] == "unknown", f"{agent.worker()}")
            fake_nvml.place(box.library, folder)
            _, took = until(lambda: f"it is well: {agent.gpu()}", agent.is_well, 45)
            row.remark(f"{incident['text']!r}; well {took:.1f} s after the driver came")


def mismatch(row, box):
    with tempfile.TemporaryDirectory(prefix="kvlens-", dir="/tmp") as folder:
        library = fake_nvml.place(box.library, folder, {"init_return": 18})
        with Agent(box.kvlens, folder, library) as agent:
            incident = agent.shows("driver_mismatch", "draining")
            row.require("driver" in incident["action"], f"{incident}")
            (pathlib.Path(folder) / "scenario.json").write_text("{}")
            _, took = until(lambda: f"it is well: {agent.gpu()}", agent.is_well, 45)
            row.remark(f"{incident['text']!r}; well {took:.1f} s after the driver was loaded anew")


SCENARIOS = {"no driver at the start": absent, "another driver than the library's": mismatch}
