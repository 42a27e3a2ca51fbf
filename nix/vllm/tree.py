"""Makes one site-packages tree of wheels, and says whether its vLLM tells what images a block holds.

usage: tree.py build PREFIX PATCHES_FOLDER WHEEL...
       tree.py check SITE_PACKAGES

`build` makes PREFIX a virtual environment of the Python that runs it: all wheels unpacked into one
site-packages, which keeps the libraries' paths between packages ($ORIGIN/../..) true, then the
patches of PATCHES_FOLDER/VERSION applied in the order of their names, then all of it compiled.
"""

import ast
import compileall
import pathlib
import py_compile
import re
import subprocess
import sys
import zipfile

from wheels import Wheel

EVENTS = "vllm/distributed/kv_events.py"
BLOCK_POOL = "vllm/v1/core/block_pool.py"


class Unfit(Exception):
    """The wheels do not make the tree that is wanted; the text says why."""


def build(prefix, patches, wheels):
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    site = prefix / f"lib/python{version}/site-packages"
    unpack(prefix, site, wheels)
    vllm = [wheel for path in wheels if (wheel := Wheel(file_name(path))).name == "vllm"]
    for wheel in vllm:
        apply(site, patches_of(patches, wheel.version))
    # Templates that are no Python of this version are not compiled, which hurts nobody. The tree
    # never changes again, so that nothing need be compared at start.
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(site, maxlevels=99, quiet=2, invalidation_mode=unchecked, workers=0)
    make_environment(prefix, site, version)


def file_name(path):
    """A wheel's name; a Nix store puts a hash before it."""
    return re.sub(r"^[0-9a-z]{32}-", "", pathlib.Path(path).name)


def unpack(prefix, site, wheels):
    """Unpacks wheels into one tree; two that differ in a file are refused."""
    seen = {}
    for path in wheels:
        with zipfile.ZipFile(path) as wheel:
            for member in wheel.infolist():
                if not member.is_dir():
                    unpack_member(wheel, member, prefix, site, seen)


def unpack_member(wheel, member, prefix, site, seen):
    target = place_of(member.filename, prefix, site)
    if ".." in target.parts or not target.is_relative_to(prefix):
        raise Unfit(f"{wheel.filename}: {member.filename} would be outside of the tree")
    if (crc := seen.setdefault(target, member.CRC)) != member.CRC:
        raise Unfit(f"{wheel.filename}: {member.filename} is in another wheel too, and differs ({crc:x})")
    target.parent.mkdir(parents=True, exist_ok=True)
    with wheel.open(member) as source, open(target, "wb") as copy:
        while chunk := source.read(1 << 20):
            copy.write(chunk)
    is_script = target.parent == prefix / "bin"
    if is_script or member.external_attr >> 16 & 0o111:
        target.chmod(0o755)


def place_of(member, prefix, site):
    """Where a wheel's member belongs; the layout is that of the wheel format."""
    top, _, rest = member.partition("/")
    if not top.endswith(".data"):
        return site / member
    kind, _, rest = rest.partition("/")
    folders = {
        "purelib": site,
        "platlib": site,
        "data": prefix,
        "scripts": prefix / "bin",
        "headers": prefix / "include",
    }
    if kind not in folders:
        raise Unfit(f"{member}: no such part of a wheel")
    return folders[kind] / rest


def patches_of(folder, version):
    return sorted(pathlib.Path(folder).glob(f"{version}/*.patch"))


def apply(site, patches):
    """Applies patches in order, and takes away what was compiled from the files that they change."""
    for patch in patches:
        told = subprocess.run(
            ["patch", "-p1", "--forward", "--fuzz=0", "--no-backup-if-mismatch", "-i", str(patch.resolve())],
            cwd=site,
            capture_output=True,
            text=True,
        )
        if told.returncode != 0:
            raise Unfit(f"{patch.name} does not apply:\n{told.stdout}{told.stderr}")
        for name in re.findall(r"^\+\+\+ [^/\s]+/(\S+)", patch.read_text(), re.MULTILINE):
            source = site / name
            for compiled in source.parent.glob(f"__pycache__/{source.stem}.*.pyc"):
                compiled.unlink()


def make_environment(prefix, site, version):
    """What makes the tree an environment of its own, for children of vLLM too."""
    base = pathlib.Path(sys._base_executable)
    binary = prefix / "bin"
    binary.mkdir(exist_ok=True)
    for name in ("python", "python3", f"python{version}"):
        (binary / name).symlink_to(base)
    lines = [f"home = {base.parent}", "include-system-site-packages = false", f"version = {version}"]
    (prefix / "pyvenv.cfg").write_text("\n".join(lines) + "\n")
    own = [(name, entry) for name, entry in entries(site) if name == "vllm"]
    for script in [path for path in binary.iterdir() if path.is_file() and not path.is_symlink()]:
        text = script.read_bytes()
        if text.startswith(b"#!python"):
            script.write_bytes(re.sub(rb"^#!python\w*", f"#!{binary}/python".encode(), text, count=1))
    for name, entry in own:
        module, function = entry.split(":")
        script = binary / name
        script.write_text(
            f"#!{binary}/python\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"
        )
        script.chmod(0o755)


def entries(site):
    """The console scripts of vLLM."""
    for path in site.glob("vllm-*.dist-info/entry_points.txt"):
        section = path.read_text().partition("[console_scripts]")[2].partition("[")[0]
        yield from (tuple(re.split(r"\s*=\s*", line)) for line in section.split("\n") if "=" in line)


def check(site):
    """Refuses a vLLM whose events do not tell what images a block holds. Nothing of it is run."""
    stored = ast.parse((site / EVENTS).read_text())
    fields = [
        item.target.id
        for node in ast.walk(stored)
        if isinstance(node, ast.ClassDef) and node.name == "BlockStored"
        for item in node.body
        if isinstance(item, ast.AnnAssign)
    ]
    if "extra_keys" not in fields:
        raise Unfit(f"{EVENTS}: BlockStored has no extra_keys, only {', '.join(fields) or 'nothing'}")
    pool = ast.parse((site / BLOCK_POOL).read_text())
    given = [
        {keyword.arg for keyword in node.keywords}
        for node in ast.walk(pool)
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "BlockStored"
    ]
    if not given or not all("extra_keys" in names for names in given):
        raise Unfit(f"{BLOCK_POOL}: a BlockStored is made without extra_keys")


def main(command, *given):
    if command == "build" and len(given) >= 3:
        build(pathlib.Path(given[0]), given[1], given[2:])
    elif command == "check" and len(given) == 1:
        check(pathlib.Path(given[0]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main(*(sys.argv[1:] or [""]))
    except Unfit as reason:
        sys.exit(f"tree.py: {reason}")
