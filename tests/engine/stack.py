"""kvlens with real engines behind it, and what can be seen of both from outside."""

import glob
import json
import os
import re

import processes
import told
import wire
from processes import until
from publisher import Publisher

BLOCK_TOKENS = 16
# A cold start on two busy cores takes up to two minutes.
READY_SECONDS_MAX = 300
# Blocks are known this soon after an engine's event, by promise.
APPLIED_SECONDS_MAX = 2.0


class Site:
    """Where things are, and what every process is told."""

    def __init__(self, binary, install, folder, pages):
        self.binary = binary
        self.pages = pages
        self.install = install
        self.folder = folder
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": folder,
            "LANG": "C.UTF-8",
            # Nothing is asked of the network, and nothing told.
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_HOST_IP": "127.0.0.1",
            "CUDA_VISIBLE_DEVICES": "",
            # Several engines share few cores.
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # For /reset_prefix_cache.
            "VLLM_SERVER_DEV_MODE": "1",
            "KVLENS_LOG_FORMAT": "text",
        }

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def model(self, family):
        return os.path.join(self.install, "models", family)

    def lora(self, family):
        return os.path.join(self.install, "models", f"{family}-lora")

    def vllm(self, *flags, context=2048, buffer_steps=1_000):
        """The command line of an engine, in which kvlens fills in what stands in braces."""
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": "{kv_events}",
            "replay_endpoint": "{kv_replay}",
            "buffer_steps": buffer_steps,
        }
        words = [os.path.join(self.install, "venv/bin/vllm"), "serve", "{model}"]
        words += ["--served-model-name", "{name}", "--dtype", "bfloat16", "--enforce-eager"]
        words += ["--max-model-len", str(context), "--max-num-seqs", "4"]
        words += ["--max-num-batched-tokens", "2048", "--block-size", str(BLOCK_TOKENS)]
        words += ["--enable-prefix-caching", "--prefix-caching-hash-algo", "sha256_cbor"]
        words += ["--kv-cache-memory-bytes", "67108864", "--enable-prompt-tokens-details"]
        words += ["--limit-mm-per-prompt", json.dumps({"image": 16, "video": 0})]
        words += ["--kv-events-config", json.dumps(events)]
        return [*words, *flags]


class Stack:
    """A frontend with its router, and engines behind it."""

    def __init__(self, site, family):
        self.site = site
        self.model_name = family
        with open(os.path.join(site.model(family), "config.json")) as config:
            self.image_token = json.load(config)["image_token_id"]
        self.public = self.admin = None
        # Workers that have done something since their events were waited for.
        self.unsettled = set()
        self.publishers = {}

    def workers(self):
        """The router's own list, by name."""
        entries = wire.get(self.admin, "/kvlens/v1/workers").good().json()["workers"]
        return {entry["worker"]: entry for entry in entries}

    def serving(self):
        """The names of the workers that take requests."""
        return {name for name, one in self.workers().items() if one["verdict"] == "healthy"}

    def address(self, worker):
        return self.workers()[worker]["address"]

    def engine_pid(self, worker):
        """The process that kvlens has started as a worker's engine."""
        raise NotImplementedError

    def replay(self, worker, rank):
        """The replay endpoint of one rank of a worker's engine, as its command line says."""
        words = processes.read(self.engine_pid(worker), "cmdline").decode().split("\0")
        events = json.loads(words[words.index("--kv-events-config") + 1])
        endpoint = events["replay_endpoint"]
        if endpoint.startswith("ipc:"):
            return endpoint
        host, _, port = endpoint.rpartition(":")
        return f"{host}:{int(port) + rank}"

    def settle(self, workers=None):
        """Waits until the router has taken in all that engines have published."""
        for worker in workers or sorted(self.unsettled):
            ranks = len(self.workers()[worker]["applied_sequences"])
            for rank in range(ranks):
                self.settle_rank(worker, rank)
            self.unsettled.discard(worker)

    def settle_rank(self, worker, rank):
        endpoint = self.replay(worker, rank)
        publisher = self.publishers.setdefault(endpoint, Publisher(endpoint))
        last = publisher.last_sequence()
        until(
            f"batch {last} of rank {rank} of {worker} is applied",
            lambda: self.workers()[worker]["applied_sequences"][rank] == last,
            APPLIED_SECONDS_MAX,
            every=0.01,
        )

    def ask(self, body):
        """Sends a chat once all earlier ones are known in the index, and reads its answer."""
        self.settle()
        explained = self.explain(body)
        answered = told.ask(self.public, body, BLOCK_TOKENS)
        answered.explained = explained
        self.unsettled.add(answered.worker)
        return answered

    def explain(self, body):
        question = {**body, "return_token_ids": True}
        return wire.post(self.admin, "/kvlens/v1/explain", question).good().json()

    def overlaps(self, body):
        """The blocks of a chat's prompt that each worker rank is thought to hold."""
        candidates = self.explain(body)["candidates"]
        return {(one["worker"], one["rank"]): one["overlap_blocks"] for one in candidates}

    def forget(self, worker):
        """Waits no longer for what an engine published before it died."""
        self.unsettled.discard(worker)
        self.publishers = {}

    def empty_caches(self):
        """Empties all engines' prefix caches behind our back."""
        for worker in self.serving():
            address = self.address(worker)
            wire.post(address, "/reset_prefix_cache").good()
            # An engine tells of it only with its next step.
            message = {"role": "system", "content": "x" * 2 * BLOCK_TOKENS}
            body = {"model": self.model_name, "messages": [message], "max_tokens": 1}
            told.reported(address, body)
            self.unsettled.add(worker)


class Up(Stack):
    """`kvlens up` and its engines."""

    def __init__(self, site, name, family, engine, workers=2, words=(), environment=()):
        super().__init__(site, family)
        self.count = workers
        self.run_dir = site.path(name)
        # The text of an engine's answer is read from a file of its own, not from a terminal.
        self.process = processes.Process(
            [site.binary, "up", "--port", "0", "--engine", "command", "--workers", workers]
            + ["--model", site.model(family), *words, "--", *engine]
            + ["--host", "127.0.0.1", "--port", "{port}"],
            {**site.environment, "KVLENS_ENGINE_RUN_DIR": self.run_dir, **dict(environment)},
            site.path(f"{name}.log"),
        )

    def ready(self):
        """Waits until all workers take requests."""
        until("kvlens up is ready", self.has_said_where, READY_SECONDS_MAX, every=0.5)
        until("all engines serve", lambda: len(self.serving()) == self.count, READY_SECONDS_MAX)
        return self

    def has_said_where(self):
        assert self.process.is_running(), f"kvlens up ended\n{self.process.output()[-3000:]}"
        found = re.search(
            r"ready: .* at (http://\S+)/v1, metrics and workers at (http://\S+)",
            self.process.output(),
        )
        if found:
            self.public, self.admin = found.groups()
        return found

    def engine_pid(self, worker):
        [record] = glob.glob(os.path.join(self.run_dir, "kvlens-*", "*", f"{worker}.pid"))
        with open(record) as file:
            return int(file.read().split()[0])

    def stop(self):
        return self.process.stop()
