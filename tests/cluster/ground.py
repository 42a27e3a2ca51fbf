"""Where things are: the run's folder, its keys, and the filled configuration of NATS."""

import os
import pathlib
import re
import secrets
import shutil

from processes import USER

HERE = pathlib.Path(__file__).resolve().parent
EACH = re.compile(r"^ *# each (\w+).*?\n(.*?)^ *# end \1\n", re.DOTALL | re.MULTILINE)


class Site:
    """Folders and files that all processes find."""

    def __init__(self, binary, folder, is_quick):
        self.binary = binary
        self.folder = folder
        self.is_quick = is_quick
        self.key = secrets.token_hex(16)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": folder,
            "LANG": "C.UTF-8",
            "KVLENS_LOG_FORMAT": "text",
            # Each placement has a line at info; this run reads only what roles say of themselves.
            "KVLENS_LOG_LEVEL": "warn,kvlens::frontend::role=info,kvlens::bus=info",
        }
        os.chown(folder, USER, USER)
        self.keys = self.secret("gate.keys", f"cluster:{self.key}\n")

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def make_folder(self, name):
        """A new, empty folder that the processes may write."""
        path = self.path(name)
        shutil.rmtree(path, ignore_errors=True)
        os.makedirs(path, mode=0o700)
        os.chown(path, USER, USER)
        return path

    def secret(self, name, text):
        """Writes a file that only the processes read."""
        path = self.path(name)
        with open(path, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(text)
        os.chown(path, USER, USER)
        return path

    def silence(self, seconds):
        """How long a fault lasts: what was asked for, or less in a quick run."""
        return max(8, seconds / 4) if self.is_quick else seconds


class Nats:
    """`systemd/nats.conf`, filled in: users with passwords of their own."""

    def __init__(self, site, address, names):
        """`names` has the names of each kind of part: worker, router, frontend."""
        self.site = site
        self.passwords = {}
        text = (HERE.parent.parent / "systemd/nats.conf").read_text()
        text = EACH.sub(lambda block: self.blocks(block[1], block[2], names[block[1]]), text)
        text = text.replace("@server@", "cluster").replace("@listen@", address)
        left = re.findall(r"^[^#\n]*@\w+@", text, re.MULTILINE)
        assert not left, f"not filled in: {left}"
        self.path = site.secret("nats.conf", text)

    def blocks(self, kind, block, names):
        return "".join(self.block(block.replace(f"@{kind}@", name)) for name in names)

    def block(self, block):
        """A user's block with a password, and that in a file."""
        [user] = re.findall(r'user: "(.*)"', block)
        password = secrets.token_hex(16)
        self.passwords[user] = self.site.secret(f"{user}.password", f"{password}\n")
        return re.sub("@[a-z]+_password@", password, block)

    def environment(self, user):
        """By what a process shows who it is."""
        return {"KVLENS_NATS_USER": user, "KVLENS_NATS_PASSWORD_FILE": self.passwords[user]}
