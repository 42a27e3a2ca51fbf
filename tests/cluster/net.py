"""The machines of the cluster: network namespaces on a bridge, and what goes wrong between them.

This process runs in network, mount and process namespaces of its own (see `tests/run`), so that all
that is made here is gone with it, however it ends.
"""

import os
import subprocess

CONTROL, HOST_A, HOST_B, CLIENTS = "control", "host-a", "host-b", "clients"
ADDRESSES = {CONTROL: "10.77.0.1", HOST_A: "10.77.0.2", HOST_B: "10.77.0.3", CLIENTS: "10.77.0.254"}
HOSTS = [HOST_A, HOST_B]
BRIDGE = "kvlens0"
# What a machine calls its one link.
LINK = "eth0"
TABLE = "inet kvlens_cut"


def run(*words):
    """Runs a command of the system; what it says is shown where it fails."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
    return done.stdout


def inside(machine, *words):
    """The words that run a command on a machine. Clients are where this process is."""
    return list(words) if machine == CLIENTS else ["nsenter", f"--net=/run/netns/{machine}", *words]


def build():
    """Makes all machines and joins them."""
    # Only this run sees them: what is named there does not outlive it.
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")
    os.makedirs("/run/netns", exist_ok=True)
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", BRIDGE, "type", "bridge", "forward_delay", 0)
    run("ip", "address", "add", f"{ADDRESSES[CLIENTS]}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    for machine in (CONTROL, *HOSTS):
        run("ip", "netns", "add", machine)
        run("ip", "link", "add", machine, "type", "veth", "peer", "name", LINK, "netns", machine)
        run("ip", "link", "set", machine, "master", BRIDGE, "up")
        run(*inside(machine, "ip", "link", "set", "lo", "up"))
        run(*inside(machine, "ip", "address", "add", f"{ADDRESSES[machine]}/24", "dev", LINK))
        run(*inside(machine, "ip", "link", "set", LINK, "up"))


class Cut:
    """A machine that is cut off while this is entered: packets vanish, and nobody is told.

    `ways` says which do: those "in", those "out", or both.
    """

    def __init__(self, machine, *ways):
        self.machine = machine
        self.ways = ways or ("in", "out")

    def __enter__(self):
        rules = [f"add table {TABLE}"]
        for way in self.ways:
            hook, name = ("input", "iifname") if way == "in" else ("output", "oifname")
            rules.append(f"add chain {TABLE} {way} {{ type filter hook {hook} priority 0; }}")
            rules.append(f"add rule {TABLE} {way} {name} {LINK} drop")
        run(*inside(self.machine, "nft", "\n".join(rules)))
        return self

    def __exit__(self, *_):
        run(*inside(self.machine, "nft", f"delete table {TABLE}"))
