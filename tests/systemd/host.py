"""The machine under test: its configuration, its units, and what can be seen of them."""

import contextlib
import os
import pathlib
import subprocess

import ask
from bodies import Bodies
from load import Load
from wait import until

CONFIG = pathlib.Path("/etc/kvlens/kvlens.toml")
CREDENTIALS = CONFIG.parent / "credentials"
PUBLIC = ("127.0.0.1", 8000)
ADMIN = "http://127.0.0.1:8001"
ROUTER = "http://127.0.0.1:8300"
WORKERS = ("gpu-0", "gpu-1")
PLANES = ("kvlens-etcd.service", "kvlens-nats.service")
AGENTS = tuple(f"kvlens-worker@{worker}.service" for worker in WORKERS)
ENGINES = tuple(f"kvlens-engine@{worker}.service" for worker in WORKERS)
FRONTEND = "kvlens-frontend.service"
SOCKETS = ("kvlens-frontend.socket", "kvlens-frontend-admin.socket")
ROUTERS = ("kvlens-router.service",)
SERVICES = (*PLANES, *ROUTERS, FRONTEND, *AGENTS, *ENGINES)
# Beside all that runs here, on two cores.
RATE = 40
PATIENCE_SECONDS = 20
LINES_SHOWN = 30
# Shown by frontends and routers to agents.
KEY = "key-7fe0a1c4b59d4e3f"
TEXT = """\
[etcd]
endpoints = ["http://127.0.0.1:2379"]
[nats]
servers = ["nats://127.0.0.1:4222"]
[discovery]
key_file = "credential:worker-keys"
[worker]
key_file = "credential:worker-keys"
[frontend]
router = "remote"
expose_routing = true
settle_secs = 1
[media]
enabled = true
[workers.gpu-0]
engine = "mock"
args = ["--num-gpu-blocks", "3000", "--decode-tokens-per-second", "40", "--max-num-seqs", "256"]
[workers.gpu-1]
engine = "mock"
args = ["--num-gpu-blocks", "3000", "--decode-tokens-per-second", "40", "--max-num-seqs", "256"]
"""


class Host:
    """Everything that one box runs of kvlens, as its units run it."""

    def __init__(self, binary):
        self.binary = binary
        self.load = Load([PUBLIC], RATE)
        self.bodies = Bodies(7)
        self.before = None

    def install(self):
        """Installs the units as an operator would, with a configuration of two mock engines."""
        self.before = files()
        CONFIG.parent.mkdir(mode=0o755)
        CONFIG.write_text(TEXT)
        print(self.run("units", "install"), end="", flush=True)
        for role in ("frontend", "router", "worker"):
            secret(CREDENTIALS / role / "worker-keys", f"cluster:{KEY}\n")

    def run(self, *words):
        """What a command of kvlens prints."""
        return command(self.binary, *words)

    def start(self):
        """Starts the target and waits until all of it takes requests; after how many seconds."""
        systemctl("start", "--no-block", "kvlens.target")
        return until(self.what_lacks, self.is_whole, PATIENCE_SECONDS)[1]

    def what_lacks(self):
        """What is not as it should be with all units well; nothing where all is."""
        lacks = []
        for unit in (*SERVICES, *SOCKETS):
            if (state := show(unit, "ActiveState")) != "active":
                lacks.append(f"{unit} is {state}")
        for name, url in (("router", ROUTER), ("frontend", ADMIN)):
            listed = {entry["worker"]: entry for entry in ask.workers(url)}
            if sorted(listed) != sorted(WORKERS):
                lacks.append(f"the {name} lists {sorted(listed)}")
            for worker, entry in listed.items():
                circuit = entry.get("circuit", {}).get("state", "closed")
                if entry["verdict"] != "healthy" or circuit != "closed" or entry.get("cause"):
                    lacks.append(f"the {name} has {worker} as {entry['verdict']}, {entry.get('cause')}")
        return "; ".join(lacks)

    def is_whole(self):
        return not self.what_lacks()

    def whole(self, row, seconds_max=PATIENCE_SECONDS):
        """All is well again, within the time given."""
        took = until(self.what_lacks, self.is_whole, PATIENCE_SECONDS)[1]
        row.took(took, seconds_max, "the lists of workers")

    @contextlib.contextmanager
    def loaded(self, row):
        """Requests all along, which are counted at the end."""
        self.load.resume()
        try:
            yield
        finally:
            outcomes = self.load.pause()
            row.require(outcomes, "no request was sent")
            row.count(outcomes)

    def asks(self, bodies):
        """Sends some requests; a future of their outcomes."""
        return self.load.ask(bodies)

    def picture(self):
        """A chat with a picture that no other has."""
        content = [{"type": "text", "text": self.bodies.words(40)}, self.bodies.picture()]
        return self.bodies.chat(content, 5, stream=False)

    def tell(self, row):
        """Shows what the units have said, after a failed scenario."""
        print(f"    after {row.name}:", flush=True)
        said = command("journalctl", "--no-pager", "--lines=400", "--output=cat", "--priority=info")
        lines = [line for line in said.splitlines() if not line.startswith("routed ")]
        for line in lines[-LINES_SHOWN:]:
            print(f"    {line[:300]}", flush=True)


def command(*words):
    """What a command prints, its complaints too; it must succeed."""
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, f"{words}: {done.returncode}: {done.stdout}"
    return done.stdout


def systemctl(*words):
    return command("systemctl", *words)


def show(unit, name):
    """A property of a unit, as text."""
    return command("systemctl", "show", "--value", f"--property={name}", unit).strip()


def pid(unit):
    return int(show(unit, "MainPID"))


def child(unit):
    """The engine itself, below its `kvlens engine`."""
    tasks = pathlib.Path(f"/proc/{pid(unit)}/task").iterdir()
    [found] = [word for task in tasks for word in (task / "children").read_text().split()]
    return int(found)


@contextlib.contextmanager
def drop_in(unit, text):
    """A unit with some lines more, for as long as this lasts."""
    folder = pathlib.Path(f"/run/systemd/system/{unit}.d")
    folder.mkdir(parents=True)
    path = folder / "proof.conf"
    path.write_text(f"[Service]\n{text}\n")
    systemctl("daemon-reload")
    try:
        yield
    finally:
        path.unlink()
        folder.rmdir()
        systemctl("daemon-reload")


def secret(path, text):
    """Writes a file that root alone reads."""
    with open(path, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(text)


def files():
    """What is where kvlens could have put something."""
    found = set()
    for root in ("/etc", "/usr/lib/systemd", "/usr/lib/sysusers.d", "/var/lib", "/var/cache", "/run"):
        for folder, names, entries in os.walk(root):
            found |= {os.path.join(folder, name) for name in (*names, *entries)}
    return found
