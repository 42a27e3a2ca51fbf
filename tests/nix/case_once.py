"""What is pinned is whole, and pinned once."""

import json
import pathlib
import re
import shutil
import subprocess

from wheels import Wheel, name_of_row

ROOT = pathlib.Path(__file__).resolve().parents[2]
PINS = ROOT / "nix/pins.json"
MACHINES = {"x86_64-linux": "x86_64", "aarch64-linux": "aarch64"}
KEYS = {"name", "version", "python", "abi", "platform", "sha256", "bytes"}
# What makes things from pins; these must not know any by themselves.
CONSUMERS = ("flake.nix", "nix", "systemd")
PINNERS = ("nix/pins.json", "nix/vllm/wheels.json", "nix/vllm/patches/")
EVALUATION_SECONDS_MAX = 120


def pins():
    return json.loads(PINS.read_text())


def rows():
    """The rows of each system's wheels."""
    return json.loads((PINS.parent / pins()["vllm"]["wheels"]).read_text())["wheels"]


def whole(row):
    """Every pin has what its consumers ask for, and where it is known from."""
    found = pins()
    row.require(found["schema"] == 1, "the schema is another one")
    images = {name: pin for name, pin in found.items() if isinstance(pin, dict) and "image" in pin}
    row.require({"tensorrt_llm", "sglang"} <= set(images), f"images: {sorted(images)}")
    for name, pin in {**images, "vllm": found["vllm"]}.items():
        for key, form in (
            ("version", r"\d+(\.\d+)+\S*"),
            ("cuda", r"\d+"),
            ("driver_min", r"\d{3}(\.\d+)*"),
        ):
            row.require(re.fullmatch(form, pin[key]), f"{name}.{key}: {pin[key]}")
    for name, pin in images.items():
        row.require(
            re.fullmatch(r"sha256:[0-9a-f]{64}", pin["digest"]), f"{name}.digest: {pin['digest']}"
        )
        row.require(
            re.fullmatch(r"[a-z.]+/[a-z/_-]+", pin["image"]), f"{name}.image: {pin['image']}"
        )
        row.require(f"{name}.digest" in found["sources"], f"{name}.digest: known from where?")
    for key in found["sources"]:
        pin, _, field = key.rpartition(".")
        row.require(
            field in found.get(pin or "vllm", {}), f"sources has {key}, which is not pinned"
        )


def fitting(row):
    """Every row is the name of a wheel that runs there, once a package."""
    for system, wheels in rows().items():
        names = [wheel["name"].lower().replace("_", "-") for wheel in wheels]
        row.require(
            len(set(names)) == len(names) > 100,
            f"{system}: {len(names)} wheels, {len(set(names))} names",
        )
        for wheel in wheels:
            row.require(KEYS <= set(wheel) <= KEYS | {"build"}, f"{wheel['name']}: {sorted(wheel)}")
            row.require(
                re.fullmatch("[0-9a-f]{64}", wheel["sha256"]), f"{wheel['name']}: {wheel['sha256']}"
            )
            rank = Wheel(name_of_row(wheel)).rank(12, MACHINES[system])
            row.require(rank is not None, f"{name_of_row(wheel)} does not run on {system}")
        own = [wheel["version"] for wheel in wheels if wheel["name"] == "vllm"]
        row.require(own == [pins()["vllm"]["version"]], f"{system}: vllm {own}")
        row.remark(
            f"{system}: {len(wheels)} wheels, {sum(wheel['bytes'] for wheel in wheels) / 1e6:,.0f} MB"
        )
    row.require(set(rows()) == set(MACHINES), f"systems: {sorted(rows())}")


def once(row):
    """No consumer repeats a version, and nothing in the tree a digest; no index is named."""
    found = pins()
    digests = [
        pin["digest"][7:] for pin in found.values() if isinstance(pin, dict) and "digest" in pin
    ]
    versions = [
        pin["version"] for pin in found.values() if isinstance(pin, dict) and "version" in pin
    ]
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    )
    read = 0
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if name.startswith(PINNERS) or not path.is_file():
            continue
        text = path.read_bytes().decode(errors="replace")
        read += 1
        for digest in [digest for digest in digests if digest in text]:
            row.fault(f"{name} has the digest {digest[:12]}…, which pins.json has")
        row.require(not re.search(r"@sha256:[0-9a-f]{64}", text), f"{name} pins an image")
        if name.split("/")[0] in CONSUMERS:
            for version in versions:
                row.require(
                    not re.search(rf"(?<![\d.]){re.escape(version)}(?![\d.])", text),
                    f"{name}: {version}",
                )
            row.require(
                not re.search(r"driver_?min\W{1,8}\d", text, re.IGNORECASE),
                f"{name} says how old a driver may be, which pins.json does",
            )
    for pinner in (PINS, PINS.parent / found["vllm"]["wheels"], PINS.parent / "update-pins"):
        row.require(
            not re.search(r"pypi\.|pythonhosted", pinner.read_text()),
            f"{pinner.name} names an index",
        )
    row.require(read > 100, f"only {read} files were read")
    row.remark(f"{read} files read")


def evaluated(row):
    """env.nix makes what pins.json and wheels.json say, and refuses what they do not agree on."""
    if shutil.which("nix-instantiate") is None:
        row.skip("no nix here")
        return
    for system, wheels in rows().items():
        made = evaluate(system)
        row.require(
            made["version"] == pins()["vllm"]["version"], f"{system}: version {made['version']}"
        )
        wanted = [f"{wheel['sha256']} {name_of_row(wheel)}" for wheel in wheels]
        row.require(made["wheels"] == wanted, f"{system}: fetched are not the rows of wheels.json")
        row.require("tree.py check" in made["phases"], "the install check checks nothing")
    built = {
        "name": "vllm",
        "version": "7.7",
        "build": "2",
        "python": "py3",
        "abi": "none",
        "platform": "any",
    }
    other = {**pins(), "vllm": {**pins()["vllm"], "version": "7.7"}}
    made = evaluate(
        "x86_64-linux", pins=other, wheelRows={"x86_64-linux": [{**built, "sha256": "0"}]}
    )
    row.require(
        made["wheels"] == ["0 vllm-7.7-2-py3-none-any.whl"],
        f"a wheel with a build: {made['wheels']}",
    )
    row.require(made["version"] == "7.7", f"pins.json changed, and still {made['version']}")
    for refused, changed in (
        ("run nix/update-pins", {"pins": other}),
        ("not 3.12", {"pins": {**pins(), "vllm": {**pins()["vllm"], "python": "3.13"}}}),
        ("no wheels for x86_64-linux", {"wheelRows": {}}),
    ):
        try:
            evaluate("x86_64-linux", **changed)
            row.fault(f"not refused: {refused}")
        except RuntimeError as error:
            row.require(refused in str(error), f"refused without {refused!r}: {error}")


def evaluate(system, **changed):
    """What env.nix makes for a system, its arguments changed."""
    here = pathlib.Path(__file__).parent
    environment = ROOT / "nix/vllm/env.nix"
    text = json.dumps(json.dumps(changed)).replace("${", "\\${")
    arguments = (
        f'environment = {environment}; system = "{system}"; changed = builtins.fromJSON {text};'
    )
    told = subprocess.run(
        [
            "nix-instantiate",
            "--eval",
            "--strict",
            "--json",
            "--expr",
            f"import {here}/env.nix {{ {arguments} }}",
        ],
        capture_output=True,
        text=True,
        timeout=EVALUATION_SECONDS_MAX,
    )
    if told.returncode != 0:
        raise RuntimeError(told.stderr)
    return json.loads(told.stdout)


CASES = {
    "pins are whole": whole,
    "wheels fit": fitting,
    "pinned once": once,
    "env.nix reads the pins": evaluated,
}
