"""Holds kvlens against real engines: what it predicts, and what they report.

usage: prove.py KVLENS_BINARY INSTALL_FOLDER WORK_FOLDER [PHASE...]

INSTALL_FOLDER is what `setup` made. WORK_FOLDER is short and empty. Prints a table, and last
`counted: P passed; F failed; S skipped`; exits 1 when a case failed.
"""

import os
import signal
import sys
import traceback

import case_cache
import case_chats
import case_faults
import case_images
import case_parts
import processes
from chats import Chats
from parts import Parts
from report import Row, new_report
from stack import Site, Up

TOOLS = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]


def adapter(site, family):
    """Flags of an engine that serves an adapter beside its model."""
    flags = ["--enable-lora", "--max-lora-rank", "8"]
    return [*flags, "--lora-modules", f"tiny-lora={site.lora(family)}"]


def blocks(count):
    """Flags of an engine that can use so many blocks."""
    return ["--num-gpu-blocks-override", count + 1]


def large(site):
    """Two engines with room for all that is asked."""
    family = "qwen3_vl"
    flags = [*adapter(site, family), *TOOLS]
    allow = {"KVLENS_MEDIA_ALLOW": site.pages.allowed}
    return Up(site, "large", family, site.vllm(*flags), environment=allow)


def small(site):
    """Two engines that must evict."""
    family = "qwen2_vl"
    flags = [*adapter(site, family), *TOOLS, *blocks(case_cache.CACHE_BLOCKS)]
    return Up(site, "small", family, site.vllm(*flags))


def tiny(site):
    """One engine that holds two or three prompts."""
    flags = blocks(case_cache.SMALL_CACHE_BLOCKS)
    engine = site.vllm(*flags, context=case_cache.SMALL_CONTEXT_TOKENS)
    return Up(site, "tiny", "qwen2_vl", engine, workers=1)


def apart(site):
    """One engine that outlives its agents, and takes images from a folder."""
    media = site.path("media")
    os.makedirs(media, mode=0o700)
    engine = site.vllm("--allowed-local-media-path", "{media_dir}")
    return Parts(site, "apart", "qwen2_vl", engine, engine_flags=["--media-dir", media])


def forgetful(site):
    """One engine that replays next to nothing."""
    return Parts(site, "forgetful", "qwen2_vl", site.vllm(buffer_steps=3))


def ranked(site):
    """One engine of two data-parallel ranks."""
    engine = site.vllm("--data-parallel-size", "{ranks}")
    return Up(site, "ranked", "qwen2_vl", engine, workers=1, words=["--ranks", 2])


def ask_large(report, stack):
    stack.ready()
    random_chats(report, stack, "300 random chats, Qwen3-VL", 300)
    report.run("image identity", case_images.identity, stack)
    report.run("two images in one block", case_images.small_images, stack)
    report.run("PNG and JPEG of one picture", case_images.formats, stack)
    report.run("inline and by URL", case_images.places, stack)
    report.run("same URL, bytes changed", case_images.changed_page, stack)
    report.run("client gone mid-stream", case_faults.client_gone, stack)
    report.run("prefix reset through kvlens", case_parts.reset_up, stack)
    report.run("engine stands still for 20 s", case_faults.stopped, stack)
    report.run("kill -9 of the API process", case_faults.killed_api, stack)
    report.run("kill -9 of EngineCore", case_faults.killed_core, stack)


def ask_small(report, stack):
    stack.ready()
    random_chats(report, stack, "200 random chats, Qwen2-VL", 200)
    report.run("12 images, empty caches", case_cache.hit_rate_empty, stack)
    report.run("12 images, full caches", case_cache.hit_rate_full, stack)


def ask_tiny(report, stack):
    stack.ready()
    report.run("evictions", case_cache.evictions, stack)


def ask_apart(report, stack):
    stack.engines_answer()
    stack.start_agent("gpu-0")
    stack.start_frontend()
    report.run("engine restarted unseen", case_parts.restarted_unseen, stack)
    report.run("kill -9 of the agent", case_parts.agent_killed, stack)
    report.run("prefix reset through the agent", case_parts.reset_agent, stack)
    report.run("images in a shared folder", case_parts.shared_folder, stack)


def ask_forgetful(report, stack):
    stack.engines_answer()
    report.run("agent late, replay too short", case_parts.late_agent, stack)


def ask_ranked(report, stack):
    stack.ready()
    report.run("two data-parallel ranks", case_parts.ranks, stack)


def random_chats(report, stack, name, count):
    """Two rows: the predictions, and the prompts."""
    chats = Chats(count, [stack.model_name, stack.model_name, "tiny-lora"])
    prompts = Row("their prompts against /tokenize")
    report.run(name, case_chats.random_chats, prompts, stack, chats, count)
    report.rows.append(prompts)


PHASES = [
    (large, ask_large),
    (small, ask_small),
    (tiny, ask_tiny),
    (apart, ask_apart),
    (forgetful, ask_forgetful),
    (ranked, ask_ranked),
]


def run(site, report, phases):
    """All cases; the engines of the next phase start while those before are asked."""
    started = None
    for number, (start, ask) in enumerate(phases):
        stack = started or start(site)
        following = phases[number + 1 : number + 2]
        started = following[0][0](site) if following else None
        try:
            ask(report, stack)
        except Exception:
            report.row(f"the engines of phase {start.__name__}").fault(traceback.format_exc())
        stack.stop()


def main(binary, install, folder, *names):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(f"ended by signal {number}"))
    phases = [phase for phase in PHASES if not names or phase[0].__name__ in names]
    report = new_report()
    try:
        run(Site(binary, install, folder, case_images.Pages()), report, phases)
    except BaseException:
        # What was found so far is told, whatever ends the run.
        report.row("the run").fault(traceback.format_exc())
    finally:
        processes.end_all()
    return 0 if report.print() else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
