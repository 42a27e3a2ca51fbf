"""What clients ask: chats with beginnings in common, some with a picture, some long."""

import base64
import json
import random
import struct
import zlib

MODEL = "demo"
WORDS = (
    "the river went past old stone houses and a quiet green boat carried bread to the market "
    "describe this picture in detail compare two images tell me what is different helpful and "
    "where the light comes from before anybody asks for the name of the street or its colour"
).split(" ")
# Few enough that caches hold them, enough that they are spread over all engines.
SYSTEMS = 24
QUESTIONS = 200
PICTURES = 30
# Every so many chats hold words that no other has: their engine stores blocks, and tells of it.
NEW_SHARE = 0.4


def png(side, chance):
    """A picture of one colour and a line, as a PNG file."""
    colour, line = chance.randbytes(3), chance.randbytes(3)
    rows = b"".join(b"\0" + (line if row == side // 2 else colour) * side for row in range(side))
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(part_of_png, parts))


def part_of_png(part):
    kind, content = part
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


class Bodies:
    """An endless source of request bodies, the same for the same seed."""

    def __init__(self, seed=1):
        self.chance = random.Random(seed)
        self.systems = [self.words(60) for _ in range(SYSTEMS)]
        self.questions = [self.words(12) for _ in range(QUESTIONS)]
        self.pictures = [self.picture() for _ in range(PICTURES)]
        self.count = 0

    def next(self):
        """The next body, as a dictionary."""
        self.count += 1
        chance = self.chance
        question = chance.choice(self.questions)
        if chance.random() < NEW_SHARE:
            question = f"{self.count}: {self.words(20)} {question}"
        kind = chance.random()
        if kind < 0.08:
            return self.chat(question, 100, stream=True)
        if kind < 0.20:
            content = [{"type": "text", "text": question}, chance.choice(self.pictures)]
            return self.chat(content, 10, stream=kind < 0.14)
        return self.chat(question, 10, stream=kind < 0.55)

    def long(self, tokens=200):
        """A stream of some seconds."""
        return self.chat(self.words(20), tokens, stream=True)

    def chat(self, content, max_tokens, stream):
        """A chat with one of the beginnings."""
        system = self.chance.choice(self.systems)
        body = {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": content},
            ],
            "max_tokens": max_tokens,
        }
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body

    def words(self, count):
        return " ".join(self.chance.choice(WORDS) for _ in range(count))

    def picture(self):
        encoded = base64.b64encode(png(self.chance.randrange(64, 160), self.chance)).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}


def encoded(body):
    return json.dumps(body).encode()
