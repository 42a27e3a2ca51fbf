"""Drives a fake libnvidia-ml.so.1 (tests/fake_nvml) over its control socket."""

import json
import shutil
import socket
import time
from pathlib import Path


def place(library, folder, scenario=None):
    """Puts a copy of the fake into `folder`, under NVIDIA's name, with its own scenario and control socket;
    where it is. The folder's path must be short, because a unix socket's is."""
    folder = Path(folder)
    placed = folder / "libnvidia-ml.so.1"
    shutil.copyfile(library, placed)
    (folder / "scenario.json").write_text(json.dumps(scenario or {}))
    return placed


class Refused(Exception):
    """The fake has answered that it does not do that."""


class FakeNvml:
    """What becomes of the GPUs of one process. A setting is in force once its method returns."""

    def __init__(self, control, seconds=10.0):
        """`control` is the socket, which is there from the process' first nvmlInit on; each command waits
        for it, and for its answer, `seconds` at most."""
        self.control = str(control)
        self.seconds = seconds

    def ask(self, **command):
        """Sends one command; its answer."""
        until = time.monotonic() + self.seconds
        line = json.dumps(command).encode() + b"\n"
        with self._connected(until) as connection:
            connection.sendall(line)
            answer = b""
            while not answer.endswith(b"\n"):
                connection.settimeout(max(0.001, until - time.monotonic()))
                part = connection.recv(1 << 16)
                if not part:
                    raise ConnectionError(f"{self.control}: closed after {answer!r}")
                answer += part
        answer = json.loads(answer)
        if not answer.pop("ok"):
            raise Refused(answer["error"])
        return answer

    def _connected(self, until):
        """A connection, made anew for each command: the socket goes with the last nvmlShutdown."""
        while True:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(self.seconds)
            try:
                connection.connect(self.control)
                return connection
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)

    def set(self, gpu, **fields):
        """Sets fields of a GPU; None is what `unset` does."""
        self.ask(gpu=gpu, set=fields)

    def unset(self, gpu, *names):
        """Takes fields from a GPU: faults that it has no longer, readings that are not supported."""
        self.ask(gpu=gpu, unset=names)

    def set_system(self, **fields):
        """Sets fields that are no GPU's, as init_return."""
        self.ask(set=fields)

    def xid(self, gpu, number):
        """Tells an XID; to how many event sets."""
        return self.ask(gpu=gpu, xid=number)["sets"]

    def event(self, gpu, kind, value, *instances):
        """Tells any event, of a GPU instance and a compute instance if they are given; to how many sets."""
        return self.ask(gpu=gpu, event=[kind, value, *instances])["sets"]

    def hang(self, gpu, millis=None):
        """Has each call on a GPU take so long, or not return at all."""
        self.ask(gpu=gpu, **({"hang": "forever"} if millis is None else {"hang_ms": millis}))

    def unhang(self, gpu):
        """Lets all go that hang in a GPU."""
        self.ask(gpu=gpu, unhang=True)

    def reset(self, gpu):
        """Resets a GPU: its handles and what is registered by them are lost until it is looked up again."""
        self.ask(gpu=gpu, reset=True)

    def counters(self, gpu=None):
        """How often each symbol has been called, at all or on one GPU."""
        words = {} if gpu is None else {"gpu": gpu}
        return self.ask(counters=True, **words)["counters"]

    def get(self, gpu=None):
        """All fields in force, of a GPU or of the system."""
        if gpu is None:
            return self.ask(get=True)["system"]
        return self.ask(gpu=gpu, get=True)["gpu"]

    def restore(self, gpu="all"):
        """Puts a GPU, or everything, back to what the scenario says."""
        self.ask(restore=gpu)
