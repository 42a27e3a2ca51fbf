"""Clients that leave, and engines that are killed or stand still."""

import os
import signal
import time

import pictures
import processes
import told
import wire
from processes import until

RUNNING = "vllm:num_requests_running"
STANDSTILL_SECONDS = 20
RESTART_SECONDS_MAX = 240
# Chats asked after a fault: new ones go to either engine in turn.
CHATS = 6


def chat(stack, name, max_tokens=4):
    """A chat about an image, none of whose blocks another chat has."""
    image = pictures.part(pictures.picture(200, 160, name))
    words = pictures.text("what stands in this picture, and where?")
    return {
        "model": stack.model_name,
        "messages": [
            {"role": "system", "content": f"{name} is what this is all about."},
            {"role": "user", "content": [words, image]},
        ],
        "max_tokens": max_tokens,
        "temperature": 0,
    }


def client_gone(row, stack):
    """A client that goes away mid-stream takes its request with it."""
    for number in range(3):
        body = {**chat(stack, f"gone {number}", 1_200), "stream": True, "ignore_eos": True}
        stream = wire.Stream(stack.public, told.CHAT, body)
        for _ in range(4):
            stream.next()
        address = stack.address(stream.headers["x-kvlens-worker"])
        # Its gauges follow its steps.
        until("the engine runs it", lambda: wire.metric(address, RUNNING) == 1, 2.0)
        stream.close()
        row.requests += 1
        until("the engine runs nothing", lambda: wire.metric(address, RUNNING) == 0, 1.0)
        stack.unsettled.add(stream.headers["x-kvlens-worker"])
    row.compare(stack.ask(chat(stack, "after all are gone")))


def killed_api(row, stack):
    """The engine's API process dies: it comes back empty, and nothing is thought to be there."""
    killed(row, stack, "command-0", "api", lambda pid: pid)


def killed_core(row, stack):
    """The process that holds the cache dies below the API."""
    killed(row, stack, "command-1", "core", engine_core)


def engine_core(pid):
    found = processes.descendants(pid)
    [core] = [below for below, title in found.items() if "EngineCore" in title]
    return core


def killed(row, stack, worker, name, victim_of):
    """Kills a process of a worker's engine; the other engine answers until it is back."""
    kept = held_by(row, stack, worker, name)
    pid = stack.engine_pid(worker)
    os.kill(victim_of(pid), signal.SIGKILL)
    until(f"{worker} is away", lambda: worker not in stack.serving(), 60)
    stack.forget(worker)
    row.compare(stack.ask(kept))
    until(f"{worker} is back", lambda: worker in stack.serving(), RESTART_SECONDS_MAX)
    row.require(stack.engine_pid(worker) != pid, "it is the same process")
    row.require(
        stack.overlaps(kept)[(worker, 0)] == 0,
        f"{worker} is thought to hold what died with its engine: {stack.overlaps(kept)}",
    )
    right_again(row, stack, worker, name)


def stopped(row, stack):
    """An engine that stands still for twenty seconds is not restarted, and loses nothing."""
    worker = "command-0"
    kept = held_by(row, stack, worker, "stop")
    pid = stack.engine_pid(worker)
    processes.signal_group(pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        stack.forget(worker)
        for number in range(3):
            # One that was placed there is placed again elsewhere.
            answered = told.ask(stack.public, chat(stack, f"standstill {number}"), 16)
            stack.unsettled.add(answered.worker)
            row.count(answered)
        time.sleep(max(0, STANDSTILL_SECONDS - (time.monotonic() - began)))
    finally:
        processes.signal_group(pid, signal.SIGCONT)
    until(f"{worker} is back", lambda: worker in stack.serving(), 30)
    row.require(stack.engine_pid(worker) == pid, "the engine was restarted")
    stack.settle([worker])
    row.require(stack.overlaps(kept)[(worker, 0)] > 0, f"{worker} is thought to hold nothing")
    probe(row, stack, kept)
    right_again(row, stack, worker, "stop")


def held_by(row, stack, worker, name):
    """A chat that a worker has answered, so that it holds its blocks."""
    for number in range(CHATS):
        body = chat(stack, f"{name} {number}")
        answered = stack.ask(body)
        row.compare(answered)
        if answered.worker == worker:
            stack.settle()
            return body
    raise AssertionError(f"{worker} answered none of {CHATS} chats")


def right_again(row, stack, worker, name):
    """Predictions hold, and a chat that the worker answers is known within two seconds."""
    body = held_by(row, stack, worker, f"{name} again")
    row.compare(stack.ask(body))
    probe(row, stack, body)


def probe(row, stack, body):
    """Asks each engine directly what it holds of a chat, and compares with what is thought."""
    stack.settle()
    explained = stack.explain(body)
    thought = {(one["worker"], one["rank"]): one["overlap_blocks"] for one in explained["candidates"]}
    sent = told.with_digests(body, explained)
    for worker in sorted(stack.serving()):
        blocks = thought[(worker, 0)]
        cached_tokens, _ = told.reported(stack.address(worker), sent)
        row.requests += 1
        row.predicted_tokens += blocks * 16
        row.reported_tokens += cached_tokens
        row.require(
            blocks * 16 == cached_tokens,
            f"{worker} holds {cached_tokens} tokens, thought to be {blocks} blocks: {thought}",
        )
        stack.unsettled.add(worker)
