# The texts of systemd/ with their placeholders filled in for a host, by the names of their files: what
# `kvlens units render` writes, and `tests/run --only nix` holds the two against each other. Builtins only.
{
  settings,
  # Absolute paths: kvlens, etcd, nats_server.
  programs,
}:
let
  inherit (builtins)
    attrNames
    elemAt
    filter
    listToAttrs
    match
    readDir
    readFile
    replaceStrings
    split
    ;

  plan = import ./plan.nix settings;
  inherit (plan) key;

  folder = ../systemd;
  units = filter (name: match ".*[.](service|socket|target)" name != null) (
    attrNames (readDir folder)
  );

  min = a: b: if a < b then a else b;
  drain = key [ "frontend" "drain_secs" ] 30;
  settle = key [ "frontend" "settle_secs" ] (min 5 (drain / 2));
  # 5 s beyond what a role drains.
  stop = secs: toString (secs + 5);

  values = {
    "@kvlens@" = programs.kvlens;
    "@etcd@" = programs.etcd;
    "@nats_server@" = programs.nats_server;
    "@config_dir@" = "/etc/kvlens";
    "@public_listen@" = plan.public;
    "@admin_listen@" = plan.admin;
    "@frontend_stop_secs@" = stop (settle + drain);
    "@engine_stop_secs@" = stop (key [ "engine" "drain_secs" ] 30 + key [ "engine" "grace_secs" ] 10);
  };
  fill = replaceStrings (attrNames values) (map (name: values.${name}) (attrNames values));

  rack = readFile (folder + "/nats.conf");
  # NATS for a host by itself: from its name on, to where its users begin.
  kept = elemAt (split "server_name:" (elemAt (split "\nauthorization [{]" rack) 0)) 2;
  alone = ''
    # The bus of kvlens on this host: NATS core, which keeps nothing.

    server_name:${replaceStrings [ "@server@" "@listen@" ] [ "kvlens" "127.0.0.1" ] kept}
    # There are no users: only this host reaches the server. Before it listens for others, give each part of
    # kvlens a user of its own, as in nats-rack.conf of `kvlens units render --to DIR`.
  '';
in
listToAttrs (
  map (name: {
    inherit name;
    value = fill (readFile (folder + "/${name}"));
  }) units
)
// {
  "kvlens.sysusers" = readFile (folder + "/kvlens.sysusers");
  "nats.conf" = alone;
  "nats-rack.conf" = rack;
}
