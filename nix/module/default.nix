# services.kvlens for NixOS: what it takes, what it refuses, what it makes of it. It installs the texts of
# systemd/ themselves, filled in for this host; what NixOS adds to a unit is a drop-in.
packagesOf: {
  imports = [
    (import ./options.nix packagesOf)
    ./refused.nix
    ./settings.nix
    ./units.nix
    ./models.nix
    ./host.nix
  ];
}
