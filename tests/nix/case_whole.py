"""The examples under the whole option tree of NixOS, where a checkout of it is given."""

import os
import pathlib
import re

PACKAGE = re.compile(r"""pkgs\.([A-Za-z_][A-Za-z0-9_'-]*)|Option pkgs "([A-Za-z0-9_-]+)\"""")


def examples(row, nix):
    """NixOS takes what the small evaluator takes, refuses what it refuses, and makes the same settings."""
    given = os.environ.get("KVLENS_NIXPKGS")
    if not given:
        row.skip("KVLENS_NIXPKGS names no folder with nixpkgs' lib and nixos")
        return
    nixpkgs = pathlib.Path(given).resolve()
    texts = (path.read_text() for path in (nixpkgs / "nixos/modules").rglob("*.nix"))
    names = sorted({found[1] or found[2] for text in texts for found in PACKAGE.finditer(text)})
    quoted = " ".join(f'"{name}"' for name in names)
    whole = nix.value(f"import ./tests/nix/whole.nix {{ nixpkgs = {nixpkgs}; names = [ {quoted} ]; }}")
    small = nix.value("let c = import ./tests/nix/cases.nix; in { inherit (c) examples refused; }")
    for name, found in whole["examples"].items():
        row.require(found["failed"] == [], f"{name} is refused: {found['failed']}")
        one = small["examples"][name]
        row.require(plain(found["settings"]) == plain(one["settings"]), f"{name}: other settings")
        row.require(sorted(found["ports"]) == sorted(one["ports"]), f"{name}: other ports")
        for unit, told in one["services"].items():
            text = found["units"].get(f"{unit}.service", "")
            for line in lines_of(told):
                row.require(line in text.splitlines(), f"{name}: {unit} lacks {line}")
            row.seen += 1
    bare = [option["name"] for option in whole["documented"] if not option["hasAll"]]
    row.require(bare == [] and len(whole["documented"]) > 30, f"not documented: {bare}")
    appliance = whole["appliance"]
    units = {"kvlens.target", "kvlens-frontend.socket", "kvlens-worker@gpu-0.service", "kvlens-engine@gpu-0.service"}
    row.require(units <= set(appliance["units"]), f"the appliance has {appliance['units']}")
    row.require("/EFI/Linux/kvlens_1+3.efi" in appliance["boot"], f"the appliance boots {appliance['boot']}")
    label = appliance["image"]["20-store"]["Label"]
    row.require(appliance["mounts"]["/image"].endswith(f"/{label}"), f"the appliance mounts {appliance['mounts']}")
    row.require(set(appliance["transfers"]) == {"10-store", "20-boot"}, "the appliance is not updated whole")
    row.require("kvlens-engine@mock-1.service" in whole["demo"], f"the demo has {whole['demo']}")
    for name, found in whole["refused"].items():
        row.require(found == small["refused"][name]["found"], f"{name}: says {found}")
        row.seen += 1


def plain(table):
    """Tables without those that are empty."""
    if not isinstance(table, dict):
        return table
    return {key: value for key, value in ((key, plain(value)) for key, value in table.items()) if value != {}}


def lines_of(unit):
    """Lines that NixOS must make of a unit."""
    lines = [f'Environment="{name}={text}"' for name, text in unit.get("environment", {}).items()]
    lines += [f"LoadCredential={one}" for one in unit.get("serviceConfig", {}).get("LoadCredential", [])]
    lines += [f"WantedBy={one}" for one in unit.get("wantedBy", [])]
    lines += [f"Requires={one}" for one in unit.get("requires", [])]
    return lines


CASES = {"under the whole option tree": examples}
