# What tests/run wants on a machine, with the compiler of rust-toolchain.toml.
{
  mkShell,
  cargo-deny,
  deadnix,
  etcd,
  kvlens-toolchain,
  nats-server,
  nixfmt,
  pkg-config,
  protobuf,
  python3,
  statix,
  systemd,
  uv,
}:
mkShell {
  packages = [
    cargo-deny
    deadnix
    etcd
    kvlens-toolchain
    nats-server
    nixfmt
    pkg-config
    protobuf
    python3
    statix
    systemd
    uv
  ];
}
