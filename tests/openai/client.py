"""Runs the public OpenAI client against `kvlens up`, as an application developer would.

usage: client.py KVLENS_BINARY

Starts the binary on a free port with its two mock engines, chats with an image, streamed and not,
and stops it. Prints `counted: P passed; F failed; S skipped`; exits 1 when anything failed.
"""

import base64
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib

import openai

READY_SECONDS_MAX = 30


def png(width, height, color):
    """A PNG of one color, as a data URI."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = (b"\0" + bytes(color) * width) * height
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


def question(image):
    """One user turn: a text and an image."""
    return [
        {"role": "system", "content": "You describe pictures in one sentence."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is in this picture?"},
                {"type": "image_url", "image_url": {"url": image}},
            ],
        },
    ]


def overlap(headers):
    """The two numbers of x-kvlens-overlap."""
    held, blocks = headers["x-kvlens-overlap"].split("/")
    return int(held), int(blocks)


def chat_twice(client):
    messages = question(png(320, 240, (200, 30, 30)))
    ask = client.chat.completions.with_raw_response.create
    answers = [ask(model="demo", messages=messages, max_tokens=24) for _ in range(2)]
    first, second = (answer.parse() for answer in answers)
    assert first.choices[0].message.role == "assistant"
    assert "1 image (320x240" in first.choices[0].message.content, first
    assert first.usage.completion_tokens == 24, first.usage
    held, blocks = overlap(answers[1].headers)
    tokens = second.usage.prompt_tokens
    assert (held, blocks) == ((tokens - 1) // 16, tokens // 16), (held, blocks, tokens)
    assert second.usage.prompt_tokens_details.cached_tokens == held * 16, second.usage
    workers = {answer.headers["x-kvlens-worker"] for answer in answers}
    assert len(workers) == 1, workers


def chat_streamed(client):
    messages = question(png(320, 240, (30, 200, 30)))
    stream = client.chat.completions.create(
        model="demo",
        messages=messages,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "1 image (320x240" in text, text
    assert chunks[-1].usage.completion_tokens == 24, chunks[-1]
    assert all(chunk.usage is None for chunk in chunks[:-1])


def stream_without_usage(client):
    stream = client.chat.completions.create(
        model="demo", messages=question(png(64, 64, (1, 2, 3))), max_tokens=4, stream=True
    )
    chunks = list(stream)
    assert all(chunk.choices for chunk in chunks), "the usage chunk was not asked for"
    assert chunks[-1].choices[0].finish_reason == "length", chunks[-1]


def completion_and_models(client):
    answer = client.completions.create(model="demo", prompt="Once upon a time", max_tokens=4)
    assert answer.choices[0].text and answer.usage.completion_tokens == 4, answer
    assert [model.id for model in client.models.list()] == ["demo"]
    embedding = client.embeddings.create(model="demo", input="hello", encoding_format="float")
    assert len(embedding.data[0].embedding) > 0


def errors_are_the_clients_own(client):
    try:
        client.chat.completions.create(model="no-such", messages=[{"role": "user", "content": "x"}])
        raise AssertionError("an unknown model was answered")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found" and error.param == "model", error
    try:
        client.chat.completions.create(model="demo", messages=question("data:image/png;base64,AAAA"))
        raise AssertionError("four zero bytes were taken for an image")
    except openai.BadRequestError as error:
        assert error.code == "invalid_image", error
        assert error.param == "messages[1].content[1].image_url.url", error


TESTS = [
    chat_twice,
    chat_streamed,
    stream_without_usage,
    completion_and_models,
    errors_are_the_clients_own,
]


def wait_until_ready(server):
    """The base URL that the server prints once it is ready."""
    deadline = time.monotonic() + READY_SECONDS_MAX
    for line in server.stdout:
        print("  kvlens:", line.rstrip())
        found = re.search(r"at (http://\S+/v1)", line)
        if found:
            return found.group(1)
        if time.monotonic() > deadline:
            break
    raise SystemExit("kvlens up did not become ready")


def main(binary):
    failed = 0
    with tempfile.TemporaryDirectory() as run_dir:
        server = subprocess.Popen(
            [binary, "up", "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "KVLENS_ENGINE_RUN_DIR": run_dir},
            text=True,
        )
        try:
            url = wait_until_ready(server)
            client = openai.OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=20)
            for test in TESTS:
                try:
                    test(client)
                    print(f"  {test.__name__} ... ok")
                except Exception as error:  # every test is told, whatever it met
                    failed += 1
                    print(f"  {test.__name__} ... FAILED: {error!r}")
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(timeout=20)
    if code != 0:
        failed += 1
        print(f"  kvlens up ended with {code}")
    print(f"counted: {len(TESTS) - min(failed, len(TESTS))} passed; {failed} failed; 0 skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
