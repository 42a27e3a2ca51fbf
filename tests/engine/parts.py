"""kvlens in parts, as on a rack: engines, their agents and a frontend, each a process."""

import glob
import json
import os
import signal
import socket

import processes
import wire
from processes import until
from stack import READY_SECONDS_MAX, Stack

# Of a frontend and agents, once their engines answer.
SERVING_SECONDS_MAX = 60


def free_ports(count):
    """Ports of this host that nobody listens on, in a row."""
    while True:
        held = [socket.socket() for _ in range(count)]
        try:
            held[0].bind(("127.0.0.1", 0))
            first = held[0].getsockname()[1]
            for number, one in enumerate(held[1:], 1):
                one.bind(("127.0.0.1", first + number))
            return first
        except OSError:
            continue
        finally:
            for one in held:
                one.close()


class Parts(Stack):
    """Engines, agents and a frontend, each by itself; workers are named `gpu-0` and so on."""

    def __init__(self, site, name, family, engine, workers=1, engine_flags=()):
        super().__init__(site, family)
        self.name = name
        self.run_dir = site.path(name)
        self.state_dir = site.path(f"{name}-state")
        self.environment = {
            **site.environment,
            "KVLENS_ENGINE_RUN_DIR": self.run_dir,
            "KVLENS_MEDIA_ENABLED": "true",
            "KVLENS_MEDIA_TRANSFER": "shm",
            "KVLENS_FRONTEND_EXPOSE_ROUTING": "true",
        }
        self.workers_expected = [f"gpu-{number}" for number in range(workers)]
        self.agents, self.urls, self.frontend = {}, {}, None
        self.runs = 0
        self.engines = {
            worker: self.run(
                "engine",
                ["--worker", worker, "--kind", "command", "--model", site.model(family)]
                + ["--name", family, *engine_flags, "--", *engine, "--uds", "{uds}"],
                worker,
            )
            for worker in self.workers_expected
        }

    def run(self, role, words, about):
        """Runs a role; its output is in a file of its own."""
        self.runs += 1
        log = self.site.path(f"{self.name}-{role}-{about}-{self.runs}.log")
        return processes.Process([self.site.binary, role, *words], self.environment, log)

    def start_agent(self, worker):
        """Starts a worker's agent, with what a former one has left."""
        os.makedirs(self.state_dir, mode=0o700, exist_ok=True)
        self.urls.setdefault(worker, f"http://127.0.0.1:{free_ports(1)}")
        words = ["--worker", worker, "--listen", self.urls[worker].removeprefix("http://")]
        words += ["--model", self.site.model(self.model_name), "--name", self.model_name]
        words += ["--state-dir", self.state_dir]
        self.agents[worker] = self.run("worker", words, worker)

    def start_frontend(self, *words):
        """Starts a frontend that follows all agents, in the place of the one before."""
        if self.frontend:
            self.frontend.stop()
        port = free_ports(2)
        self.public, self.admin = (f"http://127.0.0.1:{port + at}" for at in (0, 1))
        follow = [word for url in self.urls.values() for word in ("--worker-url", url)]
        flags = ["--model", self.site.model(self.model_name), "--name", self.model_name]
        flags += ["--host", "127.0.0.1", "--port", port]
        self.frontend = self.run("frontend", [*follow, *flags, *words], "all")
        return self.ready()

    def ready(self):
        """Waits until all workers that have an agent take requests."""
        until("the frontend serves", self.all_serve, SERVING_SECONDS_MAX, every=0.1)
        return self

    def all_serve(self):
        for process in [self.frontend, *self.engines.values(), *self.agents.values()]:
            assert process.is_running(), f"a part ended\n{process.output()[-3000:]}"
        try:
            return self.serving() == set(self.urls)
        except (OSError, AssertionError):
            return False

    def followed(self, worker):
        """Waits until a worker's engine is followed by an agent to the last event."""
        ledger = lambda: self.workers()[worker]["ledger"]["completeness"]
        until(f"{worker} is followed", lambda: ledger() == "complete", SERVING_SECONDS_MAX)

    def engine_file(self, worker):
        """What the engine's folder says of it; empty before it is there."""
        pattern = os.path.join(self.run_dir, "kvlens-*", f"engine-{worker}", "engine.json")
        for path in glob.glob(pattern):
            with open(path) as file:
                return json.load(file)
        return {}

    def engines_answer(self):
        """Waits until all engines answer by themselves, agents or not."""
        for worker in self.workers_expected:
            until(f"{worker} answers", lambda: self.engine_answers(worker), READY_SECONDS_MAX, 0.2)

    def engine_answers(self, worker):
        address = self.engine_file(worker).get("address")
        try:
            return address and wire.get(address, "/health").status == 200
        except OSError:
            return False

    def direct(self, worker):
        """Where a worker's engine answers, without an agent's word."""
        return self.engine_file(worker)["address"]

    def engine_pid(self, worker):
        below = processes.descendants(self.engines[worker].child.pid)
        [api] = [pid for pid, title in below.items() if " serve " in title]
        return api

    def kill_engine(self, worker):
        """Kills a worker's engine below its launcher."""
        os.kill(self.engine_pid(worker), signal.SIGKILL)

    def stop(self):
        for process in [self.frontend, *self.agents.values(), *self.engines.values()]:
            if process and process.is_running():
                process.stop()
