"""What an operator finds in the journal, and what nobody may."""

import json

from host import AGENTS, ENGINES, FRONTEND, KEY, ROUTERS, command

SECRET_TEXT = "an otter in the harbour at a quarter past seven"
SECRET_SALT = "salt-51c2d9e8a7b6"
# By field: a unit whose lines have it.
FIELDS = {
    "KVLENS_REQUEST_ID": FRONTEND,
    "KVLENS_WORKER": FRONTEND,
    "KVLENS_OVERLAP_BLOCKS": FRONTEND,
    "KVLENS_VERDICT": ROUTERS[0],
}


def structured(row, host):
    picture = host.bodies.picture()
    content = [{"type": "text", "text": SECRET_TEXT}, picture]
    body = host.bodies.chat(content, 5, stream=False) | {"cache_salt": SECRET_SALT}
    row.count(host.asks([body]).result())
    command("journalctl", "--sync")
    exported = command("journalctl", "--no-pager", "--boot", "--output=json", "--all")
    lines = [json.loads(line) for line in exported.splitlines()]
    for field, unit in FIELDS.items():
        found = any(field in line and line.get("_SYSTEMD_UNIT") == unit for line in lines)
        row.require(found, f"no line of {unit} has {field}")
    for unit in (FRONTEND, *ROUTERS, *AGENTS, *ENGINES):
        said = [line for line in lines if line.get("_SYSTEMD_UNIT") == unit]
        row.require(said, f"{unit} has said nothing")
    row.remark(f"{len(lines):,} lines")
    encoded = picture["image_url"]["url"].partition(",")[2]
    for secret in (SECRET_TEXT, SECRET_SALT, KEY, encoded[:64], encoded[64:128]):
        row.require(secret not in exported, f"the journal has {secret!r}")
