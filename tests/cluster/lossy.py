"""A place between an agent and NATS that loses some of what the agent tells, and nothing else."""

import asyncio
import threading

import net

PORT = 4299
# Subjects of which messages are lost.
EVENTS = b"kvlens.kv."


class Lossy:
    """Passes connections on to NATS while this is entered, but not all messages.

    It reads the client's side frame by frame, because half a message is no loss that NATS knows.
    """

    def __init__(self, server, every=20):
        self.server = server
        # One in so many messages is lost; 1 loses all, 0 none.
        self.every = every
        self.seen = self.lost = 0
        self.address = f"nats://{net.ADDRESSES[net.CLIENTS]}:{PORT}"
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="lossy", daemon=True)
        self.listener = None

    def __enter__(self):
        self.thread.start()
        listening = asyncio.start_server(
            self.join, net.ADDRESSES[net.CLIENTS], PORT, limit=4 << 20
        )
        self.listener = asyncio.run_coroutine_threadsafe(listening, self.loop).result(5)
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self.end(), self.loop).result(5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)

    async def end(self):
        """Ends all connections."""
        self.listener.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def join(self, reader, writer):
        """One connection of an agent."""
        try:
            upstream = await asyncio.open_connection(*self.server, limit=4 << 20)
        except OSError:
            writer.close()
            return
        ways = [self.tell(reader, upstream[1]), copy(upstream[0], writer)]
        tasks = [self.loop.create_task(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for end in (writer, upstream[1]):
                end.close()

    async def tell(self, reader, writer):
        """Passes on what the agent says, without the messages that are lost."""
        while line := await reader.readline():
            words = line.split()
            payload = b""
            # PUB subject [reply] bytes, or HPUB subject [reply] bytes-of-headers bytes; then the
            # message, and a line's end.
            if words and words[0].upper() in (b"PUB", b"HPUB"):
                payload = await reader.readexactly(int(words[-1]) + 2)
                if words[1].startswith(EVENTS) and self.loses():
                    continue
            writer.write(line + payload)
            await writer.drain()

    def loses(self):
        self.seen += 1
        is_lost = self.every > 0 and self.seen % self.every == 0
        self.lost += is_lost
        return is_lost


async def copy(reader, writer):
    while content := await reader.read(65_536):
        writer.write(content)
        await writer.drain()
