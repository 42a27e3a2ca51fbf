"""Small caches: what routing is worth, and that nothing evicted is promised."""

import random

import pictures
import told
from stack import BLOCK_TOKENS

IMAGES = 12
IMAGE_BLOCKS = 19
# What an engine may use: the first block of its pool is a placeholder.
CACHE_BLOCKS = 140
TRACE_REQUESTS = 400
HIT_RATE_MIN = 0.93
GAIN_MIN = 1.4

SMALL_CACHE_BLOCKS = 19
SMALL_CONTEXT_TOKENS = 288
SMALL_REQUESTS = 150


def hit_rate_full(row, stack):
    """The same where both caches are full of what nobody asks any more, as they mostly are."""
    stack.empty_caches()
    fill(stack)
    hit_rate(row, stack)


def hit_rate_empty(row, stack):
    stack.empty_caches()
    hit_rate(row, stack)


def hit_rate(row, stack):
    """Twelve images that no engine can hold alone, and both can together."""
    bodies = [image_chat(stack, seed) for seed in range(IMAGES)]
    images = trace()
    routed, in_turn = Rate(), Rate()
    for image in images:
        answered = stack.ask(bodies[image])
        row.compare(answered)
        routed.add(answered.reported_tokens, answered.prompt_tokens)
    stack.empty_caches()
    addresses = [stack.address(worker) for worker in sorted(stack.serving())]
    for number, image in enumerate(images):
        usage = told.reported(addresses[number % len(addresses)], bodies[image])
        in_turn.add(*usage)
    rate, rate_in_turn = routed.value(), in_turn.value()
    row.remark(f"hit rate {rate:.3f}, in turn {rate_in_turn:.3f}, gain {rate / rate_in_turn:.2f}")
    row.require(rate >= HIT_RATE_MIN, f"the hit rate is {rate:.3f}, under {HIT_RATE_MIN}")
    row.require(rate >= GAIN_MIN * rate_in_turn, f"in turn it is {rate_in_turn:.3f}")


def fill(stack):
    """Fills each engine's cache with chats of its own."""
    for worker in stack.serving():
        address = stack.address(worker)
        for number in range(CACHE_BLOCKS // 40 + 1):
            words = f"{worker} {number} " + "7\n" * 20 * BLOCK_TOKENS
            # Not the template's own system message, which the images' chats begin with.
            message = {"role": "system", "content": words}
            body = {"model": stack.model_name, "messages": [message], "max_tokens": 2}
            told.reported(address, body)
        stack.unsettled.add(worker)


class Rate:
    """Tokens found in caches, of all tokens of prompts."""

    def __init__(self):
        self.cached_tokens = self.prompt_tokens = 0

    def add(self, cached_tokens, prompt_tokens):
        self.cached_tokens += cached_tokens
        self.prompt_tokens += prompt_tokens

    def value(self):
        return self.cached_tokens / self.prompt_tokens


def trace():
    """Which image each request is about."""
    chance = random.Random(12)
    return [chance.randrange(IMAGES) for _ in range(TRACE_REQUESTS)]


def image_chat(stack, seed):
    """A chat about one image, of nineteen blocks and hardly a token more."""

    def chat(words):
        image = pictures.part(pictures.picture(450, 400, seed))
        content = [image, pictures.text(words)]
        messages = [{"role": "user", "content": content}]
        return {"model": stack.model_name, "messages": messages, "max_tokens": 2}

    missing = IMAGE_BLOCKS * BLOCK_TOKENS + 1 - stack.explain(chat("."))["prompt_tokens"]
    body = chat("." + "\n7" * (missing // 2) + "." * (missing % 2))
    tokens = stack.explain(body)["prompt_tokens"]
    assert tokens // BLOCK_TOKENS == IMAGE_BLOCKS, f"the chat has {tokens} tokens"
    return body


def evictions(row, stack):
    """A cache that holds two or three prompts: what was evicted is not promised."""
    chance = random.Random(19)
    bodies = [small_chat(stack, chance) for _ in range(14)]
    held, evicted = {}, 0
    for _ in range(SMALL_REQUESTS):
        number = chance.randrange(len(bodies))
        body = {**bodies[number], "max_tokens": chance.randint(1, 24)}
        answered = stack.ask(body)
        row.compare(answered)
        whole = (answered.prompt_tokens - 1) // BLOCK_TOKENS
        evicted += number in held and answered.overlap_blocks < whole
        held[number] = whole
    row.remark(f"{evicted} prompts were evicted in part or whole")
    row.require(evicted >= SMALL_REQUESTS // 4, f"only {evicted} prompts were evicted")


def small_chat(stack, chance):
    """A chat of some three to fourteen blocks, one in three with an image."""
    content = [pictures.text("".join(chance.choices("abcdefgh \n", k=chance.randint(10, 150))))]
    if chance.random() < 0.35:
        image = pictures.picture(chance.randint(30, 200), chance.randint(30, 200), chance.random())
        content.insert(chance.randrange(2), pictures.part(image))
    messages = [{"role": "user", "content": content}]
    return {"model": stack.model_name, "messages": messages, "temperature": 0}
