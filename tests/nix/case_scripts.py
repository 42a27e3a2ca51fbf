"""The scripts: models are fetched by a downloader of ours, and a driver is found that is none."""

import os
import subprocess

from nix import ROOT

DOWNLOADER = """\
#!/bin/sh
# hf download REPOSITORY --revision REVISION --local-dir FOLDER
mkdir -p "$6/.cache"
echo "$2 $4" >"$6/config.json"
echo notes >"$6/.cache/notes"
"""


def fetched(row, nix):
    """A model is there once and whole, or not at all."""
    programs = nix.folder / "programs"
    programs.mkdir()
    (programs / "hf").write_text(DOWNLOADER)
    (programs / "hf").chmod(0o755)
    folder = nix.folder / "models" / "qwen"
    folder.parent.mkdir()

    def fetch(told):
        words = ["sh", ROOT / "nix/module/fetch.sh", "qwen", "org/qwen", "1f", told, folder]
        environment = nix.environment | {"PATH": f"{programs}:{nix.environment['PATH']}"}
        return subprocess.run(words, capture_output=True, text=True, timeout=30, env=environment)

    wrong = fetch("sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
    row.require(wrong.returncode == 78, f"a wrong hash ends with {wrong.returncode}: {wrong.stderr}")
    row.require("services.kvlens.models.qwen.hash is sha256-AAAA" in wrong.stderr, wrong.stderr)
    row.require(list(folder.parent.iterdir()) == [], "what was refused is left")
    right = wrong.stderr.split()[-1]
    done = fetch(right)
    row.require(done.returncode == 0, f"the right hash ends with {done.returncode}: {done.stderr}")
    row.require([path.name for path in folder.iterdir()] == ["config.json"], "the folder holds something else")
    (programs / "hf").unlink()
    row.require(fetch(right).returncode == 0, "what is there is fetched again")
    row.seen = 3


def driver(row, nix):
    """The driver's libraries are linked, and no others; without a driver nothing is."""
    script = """
        mount -t tmpfs none /run && mkdir -p /run/opengl-driver/lib
        [ "$1" = none ] || touch /run/opengl-driver/lib/libcuda.so.1 /run/opengl-driver/lib/libnvidia-ml.so.1
        touch /run/opengl-driver/lib/libGL.so.1
        set -euo pipefail
        . nix/driver.sh
        [ -z "${LD_LIBRARY_PATH-}" ] || ls "$LD_LIBRARY_PATH"
    """
    environment = {"HOME": str(nix.folder), "PATH": os.environ["PATH"]}

    def linked(what):
        words = ["unshare", "--mount", "bash", "-c", script, "bash", what]
        return subprocess.run(words, capture_output=True, text=True, timeout=30, env=environment, cwd=ROOT)

    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        row.skip("no folder can be made to look like a driver's, which root may unless the machine forbids it")
        return
    found = linked("a driver")
    row.require(found.stdout.split() == ["libcuda.so.1", "libnvidia-ml.so.1"], f"{found.stdout}{found.stderr}")
    known = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True).stdout
    if "libcuda.so.1" not in known:
        none = linked("none")
        row.require(none.returncode == 0 and none.stdout == "", f"{none.stdout}{none.stderr}")
    row.seen = 2


CASES = {"a model is fetched": fetched, "a driver is found": driver}
