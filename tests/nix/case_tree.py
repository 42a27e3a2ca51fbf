"""Which wheel is taken, and how wheels become one tree; with made-up wheels."""

import pathlib
import py_compile
import shutil
import subprocess
import sys
import tempfile
import zipfile

import tree
from wheels import Wheel

RELEASES = [
    # The best comes first; the last ones do not run on Python 3.12 and x86-64 Linux.
    [
        "a-1-cp312-cp312-manylinux_2_28_x86_64",
        "a-1-cp312-cp312-manylinux2014_x86_64",
        "a-1-py3-none-any",
    ],
    [
        "a-1-cp312-cp312-manylinux1_x86_64.manylinux_2_5_x86_64",
        "a-1-cp312-abi3-manylinux_2_28_x86_64",
    ],
    ["a-1-cp311-abi3-manylinux_2_34_x86_64", "a-1-cp311-abi3-manylinux_2_28_x86_64"],
    ["a-1-cp311-abi3-manylinux_2_17_x86_64", "a-1-cp39-abi3-manylinux_2_28_x86_64"],
    [
        "a-1-cp38-abi3-manylinux_2_28_x86_64",
        "a-1-py3-none-manylinux_2_28_x86_64",
        "a-1-py2.py3-none-any",
    ],
]
REFUSED = [
    "a-1-cp315-abi3.abi3t-manylinux_2_28_x86_64",
    "a-1-cp313-cp313-manylinux_2_28_x86_64",
    "a-1-cp312-cp312-musllinux_1_2_x86_64",
    "a-1-cp312-cp312-manylinux_2_28_aarch64",
    "a-1-cp312-cp312-manylinux_2_99_x86_64",
    "a-1-cp311-cp311-manylinux_2_28_x86_64",
    "a-1-pp312-pypy312_pp73-manylinux_2_28_x86_64",
    "a-1-py313-none-any",
    "a-1-py2-none-any",
    "a-1-cp312-cp312-win_amd64",
]
ENTRY = "[console_scripts]\nother = a:b\nvllm = vllm.cli:main\n\n[x]\nvllm = not:this\n"
STORED = "class BlockStored(Event):\n    block_hashes: list\n"
POOL = "def cache():\n    return BlockStored(block_hashes=[]{})\n"
FIRST_PATCH = """\
What it does.

--- a/vllm/distributed/kv_events.py
+++ b/vllm/distributed/kv_events.py
@@ -1,2 +1,3 @@
 class BlockStored(Event):
     block_hashes: list
+    extra_keys: list | None = None
"""
SECOND_PATCH = """\
--- a/vllm/distributed/kv_events.py
+++ b/vllm/distributed/kv_events.py
@@ -2,2 +2,3 @@
     block_hashes: list
     extra_keys: list | None = None
+    later: int = 0
"""


def chosen(row):
    """Of a release's wheels, the one made most closely for the machine is taken."""
    for release in RELEASES:
        ranks = [Wheel(f"{name}.whl").rank(12, "x86_64") for name in release]
        row.require(None not in ranks, f"refused: {release}")
        row.require(
            ranks == sorted(ranks, reverse=True) and len(set(ranks)) == len(ranks),
            f"order: {release}",
        )
    for name in REFUSED:
        row.require(Wheel(f"{name}.whl").rank(12, "x86_64") is None, f"not refused: {name}")
    row.require(Wheel("a-1-7-py3-none-any.whl").build == "7", "a build is not read")


def wheel(folder, name, members, executable=()):
    path = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in members.items():
            described = zipfile.ZipInfo(member)
            described.external_attr = (0o755 if member in executable else 0o644) << 16
            archive.writestr(described, text)
    return path


def laid_out(row):
    """Members go where the format says, keep their modes, and never leave the tree."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        prefix, site, placed = folder / "tree", folder / "tree/site", {}
        members = {
            "a/tool": "",
            "a/b.py": "",
            "a-1.data/scripts/run": "#!python\n",
            "a-1.data/data/share/x": "",
            "a-1.data/purelib/c.py": "",
            "build_backend.py": "one",
        }
        tree.unpack(wheel(folder, "a", members, executable=["a/tool"]), prefix, site, placed)
        tree.unpack(
            wheel(folder, "b", {"a/b.py": "", "build_backend.py": "two"}), prefix, site, placed
        )
        found = {
            str(path.relative_to(prefix)): path for path in prefix.rglob("*") if path.is_file()
        }
        wanted = {"site/a/tool", "site/a/b.py", "site/c.py", "bin/run", "share/x"}
        row.require(set(found) == wanted, f"files: {sorted(found)}")
        modes = {name for name, path in found.items() if path.stat().st_mode & 0o111}
        row.require(modes == {"site/a/tool", "bin/run"}, f"executable: {sorted(modes)}")
        for name, members in (
            ("other", {"a/b.py": "differs"}),
            ("above", {"../x": ""}),
            ("far", {"c-1.data/data/../../x": ""}),
            ("root", {"/x": ""}),
            ("kind", {"c-1.data/odd/x": ""}),
        ):
            refuses(row, name, tree.unpack, wheel(folder, name, members), prefix, site, placed)
        row.require(
            not (folder / "x").exists() and not pathlib.Path("/x").exists(), "it left the tree"
        )


def refuses(row, what, function, *given):
    try:
        function(*given)
        row.fault(f"not refused: {what}")
    except tree.Unfit:
        pass


def patched(row):
    """Patches apply in order; what was compiled from their files is gone; others are refused."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        site = folder / "site"
        events, pool = site / tree.EVENTS, site / tree.BLOCK_POOL
        for path, text in ((events, STORED), (pool, POOL.format(", extra_keys=[]"))):
            path.parent.mkdir(parents=True)
            path.write_text(text)
        stale = pathlib.Path(py_compile.compile(str(events)))
        kept = pathlib.Path(py_compile.compile(str(pool)))
        refuses(row, "no extra_keys", tree.check, site)
        (folder / "1.0").mkdir()
        (folder / "1.0/2.patch").write_text(SECOND_PATCH)
        (folder / "1.0/1.patch").write_text(FIRST_PATCH)
        patches = tree.patches_of(folder, "1.0")
        tree.apply(site, patches)
        row.require([path.name for path in patches] == ["1.patch", "2.patch"], f"order: {patches}")
        row.require("later" in events.read_text(), "the second patch is not applied")
        row.require(not stale.exists() and kept.exists(), "the wrong file's compiled form is gone")
        tree.check(site)
        pool.write_text(POOL.format(""))
        refuses(row, "extra_keys never given", tree.check, site)
        refuses(row, "the same patch again", tree.apply, site, patches[:1])
        row.require(tree.patches_of(folder, "1.1") == [], "patches of another version")


def environment(row):
    """The tree is an environment of its own, with vLLM's program."""
    with tempfile.TemporaryDirectory() as folder:
        prefix = pathlib.Path(folder)
        site = prefix / "site"
        (site / "vllm-1.dist-info").mkdir(parents=True)
        (site / "vllm-1.dist-info/entry_points.txt").write_text(ENTRY)
        (prefix / "bin").mkdir()
        (prefix / "bin/run").write_text("#!python\nx\n")
        tree.make_environment(prefix, site, "3.12")
        shebang = f"#!{prefix.resolve()}/bin/python\n"
        row.require(
            (prefix / "bin/run").read_text() == f"{shebang}x\n",
            "a wheel's script has no interpreter",
        )
        script = (prefix / "bin/vllm").read_text()
        row.require(script.startswith(shebang) and "from vllm.cli import main" in script, script)
        row.require((prefix / "bin/python").resolve().exists(), "no interpreter")
        row.require("home = /" in (prefix / "pyvenv.cfg").read_text(), "no pyvenv.cfg")


def linked(row):
    """Programs get a loader and a path beside their own; what is no program is left alone."""
    if not shutil.which("patchelf") or not shutil.which("readelf"):
        row.skip("no patchelf or readelf here")
        return
    with tempfile.TemporaryDirectory() as folder:
        program, text = pathlib.Path(folder, "program"), pathlib.Path(folder, "text")
        shutil.copy(pathlib.Path(sys.executable).resolve(), program)
        text.write_text("#!/bin/sh\n")
        program.chmod(0o555)
        for path in ("$ORIGIN/../one", "/two"):
            tree.link(pathlib.Path(folder), "/a/loader", path)
        told = subprocess.run(["readelf", "-l", "-d", program], capture_output=True, text=True)
        row.require("interpreter: /a/loader" in told.stdout, told.stdout)
        row.require("$ORIGIN/../one:/two]" in told.stdout, told.stdout)
        row.require(program.stat().st_mode & 0o777 == 0o555, "another mode")
        row.require(text.read_text() == "#!/bin/sh\n", "a script is changed")


CASES = {
    "a release's best wheel": chosen,
    "wheels in one tree": laid_out,
    "patches": patched,
    "the environment": environment,
    "loaders and paths": linked,
}
