# Models that are fetched: a unit each, which ends once the folder is there and is what its hash says.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    filterAttrs
    mapAttrs'
    mapAttrsToList
    mkIf
    mkMerge
    nameValuePair
    ;
  cfg = config.services.kvlens;
  folders = import ./folders.nix cfg.models;
  fetched = filterAttrs (_: model: model.repository != null) cfg.models;

  fetch =
    name: model:
    nameValuePair "kvlens-model-${name}" {
      description = "kvlens: fetch the model ${name}";
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      path = [
        pkgs.python3Packages.huggingface-hub
        pkgs.nix
      ];
      environment = {
        HF_HUB_DISABLE_TELEMETRY = "1";
        HOME = "/var/cache/kvlens-models";
      };
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = lib.escapeShellArgs [
          "${pkgs.runtimeShell}"
          "${./fetch.sh}"
          name
          model.repository
          model.revision
          model.hash
          folders.${name}
        ];
        # Gigabytes take their time, and a network comes back; a hash that does not match stays wrong. Those
        # who wait for the model wait on while it is tried again.
        TimeoutStartSec = "infinity";
        Restart = "on-failure";
        RestartMode = "direct";
        RestartSec = 30;
        RestartPreventExitStatus = 78;
        User = "kvlens";
        Group = "kvlens";
        StateDirectory = "kvlens-models";
        CacheDirectory = "kvlens-models";
        NoNewPrivileges = true;
        CapabilityBoundingSet = "";
        ProtectSystem = "strict";
        ProtectHome = true;
        PrivateTmp = true;
        PrivateDevices = true;
        RestrictAddressFamilies = [
          "AF_INET"
          "AF_INET6"
          "AF_UNIX"
        ];
      };
    };

  # Engine and agent of a worker both read its model's files.
  waits =
    worker: told:
    let
      after = [ "kvlens-model-${told.model}.service" ];
      engine = if told.runtime == "podman" then "kvlens-engine-podman" else "kvlens-engine";
    in
    mkIf (fetched ? ${toString told.model}) {
      "${engine}@${worker}" = {
        requires = after;
        inherit after;
      };
      "kvlens-worker@${worker}" = {
        requires = after;
        inherit after;
      };
    };
in
{
  config = mkIf cfg.enable {
    systemd.services = mkMerge ([ (mapAttrs' fetch fetched) ] ++ mapAttrsToList waits cfg.workers);
  };
}
