# The units of the plan: the texts of systemd/, and the drop-ins by which NixOS starts them.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    filter
    getExe
    hasSuffix
    listToAttrs
    mapAttrsToList
    mkIf
    removeSuffix
    ;
  cfg = config.services.kvlens;

  plan = import ../plan.nix cfg.settings;
  texts = import ../render.nix {
    inherit (cfg) settings;
    programs = {
      kvlens = getExe cfg.package;
      etcd = "${cfg.etcd.package}/bin/etcd";
      nats_server = "${cfg.nats.package}/bin/nats-server";
    };
  };
  isUnit = name: lib.hasPrefix "kvlens" name && !hasSuffix ".sysusers" name;
  # The store has no @ in its names.
  file = name: pkgs.writeText (builtins.replaceStrings [ "@" ] [ "-at" ] name) texts.${name};
  units = pkgs.linkFarm "kvlens-units" (
    map (name: {
      name = "lib/systemd/system/${name}";
      path = file name;
    }) (filter isUnit (builtins.attrNames texts))
  );

  # What a unit reads of kvlens.toml, so that no engine is started anew for what is not its own.
  read =
    unit:
    let
      of = names: lib.getAttrs (filter (name: cfg.settings ? ${name}) names) cfg.settings;
      worker = cfg.settings.workers.${toString unit.instance} or { };
    in
    {
      engine = {
        worker = removeAttrs worker [
          "agent_advertise"
          "agent_listen"
          "labels"
        ];
        at = unit;
        of = of [
          "engine"
          "nats"
          "dispatch"
          "log"
        ];
      };
      worker = {
        inherit worker;
        at = unit;
        of = of [
          "engine"
          "worker"
          "cluster"
          "etcd"
          "nats"
          "log"
        ];
      };
      router = removeAttrs cfg.settings [
        "workers"
        "frontend"
        "engine"
        "worker"
      ];
      frontend = removeAttrs cfg.settings [
        "workers"
        "engine"
        "worker"
      ];
      etcd = { };
      nats = { inherit (cfg.nats) configFile; };
    }
    .${unit.role};

  kind = unit: cfg.workers.${unit.instance}.engine;
  isPodman = unit: cfg.workers.${unit.instance}.runtime == "podman";
  # What an engine compiles as it starts it compiles with these.
  programs =
    unit:
    if unit.role != "engine" then
      [ ]
    else if isPodman unit then
      [
        "/run/wrappers"
        pkgs.podman
      ]
    else
      [
        pkgs.gcc
        pkgs.ninja
      ]
      ++ (if kind unit == "vllm" then [ cfg.vllm.package ] else [ ]);

  environment =
    unit:
    {
      engine = mkIf (!isPodman unit) {
        # Models are folders of this host, and its driver is NixOS' own.
        HF_HUB_OFFLINE = "1";
        LD_LIBRARY_PATH = "/run/opengl-driver/lib";
        TRITON_LIBCUDA_PATH = "/run/opengl-driver/lib";
      };
      etcd = mkIf (cfg.etcd.listen != "127.0.0.1") {
        ETCD_LISTEN_CLIENT_URLS = "http://127.0.0.1:2379,http://${cfg.etcd.listen}:2379";
        ETCD_ADVERTISE_CLIENT_URLS = "http://${cfg.etcd.listen}:2379";
      };
    }
    .${unit.role} or { };

  dropIn = {
    overrideStrategy = "asDropin";
    wantedBy = [ "kvlens.target" ];
  };
  service =
    unit:
    dropIn
    // {
      environment = environment unit;
      path = programs unit;
      # A restart drains, and sockets go on listening; to stop and start would refuse clients in between.
      stopIfChanged = false;
      restartTriggers = [ (builtins.toJSON (read unit)) ];
      serviceConfig.LoadCredential = mapAttrsToList (name: path: "kvlens_${name}:${path}") (
        cfg.credentials.${unit.role} or { }
      );
    };
  named =
    suffix: make:
    listToAttrs (
      map (unit: {
        name = removeSuffix suffix unit.name;
        value = make unit;
      }) (filter (unit: hasSuffix suffix unit.name) plan.units)
    );
in
{
  config = mkIf cfg.enable {
    systemd.packages = [ units ];
    systemd.targets.kvlens = dropIn // {
      wantedBy = [ "multi-user.target" ];
    };
    systemd.services = named ".service" service;
    systemd.sockets = named ".socket" (_: dropIn);

    environment.systemPackages = [ cfg.package ];
    environment.etc."kvlens/kvlens.toml".source =
      let
        toml = (pkgs.formats.toml { }).generate "kvlens.toml" cfg.settings;
      in
      pkgs.runCommand "kvlens.toml" { } ''
        ${getExe cfg.package} check-config --config ${toml}
        cp ${toml} $out
      '';
    environment.etc."kvlens/nats.conf" =
      if cfg.nats.configFile == null then
        { text = texts."nats.conf"; }
      else
        { source = cfg.nats.configFile; };

    # Their folders have to be there, empty or not.
    systemd.tmpfiles.settings.kvlens =
      lib.genAttrs (map (role: "/etc/kvlens/credentials/${role}") (import ./roles.nix))
        (_: {
          d = {
            mode = "0700";
            user = "root";
            group = "root";
          };
        });
  };
}
