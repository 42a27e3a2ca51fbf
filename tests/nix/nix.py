"""Nix as the checks use it: offline, with a store of its own that holds next to nothing."""

import json
import os
import pathlib
import re
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SECONDS_MAX = 120

CONFIG = """\
experimental-features = nix-command flakes
sandbox = false
build-users-group =
substituters =
flake-registry =
"""


class Nix:
    """What is checked, and where."""

    def __init__(self, kvlens, folder, writes):
        self.kvlens = kvlens
        self.folder = folder
        # Whether golden results are written instead of compared.
        self.writes = writes
        self.environment = os.environ | {
            "NIX_CONFIG": CONFIG,
            "NIX_CONF_DIR": str(folder / "none"),
            "NIX_STORE_DIR": str(folder / "store"),
            "NIX_STATE_DIR": str(folder / "state"),
            "NIX_LOG_DIR": str(folder / "log"),
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }

    def run(self, *words):
        """Runs a program of Nix; its outcome, whatever it is."""
        return subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            env=self.environment,
            cwd=ROOT,
        )

    def told(self, *words):
        """What a program of Nix prints that must succeed."""
        done = self.run(*words)
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(map(str, words))}: {done.stderr[-1500:]}")
        return done.stdout

    def value(self, expression):
        """The value of an expression, in which paths are seen from the root of the repository."""
        text = self.told("nix-instantiate", "--eval", "--strict", "--json", "--expr", expression)
        # Where the store is and what is hashed in it is not the same everywhere.
        return json.loads(re.sub(rf"{self.folder}/store/[0-9a-z]{{32}}-", "/nix/store/", text))

    def ours(self, *words):
        """What kvlens prints, which must succeed; variables of this shell are not its own."""
        environment = {name: text for name, text in os.environ.items() if not name.startswith("KVLENS_")}
        done = subprocess.run(
            [self.kvlens, *map(str, words)], capture_output=True, text=True, timeout=30, env=environment
        )
        if done.returncode != 0:
            raise AssertionError(f"kvlens {' '.join(map(str, words))}: {done.stderr}")
        return done.stdout

    def golden(self, row, name, found):
        """Compares a result with the golden one."""
        path = HERE / "golden" / f"{name}.json"
        text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        # What is pinned stands in pins.json alone.
        text = re.sub(r"@sha256:[0-9a-f]{64}", "@sha256:pinned", text)
        text = re.sub(r'(driver_min\\?": ?\\?")[\d.]+', r"\1pinned", text)
        if self.writes:
            path.write_text(text)
        row.require(path.exists() and path.read_text() == text, f"{path.name} is another: {differs(path, text)}")


def differs(path, text):
    """The first lines in which a file and a text differ."""
    old = path.read_text().splitlines() if path.exists() else []
    new = text.splitlines()
    for number, (one, other) in enumerate(zip(old + [""] * len(new), new), 1):
        if one != other:
            return f"line {number} is {other.strip()!r}, was {one.strip()!r}"
    return "it is shorter"
