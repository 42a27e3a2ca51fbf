"""Proves what nix/pins.json pins: that it is pinned once, can be had, and tells images in blocks.

usage: pins.py CACHE_FOLDER [full]

Downloads vLLM's wheel (330 MB), the closure's wheels up to 100 kB (some 70, 3 MB) and the wheel
that the patch of 0.16.0 is for (510 MB). `full` has all wheels of the closure on x86-64 (4 GB, at
most 0.6 GB at once) and unpacks them into one tree (8 GB). All of it is below $TMPDIR and taken away
at the end.
CACHE_FOLDER is where vLLM for CPUs may have been installed, whose Python can run the patched code.
Prints a table, and last `counted: P passed; F failed; S skipped`; exits 1 when anything failed.
"""

import pathlib
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path[1:1] = [str(HERE.parent / "proof"), str(HERE.parents[1] / "nix/vllm")]

import case_once  # noqa: E402
import case_tree  # noqa: E402
import case_wheels  # noqa: E402
import table  # noqa: E402
from index import Index  # noqa: E402


def main(cache, length="sample"):
    if length not in ("sample", "full"):
        sys.exit(__doc__)
    report = table.Report(("check", "verdict"), table.Row)
    for name, case in (case_once.CASES | case_tree.CASES).items():
        report.run(name, case)
    with tempfile.TemporaryDirectory(prefix="kvlens-pins-") as folder:
        index = Index(pathlib.Path(folder))
        report.run("wheels of the closure", case_wheels.CLOSURES[length], index)
        report.run("0.16.0 is patched", case_wheels.patched, index, pathlib.Path(cache))
        report.run("a bump, dry", case_wheels.bumped, index)
    return 0 if report.print() else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
