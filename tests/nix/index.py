"""Wheels from the package index that pip is configured with."""

import hashlib
import shutil
import subprocess
import sys
import venv

from wheels import Wheel, name_of_row

# What one batch may be, so that little is on the disk at once; a wheel that is larger is one by itself.
BATCH_BYTES_MAX = 300_000_000
BATCH_SECONDS_MAX = 900
# What pip says where the network is at fault: not a word about hashes or versions.
NETWORK_FAULTS = (
    "Temporary failure in name resolution",
    "Network is unreachable",
    "No route to host",
    "NewConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ConnectionResetError",
    "ProxyError",
    "IncompleteRead",
)
HASH_FAULT = "DO NOT MATCH THE HASHES"


class Away(Exception):
    """There is no network, or no index in it."""


class Index:
    def __init__(self, folder):
        self.folder = folder
        self.python = None

    def pip(self, *words):
        """Runs pip in an environment of our own, which not every system's Python has."""
        if self.python is None:
            venv.create(self.folder / "venv", with_pip=True)
            self.python = self.folder / "venv/bin/python"
        quiet = ["--disable-pip-version-check", "--quiet", "--no-cache-dir", "--retries", "3"]
        told = subprocess.run(
            [self.python, "-m", "pip", *words, *quiet],
            capture_output=True,
            text=True,
            timeout=BATCH_SECONDS_MAX,
        )
        if told.returncode != 0:
            lines = told.stderr.strip().splitlines()
            away = [line for line in lines if any(fault in line for fault in NETWORK_FAULTS)]
            if away and HASH_FAULT not in told.stderr:
                raise Away(away[-1])
            raise RuntimeError(told.stderr)

    def each(self, rows, python):
        """Each row's wheel as a file, which is gone when the next is asked for."""
        for batch in batches_of(rows):
            downloads = self.folder / "downloads"
            self.download(batch, python, downloads)
            for row in batch:
                path = downloads / name_of_row(row)
                yield row, path
                path.unlink()
            shutil.rmtree(downloads)

    def download(self, rows, python, folder):
        lines = [f"{row['name']}=={row['version']} --hash=sha256:{row['sha256']}\n" for row in rows]
        (self.folder / "requirements.txt").write_text("".join(lines))
        tags = [Wheel(name_of_row(row)) for row in rows]
        fits = ["--implementation", "cp", "--python-version", python]
        for option, part in (("--platform", "platform"), ("--abi", "abi")):
            for tag in sorted({tag for wheel in tags for tag in getattr(wheel, part).split(".")}):
                fits += [option, tag]
        self.pip(
            *["download", "--no-deps", "--only-binary", ":all:", "--require-hashes", *fits],
            *["--requirement", self.folder / "requirements.txt", "--dest", folder],
        )


def batches_of(rows):
    batches, bytes_last = [], BATCH_BYTES_MAX
    for row in sorted(rows, key=lambda row: row["bytes"]):
        bytes_last += row["bytes"]
        if bytes_last > BATCH_BYTES_MAX:
            batches.append([])
            bytes_last = row["bytes"]
        batches[-1].append(row)
    return batches


def sha256_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def uv(index):
    """The program uv: the system's, else one of our own."""
    if found := shutil.which("uv"):
        return found
    index.pip("install", "uv")
    return str(index.folder / "venv/bin/uv")


if sys.version_info < (3, 11):
    sys.exit("Python 3.11 or later is needed")
