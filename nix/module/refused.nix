# What services.kvlens refuses before anything is built, in sentences that name the option.
{ config, lib, ... }:
let
  inherit (builtins)
    isAttrs
    isPath
    isString
    match
    storeDir
    ;
  inherit (lib)
    attrNames
    concatLists
    concatMap
    concatMapStringsSep
    elem
    filter
    hasPrefix
    imap0
    mapAttrsToList
    mkIf
    optional
    take
    unique
    ;
  cfg = config.services.kvlens;
  plan = import ../plan.nix cfg.settings;
  at = "services.kvlens";

  faults = import ./faults.nix { inherit at config lib; };
  gpusOf = worker: map toString worker.gpus;

  said =
    option: faultsOf: name: value:
    let
      key = field: "${at}.${option}.${name}${if field == "" then "" else ".${field}"}";
    in
    concatMap (fault: optional (lib.head fault) "${key (lib.elemAt fault 1)} ${lib.last fault}") (
      faultsOf name value
    );

  # Pairs of which one came before the other and `clash` says that both cannot be.
  pairs =
    clash: all:
    concatLists (
      imap0 (
        place: one: concatMap (other: optional (clash one other) { inherit one other; }) (take place all)
      ) all
    );

  gpus = concatLists (
    mapAttrsToList (name: worker: map (gpu: { inherit name gpu; }) (unique (gpusOf worker))) cfg.workers
  );
  shared = map (
    { one, other }:
    "${at}.workers.${other.name}.gpus and ${at}.workers.${one.name}.gpus both have ${one.gpu}: each engine takes its GPU's memory for itself"
  ) (pairs (one: other: one.gpu == other.gpu) gpus);

  # Sockets listen for their frontend, so that only units of services count.
  listeners = concatMap (
    unit:
    mapAttrsToList (what: address: {
      inherit what address;
      inherit (unit) name;
    }) unit.listens
  ) (filter (unit: lib.hasSuffix ".service" unit.name) plan.units);
  split = address: match "(.*):([0-9]+)" address;
  every =
    host:
    elem host [
      "0.0.0.0"
      "[::]"
    ];
  clash =
    one: other:
    let
      a = split one.address;
      b = split other.address;
      host = lib.head;
      port = lib.last;
    in
    a != null
    && b != null
    && port a != "0"
    && port a == port b
    && (host a == host b || every (host a) || every (host b));
  clashes = map (
    { one, other }:
    "${one.name} (${one.what}) is to listen on ${one.address} and ${other.name} (${other.what}) on ${other.address}: two listeners need two addresses; see ${at}.settings and ${at}.workers"
  ) (pairs clash listeners);

  # Keys of files that nobody else may read; what is in the store everybody can.
  isSecret = key: match ".*(key_file|password_file|nkey_file|creds_file)" key != null;
  inStore = value: isPath value || (isString value && hasPrefix storeDir value);
  leaks =
    path: table:
    concatLists (
      mapAttrsToList (
        key: value:
        if isAttrs value then
          leaks "${path}.${key}" value
        else
          optional (isSecret key && inStore value) "${path}.${key}"
      ) table
    );
  leaked =
    leaks "${at}.settings" (removeAttrs cfg.settings [ "workers" ])
    ++ mapAttrsToList (name: _: "${at}.workers.${name}.keyFile") (
      lib.filterAttrs (_: worker: inStore worker.keyFile) cfg.workers
    )
    ++ leaksOf cfg.credentials
    ++ optional (inStore cfg.nats.configFile) "${at}.nats.configFile";
  leaksOf =
    credentials:
    concatLists (
      mapAttrsToList (
        role: files:
        concatLists (
          mapAttrsToList (name: path: optional (inStore path) "${at}.credentials.${role}.${name}") files
        )
      ) credentials
    );
  roles = import ./roles.nix;

  sentences =
    concatLists (mapAttrsToList (said "workers" faults.worker) cfg.workers)
    ++ concatLists (mapAttrsToList (said "models" faults.model) cfg.models)
    ++
      optional (elem "inference" cfg.roles && cfg.workers == { })
        "${at}.workers is empty: name one, as ${at}.workers.gpu-0.model = \"…\", or leave inference out of ${at}.roles"
    ++ optional (
      cfg.settings.units.roles != cfg.roles
    ) "${at}.settings.units.roles is said by ${at}.roles: leave it out"
    ++ optional (
      attrNames cfg.settings.workers != attrNames cfg.workers
    ) "${at}.settings.workers is said by ${at}.workers: leave it out"
    ++ shared
    ++ clashes
    ++ map (
      option:
      "${option} is in the Nix store, which everybody can read: name a file outside of it, or a credential"
    ) leaked
    ++ map (
      role: "${at}.credentials.${role} is no role: there are ${concatMapStringsSep ", " toString roles}"
    ) (filter (role: !elem role roles) (attrNames cfg.credentials));
in
{
  config.assertions = mkIf cfg.enable (
    map (message: {
      assertion = false;
      inherit message;
    }) sentences
  );
}
