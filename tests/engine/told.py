"""What one request was told: by kvlens before it ran, and by its engine."""

import copy
import json

import wire

CHAT = "/v1/chat/completions"
# What of a chat's body makes its prompt.
RENDERED = (
    "model",
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template_kwargs",
)


class Told:
    """An answered request."""

    def __init__(self, body, headers, message, usage, block_tokens):
        self.body = body
        self.message = message
        self.worker = headers["x-kvlens-worker"]
        self.exactness = headers["x-kvlens-mm"]
        overlap, blocks = headers["x-kvlens-overlap"].split("/")
        self.overlap_blocks, self.prompt_blocks = int(overlap), int(blocks)
        self.predicted_tokens = self.overlap_blocks * block_tokens
        self.prompt_tokens = usage["prompt_tokens"]
        self.reported_tokens = usage["prompt_tokens_details"]["cached_tokens"]
        # What kvlens and the engine take the prompt for, where both were asked.
        self.explained = None
        self.engine_ids = None

    def story(self):
        """All that tells why a prediction was wrong."""
        lines = [
            f"    worker {self.worker}: predicted {self.predicted_tokens}, reported"
            f" {self.reported_tokens}, of {self.prompt_tokens} tokens ({self.exactness})",
            f"    body {shortened(self.body)}",
        ]
        if self.explained:
            images = [image["digest"] for image in self.explained["images"]]
            candidates = self.explained["candidates"]
            seen = [(one["worker"], one["rank"], one["overlap_blocks"]) for one in candidates]
            lines.append(f"    explained before it ran: overlaps {seen}, images {images}")
        if self.engine_ids is not None and self.explained:
            lines.append(f"    {difference(self.explained, self.engine_ids) or 'same prompt ids'}")
        return "\n".join(lines)


def ask(address, body, block_tokens):
    """Sends a chat, streamed if it says so, and reads all of its answer."""
    if not body.get("stream"):
        answer = wire.post(address, CHAT, body).good()
        said = answer.json()
        message = said["choices"][0]["message"]["content"]
        return Told(body, answer.headers, message, said["usage"], block_tokens)
    stream = wire.Stream(address, CHAT, body)
    assert stream.status == 200, f"status {stream.status}: {stream.response.read()[:500]!r}"
    chunks = list(stream.chunks())
    stream.close()
    pieces = [
        choice["delta"].get("content") or ""
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["index"] == 0
    ]
    return Told(body, stream.headers, "".join(pieces), chunks[-1]["usage"], block_tokens)


def reported(address, body):
    """Sends a chat to an engine directly: the tokens it found in its cache, and all it had."""
    usage = wire.post(address, CHAT, body).good().json()["usage"]
    return usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]


def with_digests(body, explained):
    """A chat as kvlens sends it: each image with its digest as its identity."""
    sent = copy.deepcopy(body)
    parts = [
        part
        for message in sent["messages"]
        if isinstance(message.get("content"), list)
        for part in message["content"]
        if part["type"] == "image_url"
    ]
    for part, image in zip(parts, explained["images"], strict=True):
        part["uuid"] = image["digest"]
    return sent


def engine_ids(address, body):
    """The prompt of a chat, as its engine tokenises and expands it."""
    question = {name: body[name] for name in RENDERED if name in body}
    return wire.post(address, "/tokenize", question).good().json()["tokens"]


def difference(explained, engine_ids):
    """Where the prompt that kvlens has differs from the engine's; None if nowhere."""
    ours = explained.get("prompt_token_ids")
    if ours is None:
        counts = explained["prompt_tokens"], len(engine_ids)
        return None if counts[0] == counts[1] else f"{counts[0]} prompt tokens, engine {counts[1]}"
    if ours == engine_ids:
        return None
    pairs = zip(ours, engine_ids)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(engine_ids)))
    near = slice(max(0, at - 8), at + 8)
    return (
        f"prompt ids differ at {at} of {len(ours)} and {len(engine_ids)}: "
        f"kvlens {ours[near]}, engine {engine_ids[near]}"
    )


def shortened(body):
    """A body's text with its images cut short."""

    def cut(value):
        if isinstance(value, dict):
            return {name: cut(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [cut(inner) for inner in value]
        if isinstance(value, str) and len(value) > 300:
            return f"{value[:40]}… ({len(value)} bytes)"
        return value

    return json.dumps(cut(body), ensure_ascii=False)[:3_000]
