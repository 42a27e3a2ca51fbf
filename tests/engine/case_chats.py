"""Random chats: what is predicted, and what the prompt is."""

import told
import wire
from stack import BLOCK_TOKENS

HITS = "vllm:prefix_cache_hits_total"


def random_chats(row, prompts, stack, chats, count):
    """Predicted is what the engine reports, for each chat; the prompt is the engine's own."""
    ids = 0
    for _ in range(count):
        body = chats.next()
        answered = ask(row, stack, body)
        address = stack.address(answered.worker)
        answered.engine_ids = told.engine_ids(address, body)
        prompts.requests += 1
        ids += len(answered.explained.get("prompt_token_ids", []))
        prompts.require(
            answered.prompt_tokens == len(answered.engine_ids),
            f"the engine counts {answered.prompt_tokens}, and tokenises {len(answered.engine_ids)}",
        )
        differs = told.difference(answered.explained, answered.engine_ids)
        prompts.require(not differs, f"{differs}\n{answered.story()}")
        row.require(answered.exactness == "exact", f"it is not exact\n{answered.story()}")
        chats.answered(answered.message, answered.prompt_tokens)
    prompts.remark(f"{ids:,} ids compared")


def ask(row, stack, body):
    """Sends a chat; where it asks for several answers, counts what the first of them found."""
    several = body.get("n", 1) > 1
    before = {worker: hits(stack, worker) for worker in stack.serving()} if several else {}
    answered = stack.ask(body)
    if several:
        found = hits(stack, answered.worker) - before[answered.worker]
        answered.reported_tokens = found - later_answers(answered)
    row.compare(answered)
    return answered


def hits(stack, worker):
    """All the tokens that an engine has found in its cache so far."""
    return int(wire.metric(stack.address(worker), HITS))


def later_answers(answered):
    """What all answers but the first find in the cache: the whole prompt, which the first has put
    there. The engine reports only what the last one found."""
    whole = (answered.prompt_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    return (answered.body["n"] - 1) * whole
