"""One request as a client sends it, and whether its answer is whole."""

import asyncio
import json
import time

from bodies import encoded

ANSWER_SECONDS_MAX = 60
# A frontend that is being started again listens within this time, or its client has waited enough.
CONNECT_SECONDS_MAX = 10
CONNECT_AGAIN_SECONDS = 0.1
# What every answer of a mock engine says, see `src/mock/answer.rs`: words that are lost, or come
# twice, where a stream goes on elsewhere are seen by it.
OPENING = "I see "
CLOSING = " came from my cache."
FILLER = (
    " This answer is made up by a mock engine, which has no weights and no GPU; it counts blocks as "
    "a real engine does, and its words only take their time: läuft, 走る, готово."
)
FILLERS = FILLER * 100
BEGUN = [OPENING[:length] for length in range(1, len(OPENING))]

GOOD = "good"


class Outcome:
    """What became of a request."""

    __slots__ = ("begun", "ended", "headers", "is_stream", "kind", "refused", "said", "status")

    def __init__(self, is_stream):
        self.is_stream = is_stream
        self.begun = time.monotonic()
        self.ended = None
        # Connects that were refused before one was taken.
        self.refused = 0
        self.headers = {}
        self.status = None
        # `GOOD`, or in a word what was wrong: refused, status, event, cut, timeout, untrue.
        self.kind = None
        # For a person.
        self.said = ""

    @property
    def worker(self):
        return self.headers.get("x-kvlens-worker")

    @property
    def router(self):
        return self.headers.get("x-kvlens-router", "")

    def is_good(self):
        return self.kind == GOOD

    def story(self):
        took = (self.ended or time.monotonic()) - self.begun
        form = "stream" if self.is_stream else "whole"
        where = f"worker {self.worker}, router {self.router or '-'}"
        return f"{self.kind} after {took:.2f} s ({form}, {where}): {self.said[:300]}"


class Bad(Exception):
    """An answer that is not as it should be."""

    def __init__(self, kind, said):
        super().__init__(said)
        self.kind = kind


async def ask(addresses, body):
    """Sends a chat to the first of the addresses that takes the connection; what became of it."""
    outcome = Outcome(body.get("stream", False))
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            await answered(outcome, addresses, body)
        outcome.kind = GOOD
    except Bad as bad:
        outcome.kind, outcome.said = bad.kind, str(bad)
    except TimeoutError:
        outcome.kind, outcome.said = "timeout", f"no end within {ANSWER_SECONDS_MAX} s"
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        outcome.kind, outcome.said = "cut", repr(error)
    outcome.ended = time.monotonic()
    return outcome


async def answered(outcome, addresses, body):
    reader, writer = await connected(outcome, addresses)
    try:
        content = encoded(body)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: kvlens\r\nconnection: close\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(content)
        )
        writer.write(content)
        await writer.drain()
        await head(outcome, reader)
        if outcome.status != 200:
            raise Bad("status", f"{outcome.status}: {(await whole(outcome, reader))[:300]!r}")
        if outcome.is_stream:
            await stream(outcome, reader, body["max_tokens"])
        else:
            answer = json.loads(await whole(outcome, reader))
            choice = answer["choices"][0]
            told = (choice["message"]["content"], choice["finish_reason"], answer["usage"])
            check(told, body["max_tokens"])
    finally:
        writer.close()


async def connected(outcome, addresses):
    deadline = outcome.begun + CONNECT_SECONDS_MAX
    while True:
        host, port = addresses[outcome.refused % len(addresses)]
        try:
            return await asyncio.open_connection(host, port, limit=1 << 20)
        except OSError as error:
            outcome.refused += 1
            if time.monotonic() > deadline:
                raise Bad("refused", repr(error)) from error
        await asyncio.sleep(CONNECT_AGAIN_SECONDS)


async def head(outcome, reader):
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    outcome.status = int(lines[0].split(" ")[1])
    for line in lines[1:]:
        name, _, value = line.partition(":")
        outcome.headers[name.lower()] = value.strip()


async def whole(outcome, reader):
    if "content-length" in outcome.headers:
        return await reader.readexactly(int(outcome.headers["content-length"]))
    return b"".join([chunk async for chunk in chunks(outcome, reader)])


async def chunks(outcome, reader):
    """The parts of a chunked body; its end must come."""
    if outcome.headers.get("transfer-encoding") != "chunked":
        raise Bad("cut", f"a body without an end: {outcome.headers}")
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)


async def stream(outcome, reader, max_tokens):
    """Reads a stream's events to their end."""
    waiting, text, finish, usage, is_done = b"", [], None, None, False
    async for chunk in chunks(outcome, reader):
        *events, waiting = (waiting + chunk).split(b"\n\n")
        for event in events:
            if not event.startswith(b"data: "):
                continue
            if event == b"data: [DONE]":
                is_done = True
                continue
            told = json.loads(event[6:])
            if "error" in told:
                raise Bad("event", event.decode())
            usage = told.get("usage") or usage
            for choice in told["choices"]:
                text.append(choice["delta"].get("content") or "")
                finish = choice.get("finish_reason") or finish
    if not is_done:
        raise Bad("cut", f"no [DONE] after {''.join(text)[-60:]!r}")
    check(("".join(text), finish, usage), max_tokens)


def check(told, max_tokens):
    """Holds an answer against what a mock engine says."""
    text, finish, usage = told
    if finish != "length" or not usage or usage["completion_tokens"] != max_tokens:
        raise Bad("untrue", f"finish {finish!r}, {usage}, {max_tokens} tokens wanted")
    # A mock engine that is to go on from less than its first two words begins anew.
    again = max((said for said in BEGUN if text.startswith(said + OPENING)), key=len, default="")
    opening, _, filler = text.removeprefix(again).partition(CLOSING)
    if not opening.startswith(OPENING[: len(opening)]) or not FILLERS.startswith(filler):
        raise Bad("untrue", f"words are lost or come twice: {text!r}")
