# The options of NixOS that this flake's modules set, with as much of their types as matters to them.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  of = type: default: mkOption { inherit type default; };
  any = of types.anything { };
  unit = types.submodule {
    options = {
      description = of types.str "";
      overrideStrategy = of (types.enum [
        "asDropinIfExists"
        "asDropin"
      ]) "asDropinIfExists";
      wantedBy = of (types.listOf types.str) [ ];
      wants = of (types.listOf types.str) [ ];
      requires = of (types.listOf types.str) [ ];
      after = of (types.listOf types.str) [ ];
      path = of (types.listOf (types.either types.package types.str)) [ ];
      environment = of (types.attrsOf types.str) { };
      stopIfChanged = of types.bool true;
      restartTriggers = of (types.listOf types.anything) [ ];
      serviceConfig = of (types.attrsOf types.anything) { };
    };
  };
in
{
  options = {
    assertions = of (types.listOf types.anything) [ ];
    boot = any;
    disko = any;
    documentation = any;
    environment.etc = of (types.attrsOf types.anything) { };
    environment.systemPackages = of (types.listOf types.package) [ ];
    fileSystems = any;
    hardware.graphics.enable = of types.bool false;
    hardware.nvidia = any;
    hardware.nvidia-container-toolkit.enable = of types.bool false;
    image = any;
    networking.primaryIPAddress = of types.str "192.168.1.1";
    networking.firewall.allowedTCPPorts = of (types.listOf types.port) [ ];
    networking.hostName = of types.str "nixos";
    networking.useNetworkd = of types.bool false;
    nix.enable = of types.bool true;
    nixpkgs.hostPlatform = mkOption {
      type = types.anything;
      default = "x86_64-linux";
      apply = system: {
        inherit system;
        efiArch = "x64";
      };
    };
    nixpkgs.config = any;
    nixpkgs.pkgs = any;
    services.openssh = any;
    services.xserver.videoDrivers = of (types.listOf types.str) [ ];
    system.boot.loader.ukiFile = of types.str "kvlens_1+3.efi";
    system.image = any;
    system.stateVersion = of types.str "";
    # What a system is made of is asked for, so that what is wrong with it shows.
    system.build.toplevel = of types.package (
      let
        failed = lib.filter (one: !one.assertion) config.assertions;
      in
      if failed != [ ] then
        throw (lib.concatMapStringsSep "; " (one: one.message) failed)
      else
        pkgs.linkFarm "toplevel" (
          map
            (path: {
              name = "of-it";
              inherit path;
            })
            (
              config.systemd.packages
              ++ config.environment.systemPackages
              ++ lib.mapAttrsToList (
                _: told: told.source or (pkgs.writeText "etc" told.text)
              ) config.environment.etc
              ++ [
                (pkgs.writeText "rest" (
                  builtins.toJSON {
                    inherit (config)
                      boot
                      fileSystems
                      systemd
                      users
                      ;
                  }
                ))
              ]
            )
        )
    );
    system.build.image = of types.package (pkgs.writeText "image" (builtins.toJSON config.image));
    system.build.uki = of types.package (pkgs.runCommand "uki" { } "");
    systemd.packages = of (types.listOf types.package) [ ];
    systemd.services = of (types.attrsOf unit) { };
    systemd.sockets = of (types.attrsOf unit) { };
    systemd.targets = of (types.attrsOf unit) { };
    systemd.timers = any;
    systemd.repart = any;
    systemd.sysupdate = any;
    systemd.tmpfiles.rules = of (types.listOf types.str) [ ];
    systemd.tmpfiles.settings = any;
    users = any;
    virtualisation.podman.enable = of types.bool false;
  };
  config.environment.etc."systemd/system".source = pkgs.writeText "units" (
    builtins.toJSON { inherit (config.systemd) services sockets targets; }
  );
}
