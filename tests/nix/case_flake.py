"""The flake itself: its files, its lock, and its outputs with stand-ins for all inputs.

What stand-ins cannot show is whether anything builds, and whether names of nixpkgs are what we think.
"""

import json
import re
import shutil

from nix import HERE, ROOT

# What the flake reads, beside sources that are only built.
READ = ("flake.nix", "flake.lock", "nix", "systemd", "templates", "Cargo.toml", "Cargo.lock", "rust-toolchain.toml")
INPUTS = ("nixpkgs", "crane", "rust-overlay")
SYSTEMS = {"x86_64-linux", "aarch64-linux"}
FLAKE_LINES_MAX = 150
# Where wheels, crates and inputs come from is said by the tools that fetch them, and by locks.
ADDRESS = re.compile(r"https?://[\w.-]+\.(?:co|com|dev|io|net|org)\b")


def files():
    """The Nix files of this repository."""
    folders = (ROOT / "nix", ROOT / "templates", HERE)
    return [ROOT / "flake.nix", *(path for folder in folders for path in sorted(folder.rglob("*.nix")))]


def parsed(row, nix):
    """Every file parses, begins with what it is, and names no public host; the flake is short."""
    for path in files():
        done = nix.run("nix-instantiate", "--parse", path)
        row.require(done.returncode == 0, f"{path}: {done.stderr}")
        text = path.read_text()
        row.require(not ADDRESS.search(text), f"{path} names a public host")
        row.require(text.startswith("#") or "description" in text, f"{path} does not say what it is")
        row.seen += 1
    lines = len((ROOT / "flake.nix").read_text().splitlines())
    row.require(lines <= FLAKE_LINES_MAX, f"flake.nix has {lines} lines")


def locked(row, nix):
    """The lock has a node for each input and each input's input, all of them whole."""
    lock = json.loads((ROOT / "flake.lock").read_text())
    nodes = lock["nodes"]
    row.require(lock["version"] == 7 and lock["root"] == "root", "it is of another version")
    told = nix.value("builtins.mapAttrs (_: i: i.url) (import ./flake.nix).inputs")
    row.require(nodes["root"] == {"inputs": {name: name for name in told}}, f"root: {nodes['root']}")
    row.require(set(nodes) == {"root", *told}, f"nodes: {sorted(nodes)}")
    for name, url in told.items():
        node, original = nodes[name], nodes[name]["original"]
        row.require(node["locked"]["type"] == original["type"] == "github", f"{name} is of another kind")
        row.require(re.fullmatch("[0-9a-f]{40}", node["locked"]["rev"]), f"{name}: its revision")
        row.require(re.fullmatch("sha256-[A-Za-z0-9+/]{43}=", node["locked"]["narHash"]), f"{name}: its hash")
        row.require(node["locked"]["lastModified"] > 1_700_000_000, f"{name}: its time")
        parts = [original["owner"], original["repo"], *([original["ref"]] if "ref" in original else [])]
        row.require(url == "github:" + "/".join(parts), f"{name} is locked for {parts}, and asked for as {url}")
        row.require([node["locked"][key] for key in ("owner", "repo")] == parts[:2], f"{name} is of another owner")
        row.seen += 1
    row.require(nodes["rust-overlay"].get("inputs") == {"nixpkgs": ["nixpkgs"]}, "rust-overlay follows nothing")


def of_flake(nix, command, *words, output=""):
    """What a command says of an output of a copy of the flake, all of its inputs being stand-ins."""
    copy = nix.folder / "flake"
    if not copy.exists():
        copy.mkdir()
        for name in READ:
            path = ROOT / name
            (shutil.copytree if path.is_dir() else shutil.copy)(path, copy / name)
    stand_ins = [word for name in INPUTS for word in ("--override-input", name, f"path:{HERE / name}")]
    return nix.told(
        "nix", *command, f"path:{copy}{output}", *words, "--offline", "--no-write-lock-file", *stand_ins
    )


def shown(row, nix):
    """All outputs are there, for both systems, the apps described."""
    outputs = json.loads(of_flake(nix, ("flake", "show"), "--json"))
    wanted = {
        "packages": {"kvlens", "default", "vllm", "units", "docs"},
        "apps": {"default", "up", "doctor", "bench", "update-pins"},
        "devShells": {"default"},
    }
    for output, names in wanted.items():
        for system in SYSTEMS:
            found = set(outputs[output][system])
            row.require(found == names, f"{output}.{system}: {sorted(found)}")
            row.seen += len(found)
    for output, names in (
        ("nixosModules", {"default", "kvlens"}),
        ("nixosConfigurations", {"demo", "appliance"}),
        ("overlays", {"default"}),
        ("templates", {"default", "metal"}),
        ("formatter", SYSTEMS),
        ("checks", SYSTEMS),
    ):
        row.require(set(outputs[output]) == names, f"{output}: {sorted(outputs[output])}")
        row.seen += len(names)


def checked(row, nix):
    """Every output evaluates: packages, checks and systems to what would be built."""
    of_flake(nix, ("flake", "check"), "--no-build")
    # Neither apps nor images are looked into by `flake check`.
    apps = json.loads(of_flake(nix, ("eval",), "--json", output="#apps.x86_64-linux"))
    for name, app in apps.items():
        row.require(app["program"].startswith("/") and app["meta"]["description"], f"app {name} is {app}")
    image = of_flake(nix, ("eval",), output="#nixosConfigurations.appliance.config.system.build.image.drvPath")
    row.require("-image.drv" in image, f"the appliance's image is {image}")
    lock = (nix.folder / "flake/flake.lock").read_text()
    row.require(lock == (ROOT / "flake.lock").read_text(), "the lock was changed")
    row.seen = 2 + len(apps)


CASES = {
    "files parse": parsed,
    "the lock is whole": locked,
    "flake show, stand-ins": shown,
    "flake check, stand-ins": checked,
}
