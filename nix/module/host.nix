# What the workers need of the host: their user, the driver, podman, open ports.
{ config, lib, ... }:
let
  inherit (lib)
    any
    attrValues
    concatMap
    elem
    filterAttrs
    mkDefault
    mkIf
    mkMerge
    optional
    ;
  cfg = config.services.kvlens;
  plan = import ../plan.nix cfg.settings;

  inPodman = any (worker: worker.runtime == "podman") (attrValues cfg.workers);
  has = role: elem role cfg.roles;

  # Ports that others than this host may reach; those of the admin listeners stay closed.
  isOpen = what: address: what != "admin" && builtins.match "(127[.].*|\\[::1]):.*" address == null;
  portOf = address: lib.toInt (lib.last (lib.splitString ":" address));
  open =
    concatMap (unit: map portOf (attrValues (filterAttrs isOpen unit.listens))) plan.units
    ++ optional (has "control" && cfg.etcd.listen != "127.0.0.1") 2379
    ++ optional (has "control" && cfg.nats.configFile != null) 4222;
in
{
  config = mkIf cfg.enable (mkMerge [
    {
      networking.firewall.allowedTCPPorts = mkIf cfg.openFirewall (lib.unique open);
    }
    (mkIf (has "inference") {
      users.groups.kvlens = { };
      users.users.kvlens = {
        isSystemUser = true;
        description = "kvlens agents and engines";
        group = "kvlens";
        home = "/var/lib/kvlens";
        # Whose devices GPUs are on some hosts.
        extraGroups = [
          "render"
          "video"
        ];
        # Podman's containers have ids of their own.
        autoSubUidGidRange = inPodman;
      };
      virtualisation.podman.enable = mkIf inPodman true;
    })
    (mkIf cfg.nvidia {
      services.xserver.videoDrivers = [ "nvidia" ];
      hardware.graphics.enable = true;
      hardware.nvidia.open = mkDefault true;
      hardware.nvidia.nvidiaPersistenced = true;
      hardware.nvidia-container-toolkit.enable = mkIf inPodman true;
    })
  ]);
}
