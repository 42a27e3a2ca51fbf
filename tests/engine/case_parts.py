"""Agents that die, come late or miss a restart, while their engines serve."""

import os
import shutil
import threading

import told
import wire
from case_faults import chat, held_by, probe, right_again
from processes import until
from publisher import Publisher
from stack import APPLIED_SECONDS_MAX, BLOCK_TOKENS


def reset(row, stack, worker, address, body):
    """A prefix cache that is emptied through kvlens is known to be empty at once."""
    kept = held_by(row, stack, worker, "reset")
    wire.post(address, "/kvlens/v1/reset", body).good()
    until(
        "the router knows of the reset",
        lambda: stack.overlaps(kept)[(worker, 0)] == 0,
        APPLIED_SECONDS_MAX,
    )
    probe(row, stack, kept)
    right_again(row, stack, worker, "reset")


def reset_up(row, stack):
    reset(row, stack, "command-0", stack.admin, {"worker": "command-0"})


def reset_agent(row, stack):
    reset(row, stack, "gpu-0", stack.urls["gpu-0"], None)


def agent_killed(row, stack):
    """An agent's death cuts no stream and restarts no engine; the next one knows all again."""
    worker = "gpu-0"
    kept = held_by(row, stack, worker, "agent")
    pid = stack.engine_pid(worker)
    stream, answered = streamed(stack, kept)
    row.require(stream.headers["x-kvlens-worker"] == worker, "it went elsewhere")
    unheard = as_sent(stack, "unheard", 6)
    stack.agents[worker].kill()
    # The engine goes on storing while nobody listens, and kvlens goes on asking it.
    for body in unheard:
        told.reported(stack.direct(worker), body)
    row.count(told.ask(stack.public, chat(stack, "while the agent is away"), BLOCK_TOKENS))
    stack.start_agent(worker)
    answered.join()
    row.require(stream.tokens == stream.asked, f"{stream.tokens} of {stream.asked} tokens came")
    row.require(stream.fault is None, f"the stream: {stream.fault}")
    stack.followed(worker)
    row.require(stack.engine_pid(worker) == pid, "the engine was restarted")
    stack.settle([worker])
    row.require(stack.overlaps(kept)[(worker, 0)] > 0, "what the engine holds is forgotten")
    probe(row, stack, kept)
    probe(row, stack, unheard[-1])
    right_again(row, stack, worker, "agent")


def as_sent(stack, name, count):
    """Chats as kvlens would send them to an engine, none of which was ever asked."""
    bodies = [chat(stack, f"{name} {number}", 100) for number in range(count)]
    return [told.with_digests(body, stack.explain(body)) for body in bodies]


def streamed(stack, body, tokens=1_000):
    """Begins a long stream, and reads it to its end in a thread."""
    body = {**body, "max_tokens": tokens, "stream": True, "ignore_eos": True}
    body["stream_options"] = {"include_usage": True}
    stream = wire.Stream(stack.public, told.CHAT, body)
    stream.asked, stream.tokens, stream.fault = tokens, 0, None
    stream.next()

    def read():
        try:
            for chunk in stream.chunks():
                stream.tokens = (chunk.get("usage") or {}).get("completion_tokens", 0)
        except Exception as fault:
            stream.fault = repr(fault)

    reader = threading.Thread(target=read)
    reader.start()
    return stream, reader


def restarted_unseen(row, stack):
    """An engine that is restarted while its agent is down, and is already past the last batch
    that the agent knew: the agent notices, and thinks nothing of the old life to be there."""
    worker = "gpu-0"
    first_life = [chat(stack, f"first life {number}", 60) for number in range(4)]
    for body in first_life:
        row.compare(stack.ask(body))
    stack.settle()
    seen = Publisher(stack.replay(worker, 0)).last_sequence()
    second_life = as_sent(stack, "second life", 20)
    stack.agents[worker].kill()
    pid = stack.engine_pid(worker)
    stack.kill_engine(worker)
    until("the old engine is gone", lambda: not stack.engine_answers(worker), 20)
    stack.engines_answer()
    row.require(stack.engine_pid(worker) != pid, "the engine was not restarted")
    stack.forget(worker)
    publisher = Publisher(stack.replay(worker, 0))
    asked = []
    while (publisher.last_sequence() or 0) <= seen + 5:
        asked.append(second_life.pop())
        told.reported(stack.direct(worker), asked[-1])
    row.remark(f"restarted at batch {seen}, agent back at {publisher.last_sequence()}")
    stack.start_agent(worker)
    stack.followed(worker)
    stack.settle([worker])
    for body in first_life:
        overlaps = stack.overlaps(body)
        row.require(overlaps[(worker, 0)] == 0, f"phantom blocks: {overlaps}")
        probe(row, stack, body)
    probe(row, stack, asked[0])
    right_again(row, stack, worker, "unseen")


def late_agent(row, stack):
    """An agent that comes late to an engine that replays little: it says so, never promises what
    it does not know, and learns it by and by."""
    worker = "gpu-0"
    # Only to know how kvlens would send them.
    stack.start_agent(worker)
    stack.start_frontend()
    chats = as_sent(stack, "early", 5)
    stack.agents[worker].stop()
    shutil.rmtree(stack.state_dir, ignore_errors=True)
    for body in chats:
        told.reported(stack.direct(worker), body)
    stack.start_agent(worker)
    stack.ready()
    ledger = stack.workers()[worker]["ledger"]
    row.require(ledger["completeness"] == "partial", f"the ledger calls itself {ledger}")
    for turn in range(3):
        wrong = 0
        for body in chats:
            answered = stack.ask(body)
            row.count(answered)
            wrong += answered.predicted_tokens != answered.reported_tokens
            row.require(
                answered.predicted_tokens <= answered.reported_tokens,
                f"more was promised than there is\n{answered.story()}",
            )
        row.remark(f"turn {turn + 1}: {wrong} of {len(chats)} under-predicted")
    row.require(wrong == 0, "what was asked three times is not known")
    right_again(row, stack, worker, "late")


def ranks(row, stack):
    """Two data-parallel ranks of one engine hold blocks of their own and are asked apart."""
    bodies = [chat(stack, f"rank {number}") for number in range(6)]
    for body in bodies:
        row.compare(stack.ask(body))
    stack.settle()
    held = [stack.overlaps(body) for body in bodies]
    holders = [[rank for (_, rank), blocks in one.items() if blocks > 0] for one in held]
    row.require(all(len(one) == 2 for one in held), f"two ranks are to be seen in {held}")
    row.require(all(len(one) == 1 for one in holders), f"one rank is to hold each: {held}")
    seen = {rank for one in holders for rank in one}
    row.require(seen == {0, 1}, f"only ranks {seen} were asked")
    for body in bodies:
        again = stack.ask(body)
        row.compare(again)
        row.require(again.overlap_blocks > 0, f"it was asked before\n{again.story()}")


def shared_folder(row, stack):
    """Images handed over as files are the images that were sent."""
    media_dir = stack.engine_file("gpu-0")["media_dir"]
    digests = set()
    for number in range(2):
        body = chat(stack, f"folder {number}")
        first, again = stack.ask(body), stack.ask(body)
        for answered in (first, again):
            row.compare(answered)
        row.require(
            again.overlap_blocks == (first.prompt_tokens - 1) // BLOCK_TOKENS,
            f"it was asked before\n{again.story()}",
        )
        digests |= {image["digest"] for image in first.explained["images"]}
    found = {name.partition(".")[0] for _, _, names in os.walk(media_dir) for name in names}
    row.require(digests <= found, f"of {digests} the folder has {found}")
