"""A box with eight fake GPUs: `kvlens up` with a mock engine for each, and the fake that it reads."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import time

import ask
import fake_nvml
from load import Load
from wait import until

GPUS = 8
RATE = 500
READY_SECONDS_MAX = 60
END_SECONDS_MAX = 30
# Times are short, so that a proof does not wait: the defaults are told by `kvlens check-config`.
POLL_SECONDS = 0.15
DEADLINE_SECONDS = 0.5
LOST_SECONDS = 3.0
SUSTAINED_SECONDS = 0.5
CONFIGURATION = f"""
[log]
format = "json"
[engine]
watch_millis = 500
watch_deadline_millis = 30000
watch_failures_max = 60
[gpu]
poll_millis = {int(POLL_SECONDS * 1000)}
slow_poll_millis = 400
deadline_millis = {int(DEADLINE_SECONDS * 1000)}
lost_after_millis = {int(LOST_SECONDS * 1000)}
hw_slowdown_secs = {SUSTAINED_SECONDS}
sw_slowdown_secs = {SUSTAINED_SECONDS}
overheat_secs = 60
stuck_secs = 2
"""


# What a GPU or a host lacks when it is first read is not asked for again, so that all must be there at once.
PAGES = {"retired_pages_corrected": [], "retired_pages_uncorrected": [], "retired_pages_pending": 0}
# A GPU whose driver has no field 230.
WITHOUT_ACTIONS = 5
SCENARIO = {
    "confidential_feature": 1,
    "confidential_ready": 1,
    "gpus": [PAGES | ({"fields": {"230": None}} if n == WITHOUT_ACTIONS else {}) for n in range(GPUS)],
}


def free_port():
    """A port that is free, as is the one after it."""
    while True:
        with socket.socket() as one, socket.socket() as after:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                after.bind(("127.0.0.1", port + 1))
                return port
            except OSError:
                continue


class Process:
    """A process of ours, its output in a file."""

    def __init__(self, folder, name, words, library, text=CONFIGURATION):
        self.folder = pathlib.Path(folder)
        self.log = self.folder / f"{name}.log"
        configuration = self.folder / f"{name}.toml"
        configuration.write_text(text)
        environment = os.environ | {
            "KVLENS_CONFIG": str(configuration),
            "KVLENS_GPU_NVML_LIBRARY": str(library),
            "KVLENS_ENGINE_RUN_DIR": str(self.folder),
        }
        with open(self.log, "wb") as output:
            self.child = subprocess.Popen(
                [str(word) for word in words],
                env=environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self):
        self.child.terminate()
        try:
            self.child.wait(END_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()
            raise AssertionError(f"it did not end within {END_SECONDS_MAX} s") from None

    def said(self):
        """The log's lines that are objects."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


class Box(Process):
    """`kvlens up` on eight fake GPUs."""

    def __init__(self, kvlens, library, folder):
        folder = pathlib.Path(folder)
        placed = fake_nvml.place(library, folder, SCENARIO)
        self.kvlens, self.library = kvlens, library
        port = free_port()
        self.public = ("127.0.0.1", port)
        self.admin = f"http://127.0.0.1:{port + 1}"
        words = [kvlens, "up", "--engine", "mock", "--workers", GPUS, "--port", port]
        super().__init__(folder, "up", words, placed)
        self.fake = fake_nvml.FakeNvml(folder / "control.sock")
        self.load = Load([self.public], RATE)
        try:
            until("the box is ready", self.is_ready, READY_SECONDS_MAX)
        except AssertionError:
            print(self.log.read_text(errors="replace")[-4000:], flush=True)
            self.stop()
            raise

    def is_ready(self):
        assert self.child.poll() is None, self.log.read_text(errors="replace")[-4000:]
        gpus, workers = self.gpus(), ask.workers(self.admin)
        are_well = all(one["verdict"] == "healthy" for one in [*gpus, *workers])
        return len(gpus) == len(workers) == GPUS and are_well

    def gpus(self):
        """How each GPU is, in the order of the workers."""
        status, body = ask.get(self.admin, "/kvlens/v1/gpus")
        return json.loads(body)["gpus"] if status == 200 else []

    def gpu(self, number):
        return next(gpu for gpu in self.gpus() if gpu["worker"] == worker(number))

    def is_well(self, number):
        gpu = self.gpu(number)
        return gpu["verdict"] == "healthy" and not grave(gpu)

    def heal(self, number, seconds=20.0):
        """Puts a GPU back as it was, and waits until it is held for well; after how many seconds."""
        self.fake.unhang(number)
        self.fake.restore(number)
        _, took = until(f"GPU {number} is well: {self.gpu(number)}", lambda: self.is_well(number), seconds)
        return took

    def others_are_well(self, row, number):
        """Whether no other GPU is touched."""
        for gpu in self.gpus():
            if gpu["worker"] != worker(number) and (gpu["verdict"] != "healthy" or grave(gpu)):
                row.fault(f"GPU {number} was to be ill, and {gpu} is")

    def log_end(self):
        """Where the log ends now."""
        return self.log.stat().st_size

    def incidents_since(self, begin):
        """What the log has told of GPUs since then: worker, signal, code, severity. It keeps what has passed by
        when the page is next looked at."""
        with open(self.log, "rb") as log:
            log.seek(begin)
            lines = log.read().decode(errors="replace").splitlines()
        told = [json.loads(line) for line in lines if '"message":"gpu incident"' in line and line.endswith("}")]
        name = {"NotReady": "not_ready"}
        severity = lambda line: name.get(line["severity"], line["severity"].lower())
        return [(line["worker"], line["signal"], int(line["code"]), severity(line)) for line in told]

    def changes(self, number):
        """The verdicts that a GPU has had so far, as the log has them."""
        lines = (line for line in self.said() if line.get("message") == "gpu verdict changed")
        mine = (line for line in lines if line["worker"] == worker(number))
        return [line["verdict"].lower() for line in mine]


def worker(number):
    return f"mock-{number}"


def grave(gpu):
    """What is wrong with it beyond what is only to be known."""
    return [one for one in gpu["incidents"] if one["severity"] != "info"]


def now():
    return time.monotonic()
