"""Proves the flake as far as a machine without Nix' packages can: each check is a row.

usage: prove.py KVLENS_BINARY FOLDER [--write]

Needs nix, of any version from 2.8 on, and neither a network nor a store: what little it writes goes below
FOLDER. `--write` writes the golden results anew. Where $KVLENS_NIXPKGS is a folder with nixpkgs' lib and
nixos, the examples are evaluated under the whole option tree too. Prints a table, and last
`counted: P passed; F failed; S skipped`; exits 1 when a check failed.
"""

import pathlib
import sys

import case_flake
import case_modules
import case_scripts
import case_whole
import table
from nix import Nix

CASES = {
    **case_flake.CASES,
    **case_modules.CASES,
    **case_scripts.CASES,
    **case_whole.CASES,
}


class Row(table.Row):
    """One check; its number is how many things it looked at."""

    def __init__(self, name):
        super().__init__(name)
        self.seen = 0

    def numbers(self):
        return (f"{self.seen:,}",)


def main(binary, folder, *words):
    nix = Nix(pathlib.Path(binary).resolve(), pathlib.Path(folder).resolve(), "--write" in words)
    report = table.Report(("check", "looked at", "verdict"), Row)
    for name, case in CASES.items():
        report.run(name, case, nix)
    return 0 if report.print() else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
