"""Asks an engine's publisher of KV events what it has published so far."""

import struct

import zmq

END = b"\xff" * 8
ANSWER_MILLISECONDS_MAX = 30_000


class Publisher:
    """The replay endpoint of one rank of an engine."""

    def __init__(self, endpoint):
        self.endpoint = endpoint
        # Where the last answer ended: only what is newer is asked for.
        self.seen = 0

    def last_sequence(self):
        """The number of the last batch that the engine has published by now; None before the
        first.

        The publisher's thread answers one question, then publishes one batch that waits in its
        queue, if there is one. So all that waited is published once two answers are the same.
        """
        last = self.ask()
        while (again := self.ask()) != last:
            last = again
        return last

    def ask(self):
        socket = zmq.Context.instance().socket(zmq.DEALER)
        try:
            socket.connect(self.endpoint)
            socket.send_multipart([b"", struct.pack(">Q", self.seen)])
            last = None
            while (sequence := self.next_sequence(socket)) is not None:
                last = sequence
        finally:
            socket.close(linger=0)
        if last is None and self.seen > 0:
            # The batch seen last is always kept, so this is another engine process.
            self.seen = 0
            return self.ask()
        self.seen = last or 0
        return last

    def next_sequence(self, socket):
        """The next batch of an answer; None at its end."""
        if not socket.poll(ANSWER_MILLISECONDS_MAX):
            raise TimeoutError(f"{self.endpoint} does not answer")
        sequence = socket.recv_multipart()[-2]
        return None if sequence == END else struct.unpack(">Q", sequence)[0]
