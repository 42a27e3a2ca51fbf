"""Pictures to send: random, in any size and format."""

import base64
import io
import random

from PIL import Image

TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "BMP": "image/bmp"}


def drawn(width, height, seed):
    """A picture of a few coloured blocks, the same for the same seed."""
    chance = random.Random(seed)
    picture = Image.new("RGB", (width, height), tuple(chance.randbytes(3)))
    for _ in range(4):
        left, top = chance.randrange(width), chance.randrange(height)
        picture.paste(tuple(chance.randbytes(3)), (left, top, width, height))
    return picture


def encoded(picture, kind="PNG"):
    """The bytes of a picture's file."""
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def data_uri(encoded_bytes, kind="PNG"):
    return f"data:{TYPES[kind]};base64," + base64.b64encode(encoded_bytes).decode()


def picture(width, height, seed, kind="PNG"):
    """A picture as a data URI."""
    return data_uri(encoded(drawn(width, height, seed), kind), kind)


def part(url):
    """The content part of an image."""
    return {"type": "image_url", "image_url": {"url": url}}


def text(words):
    """The content part of a text."""
    return {"type": "text", "text": words}
