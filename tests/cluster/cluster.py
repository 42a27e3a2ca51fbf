"""The cluster: every process by its name, and what can be seen of them from outside."""

import ask
import net
import processes
from ground import Nats
from load import Load
from members import ADDRESS as ETCD_URL
from members import Etcd, registered
from processes import Process
from wait import until

CONTROL = net.ADDRESSES[net.CONTROL]
NATS_PORT = 4222
ROUTERS = {"r-1": 8301, "r-2": 8302}
# The admin listener has the next port.
FRONTENDS = {"f-1": 8000, "f-2": 8010}
# By worker: its host, and the ports of its gate and its agent.
WORKERS = {
    "a-0": (net.HOST_A, 8100, 8200),
    "a-1": (net.HOST_A, 8101, 8201),
    "b-0": (net.HOST_B, 8100, 8200),
    "b-1": (net.HOST_B, 8101, 8201),
}
READY_SECONDS_MAX = 30
# By promise, all is as it was this soon after what was away is back.
WHOLE_SECONDS_MAX = 2.0
# A text of which an engine dies.
DEADLY = "the word that no engine survives"
MOCK = ["--num-gpu-blocks", 3000, "--decode-tokens-per-second", 40, "--max-num-seqs", 256]
MOCK += ["--deadly-text", DEADLY]


class Cluster:
    """All processes. Their names: etcd, nats, and a role and a name, as router-r-1."""

    def __init__(self, site):
        self.site = site
        names = {"worker": WORKERS, "router": ROUTERS, "frontend": FRONTENDS}
        self.nats = Nats(site, CONTROL, names)
        self.processes = {}
        self.load = Load([(CONTROL, port) for port in FRONTENDS.values()])
        self.fill()

    def fill(self):
        """All processes as they are at first, none of them started."""
        self.is_embedded = False
        self.add(Etcd(self.site))
        words = ["nats-server", "-c", self.nats.path]
        self.add(Process(self.site, "nats", net.CONTROL, words))
        for machine in net.HOSTS:
            self.site.make_folder(machine)
        for worker in WORKERS:
            self.add(self.engine(worker))
            self.add(self.agent(worker))
        for router in ROUTERS:
            self.add(self.router(router))
        for frontend in FRONTENDS:
            self.add(self.frontend(frontend, "remote"))

    def __getitem__(self, name):
        return self.processes[name]

    def add(self, process):
        """Takes the place of the process of that name, which must not run."""
        before = self.processes.get(process.name)
        assert before is None or not before.is_running(), process.name
        self.processes[process.name] = process
        return process

    def planes(self, nats=f"nats://{CONTROL}:{NATS_PORT}"):
        return ["--etcd", ETCD_URL, "--nats", nats]

    def run_dir(self, machine):
        return {"KVLENS_ENGINE_RUN_DIR": self.site.path(machine)}

    def engine(self, worker, environment=()):
        machine, port, _ = WORKERS[worker]
        words = [self.site.binary, "engine", "--worker", worker, "--kind", "mock"]
        words += ["--listen", f"{net.ADDRESSES[machine]}:{port}", "--key-file", self.site.keys]
        told = {**self.run_dir(machine), **dict(environment)}
        return Process(self.site, f"engine-{worker}", machine, [*words, "--", *MOCK], told)

    def agent(self, worker, nats=None, environment=()):
        machine, _, port = WORKERS[worker]
        listen = f"{net.ADDRESSES[machine]}:{port}"
        words = [self.site.binary, "worker", "--worker", worker, "--listen", listen]
        words += ["--advertise", f"http://{listen}", "--key-file", self.site.keys]
        words += self.planes(nats) if nats else self.planes()
        told = {**self.run_dir(machine), **self.nats.environment(f"agent-{worker}")}
        told |= dict(environment)
        return Process(self.site, f"agent-{worker}", machine, words, told)

    def router(self, name):
        words = [self.site.binary, "router", "--id", name, *self.planes()]
        words += ["--admin", f"{CONTROL}:{ROUTERS[name]}", "--worker-key-file", self.site.keys]
        told = self.nats.environment(f"router-{name}")
        return Process(self.site, f"router-{name}", net.CONTROL, words, told)

    def frontend(self, name, place):
        words = [self.site.binary, "frontend", "--router", place, *self.planes()]
        words += ["--worker-key-file", self.site.keys, "--model", "demo"]
        words += ["--host", CONTROL, "--port", FRONTENDS[name]]
        told = self.nats.environment(f"frontend-{name}") | {
            "KVLENS_FRONTEND_ADMIN_HOST": CONTROL,
            "KVLENS_FRONTEND_EXPOSE_ROUTING": "true",
            "KVLENS_FRONTEND_HAND_OVER": "true",
            "KVLENS_MEDIA_ENABLED": "true",
        }
        return Process(self.site, f"frontend-{name}", net.CONTROL, words, told)

    def start(self):
        """Starts all that does not run, and waits until everything takes requests."""
        for name, process in self.processes.items():
            if not process.is_running():
                process.start()
            if name == "etcd":
                process.ready()
        until(self.what_lacks_at_start, self.is_whole, READY_SECONDS_MAX)

    def what_lacks_at_start(self):
        """The same with what the processes have said that could not go on."""
        ended = (f"{process.name} has ended: {process.tail(3)}" for process in self.ended())
        return "\n".join([self.what_lacks(), *ended])

    def mend(self):
        """After a failed scenario: all runs again, and where that does not do, all is new."""
        try:
            self.start()
        except AssertionError:
            for process in self.processes.values():
                if process.is_running():
                    process.kill()
            self.fill()
            self.start()

    def ended(self):
        """The processes that have ended although nobody has asked them to."""
        return [process for process in self.processes.values() if process.has_ended()]

    def engine_pid(self, worker):
        """The mock engine itself, below its `kvlens engine`."""
        [pid] = processes.children(self.processes[f"engine-{worker}"].pid)
        return pid

    def admins(self):
        """The admin listeners that list workers."""
        listed = {f"router-{name}": port for name, port in ROUTERS.items()}
        if self.is_embedded:
            listed = {}
        listed |= {f"frontend-{name}": port + 1 for name, port in FRONTENDS.items()}
        return {name: f"http://{CONTROL}:{port}" for name, port in listed.items()}

    def indexes(self):
        """The admin listeners of those that hold an index."""
        holders = "frontend" if self.is_embedded else "router"
        return {name: url for name, url in self.admins().items() if name.startswith(holders)}

    def record(self, worker):
        """What a worker's agent says of it; `None` where it says nothing."""
        machine, _, port = WORKERS[worker]
        found = ask.workers(f"http://{net.ADDRESSES[machine]}:{port}", self.site.key)
        return found[0] if found else None

    def what_lacks(self):
        """What is not as it should be with all processes well; nothing where all is."""
        lacks = []
        leases = {name: lease for name, (_, lease) in (registered() or {}).items()}
        if sorted(leases) != sorted(WORKERS) or not all(leases.values()):
            lacks.append(f"etcd has {leases}")
        for name, url in self.admins().items():
            listed = ask.workers(url)
            if sorted(entry["worker"] for entry in listed) != sorted(WORKERS):
                lacks.append(f"{name} lists {[entry['worker'] for entry in listed]}")
            for entry in listed:
                if fault := unwell(entry):
                    lacks.append(f"{name} has {entry['worker']} as {fault}")
        return "; ".join(lacks)

    def is_whole(self):
        return not self.what_lacks()

    def differences(self):
        """Where an index is not what the agents' ledgers say."""
        told = []
        records = {worker: self.record(worker) for worker in WORKERS}
        for name, url in self.indexes().items():
            for entry in ask.workers(url):
                record = records.get(entry["worker"])
                if record is None:
                    told.append(f"{entry['worker']}'s agent says nothing")
                    continue
                ledger = (record["ledger"]["sequence"], record["ledger"]["blocks"])
                index = (entry["applied_sequences"][0] or 0, entry["indexed_blocks"])
                if ledger != index:
                    told.append(f"{name} has {entry['worker']} at {index}, its ledger {ledger}")
        return "; ".join(told)

    def behind(self, goals):
        """Where an index has not come as far as these sequence numbers of the ledgers."""
        told = []
        for name, url in self.indexes().items():
            listed = {entry["worker"]: entry["applied_sequences"][0] for entry in ask.workers(url)}
            for worker, goal in goals.items():
                if (listed.get(worker) or 0) < goal:
                    told.append(f"{name} has {worker} at {listed.get(worker)}, not {goal}")
        return "; ".join(told)


def unwell(entry):
    """Why a worker in a list may not take all requests; nothing where it may."""
    circuit = entry.get("circuit", {}).get("state", "closed")
    if entry["verdict"] != "healthy" or circuit != "closed" or entry.get("cause"):
        return f"{entry['verdict']}, circuit {circuit}, cause {entry.get('cause')}"
    return None
