"""What the bus lets each role say and hear: its own, and no other's."""

import json
import socket
import time

from cluster import CONTROL, NATS_PORT

ANSWER_SECONDS_MAX = 5
# Who, what, on which subject, and whether it is allowed.
RULES = [
    ("agent-a-0", "PUB", "kvlens.kv.a-0", True),
    ("agent-a-0", "PUB", "kvlens.record.a-0", True),
    ("agent-a-0", "SUB", "kvlens.snapshot.a-0", True),
    ("agent-a-0", "PUB", "kvlens.kv.a-1", False),
    ("agent-a-0", "PUB", "kvlens.record.b-0", False),
    ("agent-a-0", "PUB", "kvlens.bookings.r-1", False),
    ("agent-a-0", "PUB", "kvlens.router.r-1.alive", False),
    ("agent-a-0", "PUB", "_INBOX.frontend-f-1.x", True),
    ("agent-a-0", "SUB", "kvlens.snapshot.a-1", False),
    ("agent-a-0", "SUB", "kvlens.snapshot.*", False),
    ("agent-a-0", "SUB", "kvlens.kv.*", False),
    ("agent-a-0", "SUB", "_INBOX.>", False),
    ("engine-a-0", "SUB", "kvlens.request.a-0", True),
    ("engine-a-0", "SUB", "kvlens.request.a-1", False),
    ("engine-a-0", "PUB", "kvlens.kv.a-0", False),
    ("engine-a-0", "PUB", "_INBOX.frontend-f-1.x", True),
    ("engine-a-0", "SUB", "_INBOX.>", False),
    ("router-r-1", "SUB", "kvlens.kv.*", True),
    ("router-r-1", "SUB", "kvlens.bookings.*", True),
    ("router-r-1", "SUB", "kvlens.router.r-1.place", True),
    ("router-r-1", "PUB", "kvlens.bookings.r-1", True),
    ("router-r-1", "PUB", "kvlens.router.r-1.alive", True),
    ("router-r-1", "PUB", "kvlens.snapshot.a-0", True),
    ("router-r-1", "SUB", "kvlens.router.r-2.place", False),
    ("router-r-1", "SUB", "_INBOX.router-r-1.>", True),
    ("router-r-1", "SUB", "_INBOX.router-r-2.>", False),
    ("router-r-1", "SUB", "_INBOX.>", False),
    ("router-r-1", "PUB", "kvlens.bookings.r-2", False),
    ("router-r-1", "PUB", "kvlens.router.r-2.alive", False),
    ("router-r-1", "PUB", "kvlens.kv.a-0", False),
    # Whether an engine is well is asked where its requests go.
    ("router-r-1", "PUB", "kvlens.request.a-0", True),
    ("router-r-1", "SUB", "kvlens.request.a-0", False),
    ("frontend-f-1", "PUB", "kvlens.router.r-1.place", True),
    ("frontend-f-1", "PUB", "kvlens.request.a-0", True),
    ("frontend-f-1", "SUB", "kvlens.router.*.alive", True),
    ("frontend-f-1", "PUB", "kvlens.router.r-1.alive", False),
    ("frontend-f-1", "PUB", "kvlens.kv.a-0", False),
    ("frontend-f-1", "PUB", "kvlens.record.a-0", False),
    ("frontend-f-1", "SUB", "kvlens.request.a-0", False),
    ("frontend-f-1", "SUB", "_INBOX.frontend-f-1.>", True),
    ("frontend-f-1", "SUB", "_INBOX.frontend-f-2.>", False),
    ("frontend-f-1", "SUB", "_INBOX.*.>", False),
]
# Who answers whom on which subject.
ANSWERS = [
    ("router-r-1", "agent-a-0", "kvlens.snapshot.a-0"),
    ("frontend-f-1", "router-r-1", "kvlens.router.r-1.place"),
    ("frontend-f-1", "engine-a-0", "kvlens.request.a-0"),
]


class Voice:
    """A connection to NATS by hand."""

    def __init__(self, nats, user):
        self.socket = socket.create_connection((CONTROL, NATS_PORT), ANSWER_SECONDS_MAX)
        self.file = self.socket.makefile("rb")
        with open(nats.passwords[user]) as file:
            password = file.read().strip()
        shown = {"user": user, "pass": password, "verbose": False, "headers": True}
        self.file.readline()
        self.say(f"CONNECT {json.dumps(shown)}")
        assert not self.complaints(), f"{user} may not come in"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()

    def say(self, line):
        self.socket.sendall(line.encode() + b"\r\n")

    def complaints(self):
        """What the server has against all that was said so far."""
        self.say("PING")
        lines = []
        while (line := self.file.readline()) and not line.startswith(b"PONG"):
            lines.append(line.decode(errors="replace"))
        return [line for line in lines if line.startswith("-ERR")]

    def heard(self):
        """The reply subject of the next message, and its text."""
        while line := self.file.readline():
            if line.startswith(b"MSG"):
                words = line.decode(errors="replace").split()
                text = self.file.read(int(words[-1]) + 2)[:-2].decode(errors="replace")
                return (words[3] if len(words) == 5 else None), text
        raise AssertionError("the connection ended")


def held(row, cluster):
    """Each rule, tried. Messages of this case are no form that anybody reads."""
    for user, verb, subject, allowed in RULES:
        with Voice(cluster.nats, user) as voice:
            voice.say(f"PUB {subject} 0\r\n" if verb == "PUB" else f"SUB {subject} 1")
            complaints = voice.complaints()
        row.require(bool(complaints) != allowed, f"{user} {verb} {subject}: {complaints}")
    # The roles themselves answer too, and later: it is a stranger's message.
    for asking, asked, subject in ANSWERS:
        answer(row, cluster, (asking, asked, subject))
    row.remark(f"{len(RULES)} rules, {len(ANSWERS)} answers")


def answer(row, cluster, rule):
    """Whoever is asked may answer, many times."""
    asking, asked, subject = rule
    with Voice(cluster.nats, asking) as first, Voice(cluster.nats, asked) as second:
        second.say(f"SUB {subject} 1")
        inbox = f"_INBOX.{asking}.one"
        first.say(f"SUB {inbox} 1")
        assert not first.complaints() and not second.complaints(), rule
        first.say(f"PUB {subject} {inbox} 5\r\nhello")
        reply, text = second.heard()
        assert (reply, text) == (inbox, "hello"), (reply, text)
        for part in ("one", "two"):
            second.say(f"PUB {reply} 3\r\n{part}")
        refused = second.complaints()
        row.require(not refused, f"{asked} may not answer {asking}: {refused}")
        deadline = time.monotonic() + ANSWER_SECONDS_MAX
        parts = []
        while "two" not in parts and time.monotonic() < deadline:
            parts.append(first.heard()[1])
        row.require("one" in parts and "two" in parts, f"{asking} has heard {parts} of {asked}")
