"""The module, evaluated for every example and every configuration that is refused."""

import json
import os
import re
import shutil
import subprocess
import tomllib

from nix import ROOT

# What stands for the programs on both sides, because `kvlens units render` wants them to be there.
PROGRAM = "/bin/true"
PROGRAMS = [f"/nix/store/{path}" for path in ("kvlens/bin/kvlens", "etcd/bin/etcd", "nats-server/bin/nats-server")]
UNITS = "lib/systemd/system/"
# What else than units the program renders.
BESIDE = ("kvlens.sysusers", "nats.conf", "nats-rack.conf")


def example(name):
    """A check of one example: nothing is refused, and both sides make the same of it."""

    def check(row, nix):
        found = nix.value(f"(import ./tests/nix/cases.nix).examples.{name}")
        row.require(found["failed"] == [], f"refused: {found['failed']}")
        texts = found.pop("texts")
        path = nix.folder / f"{name}.toml"
        path.write_text(toml(found["settings"]))
        row.require(tomllib.loads(path.read_text()) == found["settings"], "its TOML says something else")
        nix.ours("check-config", "--config", path)
        planned = json.loads(nix.ours("units", "plan", "--config", path))
        row.require(planned == found["plan"], f"kvlens plans {planned}, Nix {found['plan']}")
        compare_texts(row, nix, path, texts, found["etc"])
        nix.golden(row, name, found)
        row.seen = len(texts) + len(found["plan"]["units"])

    return check


def compare_texts(row, nix, config, texts, etc):
    folder = nix.folder / f"{config.stem}-units"
    flags = [f"--{program}={PROGRAM}" for program in ("kvlens", "etcd", "nats-server")]
    nix.ours("units", "render", "--config", config, "--to", folder, *flags)
    rendered = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    for name in BESIDE:
        rendered.setdefault(name, "")
    ours = {name.removeprefix(UNITS): text for name, text in texts.items()}
    for name, text in ours.items():
        for program in PROGRAMS:
            text = text.replace(program, PROGRAM)
        row.require(text == rendered.get(name), f"{name} is rendered in two ways")
    row.require(set(rendered) - set(ours) == set(BESIDE), f"units: {sorted(ours)}, {sorted(rendered)}")
    nats = etc["kvlens/nats.conf"]
    row.require(nats.startswith("/") or nats == rendered["nats.conf"], "nats.conf is rendered in two ways")
    etc["kvlens/nats.conf"] = nats if nats.startswith("/") else "as kvlens renders it"


def sound(row, nix):
    """systemd finds nothing to say of any example's units with the drop-ins that NixOS adds."""
    examples = nix.value("(import ./tests/nix/cases.nix).examples")
    for name, found in examples.items():
        folder = nix.folder / f"{name}-system"
        folder.mkdir()
        for path, text in found["texts"].items():
            for program in PROGRAMS:
                text = text.replace(program, PROGRAM)
            (folder / path.removeprefix(UNITS)).write_text(text)
        units = [unit["name"] for unit in found["plan"]["units"]]
        for unit in units:
            told = found["services"].get(unit.removesuffix(".service"), {})
            (folder / f"{unit}.d").mkdir()
            (folder / f"{unit}.d/overrides.conf").write_text(drop_in(told))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"SYSTEMD_UNIT_PATH": f"{folder}:"},
            cwd=folder,
        )
        # Models are fetched with a key of later systemds; who waits for one is sound without it here.
        said = [line for line in (done.stdout + done.stderr).splitlines() if "kvlens-model-" not in line]
        row.require(said == [], f"{name}: {said}")
        row.seen += len(units)


def drop_in(unit):
    """A drop-in, as NixOS writes it."""
    lines = ["[Unit]"]
    lines += [f"{key.title()}={one}" for key in ("requires", "after") for one in unit.get(key, [])]
    lines += ["[Service]"] if "environment" in unit or "serviceConfig" in unit else []
    lines += [f'Environment="{name}={text}"' for name, text in unit.get("environment", {}).items()]
    lines += [f"LoadCredential={one}" for one in unit.get("serviceConfig", {}).get("LoadCredential", [])]
    return "\n".join(lines) + "\n"


def toml(table):
    """A table as TOML; tables in it become tables by their dotted names."""
    lines = []

    def write(name, table):
        if name:
            lines.append(f"[{name}]")
        lines.extend(f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict))
        for key, value in table.items():
            if isinstance(value, dict):
                write(f"{name}.{json.dumps(key)}" if name else json.dumps(key), value)

    write("", table)
    return "\n".join(lines) + "\n"


def refused(row, nix):
    """Each is refused, in the words that its row says."""
    cases = nix.value("(import ./tests/nix/cases.nix).refused")
    for name, case in cases.items():
        hit = any(case["says"] in message for message in case["found"])
        row.require(hit, f"{name}: should say {case['says']!r}, says {case['found']}")
    row.seen = len(cases)


def thrown(row, nix):
    """Each is refused by the type of an option."""
    cases = nix.value("(import ./tests/nix/cases.nix).throws")
    for name, says in cases.items():
        expression = f"(import ./tests/nix/cases.nix).thrown {json.dumps(name)}"
        done = nix.run("nix-instantiate", "--eval", "--strict", "--expr", expression)
        row.require(done.returncode != 0 and says in done.stderr, f"{name}: should say {says!r}, says {done.stderr}")
    row.seen = len(cases)


def shown(row, nix):
    """NixOS examples in README are examples that are tested."""
    tested = {path.read_text().split("\n", 1)[1] for path in (ROOT / "nix/examples").glob("*.nix")}
    for block in re.findall("```nix\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        row.require(block in tested, f"README has an example that is not tested: {block}")
        row.seen += 1


def machines(row, nix):
    """The machines of the flake's own tests have configurations that are taken, and scripts that parse."""
    for name, test in nix.value("(import ./tests/nix/cases.nix).machines").items():
        compile(test["script"], name, "exec")
        for node, found in test["nodes"].items():
            row.require(found["failed"] == [], f"{name}, {node}: {found['failed']}")
            path = nix.folder / f"{name}-{node}.toml"
            path.write_text(toml(found["settings"]))
            nix.ours("check-config", "--config", path)
            row.seen += 1


def templates(row, nix):
    """What templates configure is not refused, and metal's flake says what it lays out and installs."""
    found = nix.value("(import ./tests/nix/cases.nix).templates")
    row.require(found["default"] == found["metal"] == [], f"refused: {found}")
    row.require(found["disk"].startswith("/dev/") and "install" in found["install"], f"metal: {found}")
    row.seen = 2


def driver(row, nix):
    """How old a driver may be is what the pin of each engine says, and said nowhere else."""
    copy = nix.folder / "other-pins"
    for name in ("nix", "systemd", "templates", "tests/nix"):
        shutil.copytree(ROOT / name, copy / name)
    path = copy / "nix/pins.json"
    pins = json.loads(path.read_text())
    least = {"native": "901.7", "podman": "902"}
    pins["vllm"]["driver_min"], pins["vllm_image"]["driver_min"] = least["native"], least["podman"]
    path.write_text(json.dumps(pins))
    settings = f"builtins.mapAttrs (_: one: one.settings.workers) (import {copy}/tests/nix/cases.nix).examples"
    for name, workers in nix.value(settings).items():
        for worker, told in workers.items():
            wanted = least[told["runtime"]] if told["engine"] == "vllm" else None
            row.require(told.get("driver_min") == wanted, f"{name}, {worker}: {told.get('driver_min')}")
            row.seen += wanted is not None
    row.require(row.seen > 0, "no example has an engine that is pinned")
    pkgs = "{ kvlens = null; lib.getExe = it: it.text; writeShellApplication = it: it; }"
    script = nix.value(f"(import {copy}/nix/apps.nix {{ pkgs = {pkgs}; }}).up.program")
    row.require(f":-{least['native']}}}" in script, "the app `up` has another")


def documented(row, nix):
    """Every option has a type, a description, and a default or a word for it."""
    options = nix.value("(import ./tests/nix/cases.nix).options")
    for option in options:
        for part in ("type", "description", "default"):
            row.require(option[part], f"{option['name']} has no {part}")
    row.seen = len(options)


EXAMPLES = sorted(path.stem for path in (ROOT / "nix/examples").glob("*.nix") if path.stem not in ("default", "refused"))
CASES = {
    **{f"example: {name}": example(name) for name in EXAMPLES},
    "units and drop-ins are sound": sound,
    "refused by assertions": refused,
    "refused by types": thrown,
    "options are documented": documented,
    "the oldest driver": driver,
    "machines of tests": machines,
    "templates": templates,
    "README's examples": shown,
}
