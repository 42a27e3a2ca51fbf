"""What a wheel's file name says, and which of a release's wheels runs on a machine."""

import re

# The newest C library whose wheels are taken: Debian 12's, so that a tree also runs outside of Nix.
GLIBC_MINOR_MAX = 36
# Tags that stand for a C library; all others name it.
GLIBC_MINORS = {"manylinux1": 5, "manylinux2010": 12, "manylinux2014": 17}


class Wheel:
    """The parts of a wheel's file name, as they are spelt there."""

    def __init__(self, file_name):
        stem = file_name.removesuffix(".whl")
        parts = stem.split("-")
        if stem == file_name or len(parts) not in (5, 6):
            raise ValueError(f"{file_name} is not the name of a wheel")
        self.file_name = file_name
        self.name, self.version, *build, self.python, self.abi, self.platform = parts
        self.build = build[0] if build else None

    def rank(self, python_minor, machine):
        """How well it fits that CPython 3 on Linux, more is better; None if it does not run."""
        ranks = [
            (of_python, of_platform)
            for python in self.python.split(".")
            for abi in self.abi.split(".")
            for platform in self.platform.split(".")
            if (of_python := rank_of_python(python, abi, python_minor)) is not None
            if (of_platform := rank_of_platform(platform, machine)) is not None
        ]
        return max(ranks, default=None)


def rank_of_python(python, abi, minor):
    """Made for this Python, made for it and later ones (the later the better), or for any."""
    own = f"cp3{minor}"
    if abi == own:
        return (3, 0) if python == own else None
    if abi == "none" and python in ("py3", own):
        return (1, 0)
    any_later = {"abi3": (r"cp3(\d+)", 2), "none": (r"py3(\d+)", 1)}
    pattern, order = any_later.get(abi, ("", 0))
    oldest = re.fullmatch(pattern, python)
    return (order, int(oldest[1])) if oldest and int(oldest[1]) <= minor else None


def rank_of_platform(platform, machine):
    """The C library that it needs at least; 0 where it needs none."""
    if platform == "any":
        return 0
    tag = platform.removesuffix(f"_{machine}")
    if tag == platform:
        return None
    named = re.fullmatch(r"manylinux_2_(\d+)", tag)
    minor = int(named[1]) if named else GLIBC_MINORS.get(tag)
    return minor if minor is not None and minor <= GLIBC_MINOR_MAX else None


def name_of_row(row):
    """The file name of a row of wheels.json."""
    build = [row["build"]] if "build" in row else []
    return (
        "-".join([row["name"], row["version"], *build, row["python"], row["abi"], row["platform"]])
        + ".whl"
    )
