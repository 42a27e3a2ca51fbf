"""Child processes that never outlive the run, whatever becomes of it."""

import ctypes
import os
import pathlib
import signal
import subprocess
import time
import uuid

# Every process of this run has it in its environment, its children's children included.
MARK = f"PROVE_RUN={uuid.uuid4()}"
END_SECONDS_MAX = 20
PR_SET_PDEATHSIG = 1

libc = ctypes.CDLL(None)
started = []


class Process:
    """A child in a process group of its own, its output in a file."""

    def __init__(self, words, environment, log):
        self.log = pathlib.Path(log)
        name, _, value = MARK.partition("=")
        with open(self.log, "wb") as output:
            self.child = subprocess.Popen(
                [str(word) for word in words],
                env={**environment, name: value},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Should this run be killed, they are told to end.
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
            )
        started.append(self)

    def output(self):
        return self.log.read_text(errors="replace")

    def is_running(self):
        return self.child.poll() is None

    def signal(self, number):
        """Signals the process alone."""
        self.child.send_signal(number)

    def kill(self):
        """Ends it at once, and only it, as a crash would."""
        self.child.kill()
        self.child.wait()

    def stop(self):
        """Asks it to end and waits; its exit code."""
        self.child.terminate()
        try:
            return self.child.wait(END_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            signal_group(self.child.pid, signal.SIGKILL)
            return self.child.wait()


def signal_group(group, number):
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass


def end_all():
    """Ends all that was started, and what those have started."""
    for process in reversed(started):
        if process.is_running():
            process.child.terminate()
    deadline = time.monotonic() + END_SECONDS_MAX
    while left() and time.monotonic() < deadline:
        for process in started:
            process.child.poll()
        time.sleep(0.1)
    for pid in left():
        os.kill(pid, signal.SIGKILL)


def left():
    """Our processes that are still there."""
    mine = os.getpid()
    return [pid for pid in pids() if pid != mine and MARK.encode() in read(pid, "environ").split(b"\0")]


def pids():
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def read(pid, name):
    """A file of /proc; empty for a process that is gone, or is another user's."""
    try:
        return pathlib.Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def parent(pid):
    # The command's name stands in brackets and may hold anything.
    fields = read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else None


def descendants(pid):
    """The processes below one, by pid and title."""
    below, found = {pid}, {}
    for other in sorted(pids()):
        if parent(other) in below:
            below.add(other)
            found[other] = read(other, "cmdline").replace(b"\0", b" ").decode(errors="replace")
    return found


def until(what, happened, seconds=20.0, every=0.05):
    """Waits until `happened()` is true, and returns what it says."""
    deadline = time.monotonic() + seconds
    while True:
        if said := happened():
            return said
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(every)
