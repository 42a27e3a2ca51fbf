# What a host runs and where it listens, from the settings of its kvlens.toml: what `kvlens units plan`
# prints, and `tests/run --only nix` holds the two against each other. Builtins only.
settings:
let
  inherit (builtins)
    attrNames
    concatMap
    elem
    elemAt
    fromJSON
    match
    ;

  # A value of the settings, or what kvlens takes where it is unset.
  key =
    path: unset:
    let
      found = builtins.foldl' (
        table: name: if table == null then null else table.${name} or null
      ) settings path;
    in
    if found == null then unset else found;

  parts = [
    "control"
    "router"
    "frontend"
    "inference"
  ];
  has = part: elem part (key [ "units" "roles" ] parts);

  join = host: port: (if match ".*:.*" host == null then host else "[${host}]") + ":${toString port}";
  local = join "127.0.0.1";

  port = key [ "frontend" "port" ] 8000;
  public = join (key [ "frontend" "host" ] "127.0.0.1") port;
  admin = join (key [ "frontend" "admin_host" ] "127.0.0.1") (
    key [ "frontend" "admin_port" ] (if port == 0 then 0 else port + 1)
  );
  media = key [ "media" "http_listen" ] null;

  # A port is the first of its kind and the number that the worker's name ends in.
  numbered =
    first: name:
    let
      found = match "(.*[^0-9])?0*([0-9]{1,2})" name;
    in
    # kvlens refuses a worker of which nothing says where it listens.
    if found == null then "127.0.0.1:?" else local (first + fromJSON (elemAt found 1));

  workers = settings.workers or { };
  instances = map (
    name:
    let
      told = workers.${name};
    in
    {
      inherit name;
      gpus = told.gpus or [ ];
      podman = (told.runtime or "native") == "podman";
      listen = told.listen or (numbered 8100 name);
      agentListen = told.agent_listen or (numbered 8200 name);
    }
  ) (attrNames workers);

  unit = name: role: listens: {
    inherit name role listens;
    instance = null;
    gpus = [ ];
  };
  ofInstance = one: [
    (
      unit "kvlens-engine${if one.podman then "-podman" else ""}@${one.name}.service" "engine" {
        gate = one.listen;
      }
      // {
        instance = one.name;
        inherit (one) gpus;
      }
    )
    (
      unit "kvlens-worker@${one.name}.service" "worker" { agent = one.agentListen; }
      // {
        instance = one.name;
      }
    )
  ];
in
{
  inherit key public admin;
  target = "kvlens.target";
  units =
    (
      if !has "control" then
        [ ]
      else
        [
          (unit "kvlens-etcd.service" "etcd" {
            clients = local 2379;
            peers = local 2380;
          })
          (unit "kvlens-nats.service" "nats" {
            clients = local 4222;
            figures = local 8222;
          })
        ]
    )
    ++ (
      if !has "router" then
        [ ]
      else
        [
          (unit "kvlens-router.service" "router" { admin = key [ "router" "admin" ] (local 8300); })
        ]
    )
    ++ (
      if !has "frontend" then
        [ ]
      else
        [
          (unit "kvlens-frontend.socket" "frontend" { inherit public; })
          (unit "kvlens-frontend-admin.socket" "frontend" { inherit admin; })
          (unit "kvlens-frontend.service" "frontend" (
            { inherit public admin; } // (if media == null then { } else { inherit media; })
          ))
        ]
    )
    ++ (if !has "inference" then [ ] else concatMap ofInstance instances);
}
