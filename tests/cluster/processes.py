"""The processes of the cluster, each on its machine, as a user who may do nothing."""

import os
import pathlib
import signal
import subprocess

import net
from wait import until

USER = 65534
END_SECONDS_MAX = 45


class Process:
    """A process on a machine, its output in a file that later lives of it continue."""

    def __init__(self, site, name, machine, words, environment=()):
        self.site = site
        self.name = name
        self.machine = machine
        self.words = [str(word) for word in words]
        self.environment = dict(environment)
        self.log = pathlib.Path(site.path(f"{name}.log"))
        self.child = None
        # Whether it should run now.
        self.is_wanted = False
        # Where in the log its present life begins.
        self.log_begin = 0

    def start(self):
        """Starts it, which must not run."""
        assert not self.is_running(), f"{self.name} runs already"
        as_nobody = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        # Set last, because libraries that it names are to be loaded by nobody else.
        told = ["env", *(f"{name}={value}" for name, value in self.environment.items())]
        with open(self.log, "ab") as output:
            self.log_begin = self.said_bytes()
            self.child = subprocess.Popen(
                net.inside(self.machine, *as_nobody, *told, *self.words),
                env=self.site.environment,
                cwd=self.site.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.is_wanted = True
        return self

    def has_ended(self):
        """Whether it has ended, and nobody here has asked for that."""
        return self.is_wanted and not self.is_running()

    @property
    def pid(self):
        return self.child.pid

    def is_running(self):
        return self.child is not None and self.child.poll() is None

    def signal(self, number):
        """Signals the process alone."""
        self.child.send_signal(number)

    def kill(self):
        """Ends it at once, and only it, as a crash would."""
        self.is_wanted = False
        self.child.kill()
        self.child.wait()

    def stop(self):
        """Asks it to end and waits; its exit code."""
        self.is_wanted = False
        self.child.terminate()
        try:
            return self.child.wait(END_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end within {END_SECONDS_MAX} s") from None

    def restart(self):
        """A new life of it, once the one before has ended as asked."""
        code = self.stop()
        assert code == 0, f"{self.name} ended with {code}\n{self.tail()}"
        return self.start()

    def succeed(self, is_ready):
        """Starts the next life beside this one, which ends once the next is ready."""
        before, self.child = self.child, None
        self.start()
        until(f"{self.name} is ready", is_ready, END_SECONDS_MAX)
        before.terminate()
        code = before.wait(END_SECONDS_MAX)
        assert code == 0, f"{self.name} ended with {code}\n{self.tail()}"

    def said(self):
        """What its present life has said."""
        return self.said_from(self.log_begin)

    def said_bytes(self):
        """How much all its lives have said."""
        return self.log.stat().st_size if self.log.exists() else 0

    def said_from(self, begin):
        """What it has said from there on."""
        return self.log.read_bytes()[begin:].decode(errors="replace")

    def tail(self, lines=15):
        """The last that it has said."""
        return "\n".join(self.said().splitlines()[-lines:])


class Stopped:
    """A process, or several, that stand still while this is entered."""

    def __init__(self, *pids):
        self.pids = pids

    def __enter__(self):
        for pid in self.pids:
            os.kill(pid, signal.SIGSTOP)
        return self

    def __exit__(self, *_):
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass


def children(pid):
    """The processes that a process has started."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and parent(entry) == pid:
            found.append(int(entry))
    return found


def parent(pid):
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The command's name stands in brackets and may hold anything.
    return int(text.rpartition(b")")[2].split()[1])
