# The units for a host without NixOS, as `kvlens units render` writes them: `nix build .#units`, then copy
# lib/systemd/system to /etc/systemd/system.
{
  runCommand,
  etcd,
  kvlens,
  nats-server,
}:
runCommand "kvlens-units" { } ''
  ${kvlens}/bin/kvlens units render --config ${../systemd/kvlens.toml} --to $out/lib/systemd/system \
    --kvlens ${kvlens}/bin/kvlens --etcd ${etcd}/bin/etcd --nats-server ${nats-server}/bin/nats-server
''
