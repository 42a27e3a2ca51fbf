"""Holds kvlens against real engines: what it predicts, and what they report.

usage: prove.py KVLENS_BINARY INSTALL_FOLDER WORK_FOLDER

INSTALL_FOLDER is what `setup` made. WORK_FOLDER is short and empty. Prints a table, and last
`counted: P passed; F failed; S skipped`; exits 1 when a case failed.
"""

import signal
import sys

import case_cache
import case_faults
import case_images
import processes
from case_chats import random_chats
from chats import Chats
from report import Report
from stack import Site, Up


TOOLS = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]


def adapter(site, family):
    """Flags of an engine that serves an adapter beside its model."""
    flags = ["--enable-lora", "--max-lora-rank", "8"]
    return [*flags, "--lora-modules", f"tiny-lora={site.lora(family)}"]


def blocks(count):
    """Flags of an engine that can use so many blocks."""
    return ["--num-gpu-blocks-override", count + 1]


def large(site, pages):
    family = "qwen3_vl"
    flags = [*adapter(site, family), *TOOLS]
    allow = {"KVLENS_MEDIA_ALLOW": pages.allowed}
    return Up(site, "large", family, site.vllm(*flags), environment=allow)


def small(site):
    family = "qwen2_vl"
    context = min(case_cache.CACHE_BLOCKS * 16, 2048)
    flags = [*adapter(site, family), *TOOLS, *blocks(case_cache.CACHE_BLOCKS)]
    return Up(site, "small", family, site.vllm(*flags, context=context))


def tiny(site):
    flags = blocks(case_cache.SMALL_CACHE_BLOCKS)
    engine = site.vllm(*flags, context=case_cache.SMALL_CONTEXT_TOKENS)
    return Up(site, "tiny", "qwen2_vl", engine, workers=1)


def run(site, report):
    """All cases; the engines of the next start while those before are asked."""
    pages = case_images.Pages()
    first = large(site, pages).ready()
    second = small(site)
    chats = Chats(1, ["qwen3_vl", "qwen3_vl", "tiny-lora"])
    prompts = report.row("prompts of these, against /tokenize")
    report.run("300 random chats, Qwen3-VL", random_chats, prompts, first, chats, 300)
    report.run("image identity", case_images.identity, first)
    report.run("two images in one block", case_images.small_images, first)
    report.run("PNG and JPEG of one picture", case_images.formats, first)
    report.run("inline and by URL", case_images.places, first, pages)
    report.run("same URL, bytes changed", case_images.changed_page, first, pages)
    report.run("client gone mid-stream", case_faults.client_gone, first)
    report.run("engine stands still for 20 s", case_faults.stopped, first)
    report.run("kill -9 of the API process", case_faults.killed_api, first)
    report.run("kill -9 of EngineCore", case_faults.killed_core, first)
    first.stop()
    third = tiny(site)
    second.ready()
    chats = Chats(2, ["qwen2_vl", "qwen2_vl", "tiny-lora"])
    prompts = report.row("prompts of these, against /tokenize")
    report.run("200 random chats, Qwen2-VL", random_chats, prompts, second, chats, 200)
    report.run("12 images in two small caches", case_cache.hit_rate, second)
    second.stop()
    third.ready()
    report.run("evictions", case_cache.evictions, third)


def main(binary, install, folder, *rest):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(f"ended by signal"))
    report = Report()
    try:
        run(Site(binary, install, folder), report)
    finally:
        processes.end_all()
    return 0 if report.print() else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
