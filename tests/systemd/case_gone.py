"""An appliance that is taken away leaves nothing."""

from host import CONFIG, files, systemctl


def uninstalled(row, host):
    print(host.run("units", "uninstall", "--purge"), end="", flush=True)
    row.require(not CONFIG.parent.exists(), f"{CONFIG.parent} is there")
    left = {path for path in files() - host.before if "kvlens" in path}
    row.require(not left, f"left: {sorted(left)[:8]}")
    listed = systemctl("list-units", "--all", "--plain", "--no-legend", "kvlens*").strip()
    row.require(not listed, f"systemd has {listed!r}")
    with open("/etc/passwd", encoding="utf-8") as file:
        row.require("kvlens" not in file.read(), "the user is there")
