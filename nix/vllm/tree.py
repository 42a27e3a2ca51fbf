"""Makes one site-packages tree of wheels, and says whether its vLLM tells what images a block holds.

usage: tree.py build PREFIX PATCHES_FOLDER WHEEL...
       tree.py link PREFIX INTERPRETER LIBRARY_PATH
       tree.py check SITE_PACKAGES

`build` makes PREFIX a virtual environment of the Python that runs it. All wheels are unpacked into one
site-packages, which keeps the paths between their libraries ($ORIGIN/../..) true. Then the patches of
PATCHES_FOLDER/VERSION are applied in the order of their names, and all is compiled. `link` lets
programs and libraries find a loader and libraries elsewhere, beside the paths that they have.
"""

import ast
import compileall
import pathlib
import py_compile
import re
import shutil
import subprocess
import sys
import zipfile

from wheels import Wheel

EVENTS = "vllm/distributed/kv_events.py"
BLOCK_POOL = "vllm/v1/core/block_pool.py"
# Left in their wheels by mistake, by several projects; only building those asks for it.
STRAY = {"build_backend.py"}
COPIED_BYTES = 1 << 20
# A patch for another version of a file is refused, even where it could be made to fit.
PATCH = ("patch", "-p1", "--forward", "--fuzz=0", "--no-backup-if-mismatch")
# A script's first line in a wheel, for the installer to fill in.
SHEBANG = rb"#!python\w*"


class Unfit(Exception):
    """The wheels do not make the tree that is wanted; the text says why."""


def build(prefix, patches, wheels):
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    site = prefix / f"lib/python{version}/site-packages"
    placed = {}
    for path in wheels:
        unpack(path, prefix, site, placed)
    for path in wheels:
        # The Nix store puts a hash before a file's name.
        wheel = Wheel(re.sub(r"^[0-9a-z]{32}-", "", pathlib.Path(path).name))
        if wheel.name == "vllm":
            apply(site, patches_of(patches, wheel.version))
    compile_all(site)
    make_environment(prefix, site, version)


def unpack(path, prefix, site, placed):
    """Unpacks one wheel. `placed` knows what others have brought, so that none is overwritten."""
    with zipfile.ZipFile(path) as wheel:
        for member in wheel.infolist():
            if member.is_dir() or member.filename in STRAY:
                continue
            target = place_of(member.filename, prefix, site)
            if placed.setdefault(target, member.CRC) != member.CRC:
                raise Unfit(f"{path}: {member.filename} is in another wheel too, and differs")
            write(wheel, member, target)


def write(wheel, member, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    with wheel.open(member) as source, open(target, "wb") as copy:
        shutil.copyfileobj(source, copy, COPIED_BYTES)
    if member.external_attr >> 16 & 0o111 or ".data/scripts/" in member.filename:
        target.chmod(0o755)


def place_of(member, prefix, site):
    """Where a wheel's member belongs; the layout is that of the wheel format."""
    folders = {
        "purelib": site,
        "platlib": site,
        "data": prefix,
        "scripts": prefix / "bin",
        "headers": prefix / "include",
    }
    folder, rest = site, member
    if in_data := re.fullmatch(r"[^/]+\.data/([^/]+)/(.+)", member):
        kind, rest = in_data.groups()
        folder = folders.get(kind)
    if folder is None or rest.startswith("/") or ".." in rest.split("/"):
        raise Unfit(f"{member} has no place in the tree")
    return folder / rest


def patches_of(folder, version):
    return sorted(pathlib.Path(folder).glob(f"{version}/*.patch"))


def apply(site, patches):
    """Applies patches in order, and takes away what was compiled from the files that they change."""
    for patch in patches:
        words = [*PATCH, "-i", str(patch.resolve())]
        try:
            told = subprocess.run(words, cwd=site, capture_output=True, text=True)
        except FileNotFoundError:
            raise Unfit("patch is not on the PATH") from None
        if told.returncode != 0:
            raise Unfit(f"{patch.name} does not apply:\n{told.stdout}{told.stderr}")
        for name in re.findall(r"^\+\+\+ [^/\s]+/(\S+)", patch.read_text(), re.MULTILINE):
            source = site / name
            for compiled in source.parent.glob(f"__pycache__/{source.stem}.*.pyc"):
                compiled.unlink()


def compile_all(site):
    """Compiles all, for a tree that never changes again: nothing is compared at start."""
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    # Some packages have templates that are no Python; those are never imported.
    compileall.compile_dir(
        site, maxlevels=99, quiet=2, force=True, invalidation_mode=unchecked, workers=0
    )


def make_environment(prefix, site, version):
    """Makes the prefix an environment of its own, which holds for the children of vLLM too."""
    base = pathlib.Path(sys._base_executable)
    binary = prefix / "bin"
    binary.mkdir(exist_ok=True)
    shebang = f"#!{binary.resolve()}/python".encode()
    for script in binary.iterdir():
        text = script.read_bytes()
        if re.match(SHEBANG, text):
            script.write_bytes(re.sub(SHEBANG, shebang, text, count=1))
    for name in ("python", "python3", f"python{version}"):
        (binary / name).symlink_to(base)
    lines = [
        f"home = {base.parent}",
        "include-system-site-packages = false",
        f"version = {version}",
    ]
    (prefix / "pyvenv.cfg").write_text("\n".join(lines) + "\n")
    module, function = entry_of(site).split(":")
    script = binary / "vllm"
    script.write_text(
        f"{shebang.decode()}\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"
    )
    script.chmod(0o755)


def entry_of(site):
    """The function that is vLLM's program."""
    for path in site.glob("vllm-*.dist-info/entry_points.txt"):
        scripts = path.read_text().partition("[console_scripts]")[2].partition("[")[0]
        if entry := re.search(r"^vllm\s*=\s*([\w.]+:\w+)", scripts, re.MULTILINE):
            return entry[1]
    raise Unfit("no wheel brings the program vllm")


def link(prefix, interpreter, library_path):
    for path in prefix.rglob("*"):
        if path.is_file() and not path.is_symlink() and is_elf(path):
            link_file(path, interpreter, library_path)


def is_elf(path):
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def link_file(path, interpreter, library_path):
    told = subprocess.run(
        ["readelf", "--wide", "-l", "-d", path], capture_output=True, text=True
    ).stdout
    words = []
    if "(NEEDED)" in told:
        # The older kind of path holds for a library's libraries too, which some wheels count on.
        words += ["--force-rpath"] if "(RPATH)" in told else []
        words += ["--add-rpath", library_path]
    if "program interpreter" in told:
        words += ["--set-interpreter", interpreter]
    if words:
        mode = path.stat().st_mode
        path.chmod(mode | 0o200)
        subprocess.run(["patchelf", *words, path], check=True)
        path.chmod(mode)


def check(site):
    """Refuses a vLLM whose events do not tell what images a block holds. Nothing of it is run."""
    fields = [
        item.target.id
        for node in ast.walk(ast.parse((site / EVENTS).read_text()))
        if isinstance(node, ast.ClassDef) and node.name == "BlockStored"
        for item in node.body
        if isinstance(item, ast.AnnAssign)
    ]
    if "extra_keys" not in fields:
        raise Unfit(
            f"{EVENTS}: BlockStored has no extra_keys, but {', '.join(fields) or 'nothing'}"
        )
    made = [
        {keyword.arg for keyword in node.keywords}
        for node in ast.walk(ast.parse((site / BLOCK_POOL).read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "BlockStored"
    ]
    if not made or not all("extra_keys" in names for names in made):
        raise Unfit(f"{BLOCK_POOL}: a BlockStored is made without extra_keys")


def main(command="", *given):
    if command == "build" and len(given) >= 3:
        build(pathlib.Path(given[0]), given[1], given[2:])
    elif command == "link" and len(given) == 3:
        link(pathlib.Path(given[0]), *given[1:])
    elif command == "check" and len(given) == 1:
        check(pathlib.Path(given[0]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Unfit as reason:
        sys.exit(f"tree.py: {reason}")
