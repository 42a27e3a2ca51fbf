"""Requests at a steady rate, whatever becomes of those before: an open loop in its own thread."""

import asyncio
import threading
import time

import client
from bodies import Bodies

RATE = 100
# Answers that are outstanding beyond it would need more memory and sockets than this run has.
IN_FLIGHT_MAX = 5_000


class Load:
    """Requests to all frontends in turn, while it is not paused."""

    def __init__(self, frontends, rate=RATE):
        self.frontends = frontends
        self.rate = rate
        self.bodies = Bodies()
        self.outcomes = []
        self.in_flight = 0
        self.sent = 0
        self.is_paused = True
        self.is_idle = threading.Event()
        self.is_idle.set()
        self.loop = asyncio.new_event_loop()
        self.fault = None
        self.thread = threading.Thread(target=self.run, name="load", daemon=True)
        self.thread.start()

    def run(self):
        asyncio.set_event_loop(self.loop)
        self.loop.create_task(self.send())
        self.loop.run_forever()

    async def send(self):
        """Sends one request after another, each at its time."""
        due = time.monotonic()
        tasks = set()
        while True:
            if self.is_paused:
                self.note_idle()
                await asyncio.sleep(0.01)
                due = time.monotonic()
                continue
            # Never waits for answers; when this process was late, requests are made up for.
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += 1 / self.rate
            if self.in_flight >= IN_FLIGHT_MAX:
                self.fault = f"{IN_FLIGHT_MAX} requests are not answered"
                continue
            self.is_idle.clear()
            self.in_flight += 1
            self.sent += 1
            task = self.loop.create_task(self.one(self.bodies.next()))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def one(self, body):
        turn = self.sent % len(self.frontends)
        addresses = self.frontends[turn:] + self.frontends[:turn]
        try:
            self.outcomes.append(await client.ask(addresses, body))
        finally:
            self.in_flight -= 1
            self.note_idle()

    def note_idle(self):
        if self.is_paused and self.in_flight == 0:
            self.is_idle.set()

    def resume(self):
        """Goes on; what is answered from now on is new."""
        self.outcomes = []
        self.is_paused = False

    def pause(self):
        """Sends nothing more, and waits for all answers; the outcomes since the last `resume`."""
        self.is_paused = True
        assert self.is_idle.wait(client.ANSWER_SECONDS_MAX + 20), f"{self.in_flight} never ended"
        assert self.fault is None, self.fault
        return self.outcomes

    def ask(self, bodies):
        """Sends some requests beside the others, all at once; a future of their outcomes."""
        frontends = self.frontends

        async def all_of_them():
            return await asyncio.gather(*(client.ask(frontends, body) for body in bodies))

        return asyncio.run_coroutine_threadsafe(all_of_them(), self.loop)
