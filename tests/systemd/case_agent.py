"""An agent that comes and goes: its engine stays, and what it holds stays known."""

from host import AGENTS, ENGINES, child, show, systemctl
from wait import until

# Pictures that nobody holds go to either engine.
PICTURES_MAX = 20


def restarted(row, host):
    stays(row, host, lambda: systemctl("restart", AGENTS[0]))


def killed(row, host):
    def kill():
        before = int(show(AGENTS[0], "NRestarts"))
        systemctl("kill", "--signal=KILL", AGENTS[0])
        until("its restart", lambda: int(show(AGENTS[0], "NRestarts")) > before)

    stays(row, host, kill)


def stays(row, host, happens):
    body, first = on_gpu_0(row, host)
    engine = child(ENGINES[0])
    with host.loaded(row):
        happens()
        host.whole(row)
    row.require(child(ENGINES[0]) == engine, "the engine is another process")
    again = host.asks([body]).result()[0]
    row.count([again])
    row.require(again.worker == "gpu-0", f"the picture went to {again.worker}")
    row.require(
        again.headers.get("x-kvlens-overlap") == first.headers.get("x-kvlens-overlap"),
        f"it overlapped {first.headers.get('x-kvlens-overlap')}, then "
        f"{again.headers.get('x-kvlens-overlap')}",
    )


def on_gpu_0(row, host):
    """A picture that the engine of the agent in question holds, and how it was found there."""
    for _ in range(PICTURES_MAX):
        body = host.picture()
        outcomes = [host.asks([body]).result()[0] for _ in range(2)]
        row.count(outcomes)
        if [outcome.worker for outcome in outcomes] == ["gpu-0", "gpu-0"]:
            return body, outcomes[1]
    raise AssertionError(f"none of {PICTURES_MAX} pictures went to gpu-0")
