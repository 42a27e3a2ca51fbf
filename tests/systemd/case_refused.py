"""What cannot be started so: refused once, with the reason where an operator looks."""

import contextlib
import os
import socket
import subprocess
import time

from host import AGENTS, CONFIG, CREDENTIALS, FRONTEND, ROUTERS, command, show, systemctl
from wait import until

# A loop would show by then.
LOOP_SECONDS = 3
# The code of what stays refused.
REFUSED = 78
KEY = '[frontend]\nkey_file = "credential:client-keys"\n'


@contextlib.contextmanager
def config(change):
    """Another configuration, for as long as this lasts."""
    text = CONFIG.read_text()
    CONFIG.write_text(change(text))
    try:
        yield
    finally:
        CONFIG.write_text(text)


def keyed(text):
    return text.replace("[frontend]\n", KEY, 1)


def missing(row):
    with config(keyed):
        refused(row, FRONTEND, "client-keys")


def unreadable(row):
    path = CREDENTIALS / "frontend" / "client-keys"
    path.symlink_to("/nowhere/at/all")
    try:
        with config(keyed):
            refused(row, FRONTEND, "client-keys")
    finally:
        path.unlink()


def world_readable(row):
    folder = CREDENTIALS / "frontend"
    path = folder / "client-keys"
    path.write_text("someone:a-key-that-is-long-enough\n")
    for place, mode in ((CREDENTIALS, 0o755), (folder, 0o755), (path, 0o644)):
        os.chmod(place, mode)
    try:
        with config(keyed):
            refused(row, FRONTEND, "client-keys")
    finally:
        path.unlink()
        for place in (CREDENTIALS, folder):
            os.chmod(place, 0o700)


def bad_toml(row):
    with config(lambda text: text + "[router\n"):
        for unit in (FRONTEND, *ROUTERS, AGENTS[0]):
            refused(row, unit, "unclosed table")


def unknown_key(row):
    with config(lambda text: text + "[router]\nmodus = 1\n"):
        refused(row, ROUTERS[0], "router.modus")


def port_taken(row):
    systemctl("stop", AGENTS[0])
    with socket.create_server(("127.0.0.1", 8200)):
        refused(row, AGENTS[0], "127.0.0.1:8200")


def unknown_instance(row):
    refused(row, "kvlens-worker@nobody.service", "there is no [workers.nobody]")


def refused(row, unit, reason):
    """The unit does not start, says why where an operator looks, and is left alone."""
    subprocess.run(["systemctl", "restart", unit], capture_output=True, timeout=60, check=False)
    failed = lambda: show(unit, "ActiveState") == "failed"
    until(f"{unit} to fail", failed, 10)
    time.sleep(LOOP_SECONDS)
    row.require(failed(), f"{unit} is {show(unit, 'ActiveState')} later")
    row.require(show(unit, "NRestarts") == "0", f"{unit} was restarted {show(unit, 'NRestarts')} times")
    status, text = int(show(unit, "ExecMainStatus")), show(unit, "StatusText")
    row.require(status == REFUSED, f"{unit} ended with {status}, not {REFUSED}")
    row.require(reason in text, f"{unit}: no {reason!r} in {text!r}")


def mended(case):
    """The same, and all is well again afterwards."""

    def whole(row, host):
        case(row)
        command("systemctl", "reset-failed")
        systemctl("start", "kvlens.target")
        host.whole(row)

    return whole


SCENARIOS = {
    "credential missing": mended(missing),
    "credential unreadable": mended(unreadable),
    "credential open to all": mended(world_readable),
    "configuration is no TOML": mended(bad_toml),
    "configuration with an unknown key": mended(unknown_key),
    "port taken": mended(port_taken),
    "unknown instance": mended(unknown_instance),
}
