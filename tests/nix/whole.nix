# The examples and the refused configurations under the whole option tree of NixOS. `nixpkgs` has lib/ and
# nixos/; its packages are stand-ins for the `names` that its modules ask for, because none is built.
{
  nixpkgs,
  names ? [ ],
}:
let
  lib = import (nixpkgs + "/lib");
  small = import ./nixpkgs { };
  stand-in = name: {
    type = "derivation";
    inherit name;
    pname = name;
    version = "1000";
    system = "x86_64-linux";
    outPath = "/stand-in/${name}";
    drvPath = "/stand-in/${name}.drv";
    outputName = "out";
    meta = { };
    passthru = { };
    override = _: stand-in name;
    overrideAttrs = _: stand-in name;
    __functor = _: _: stand-in name;
    __toString = self: self.outPath;
    out = stand-in name;
    bin = stand-in name;
    dev = stand-in name;
    lib = stand-in name;
    man = stand-in name;
  };
  platform = lib.systems.elaborate "x86_64-linux";
  formats =
    lib.genAttrs
      [
        "toml"
        "json"
        "yaml"
        "ini"
        "keyValue"
        "iniWithGlobalSection"
        "javaProperties"
        "pythonVars"
        "elixirConf"
        "gitIni"
        "hocon"
        "libconfig"
        "lua"
        "php"
        "systemd"
        "xml"
        "configobj"
        "cdn"
        "yaml_1_1"
        "yaml_1_2"
        "nixConf"
      ]
      (
        _: _: {
          type = lib.types.anything;
          lib = { };
          generate = name: value: stand-in name // { inherit value; };
        }
      );
  toml =
    with lib.types;
    oneOf [
      bool
      int
      float
      str
      path
      (attrsOf toml)
      (listOf toml)
    ]
    // {
      description = "TOML value";
    };
  kernel = stand-in "linux" // {
    kernel = stand-in "linux" // {
      version = "6.12";
      modDirVersion = "6.12";
      config = { };
      features = { };
    };
    extend = _: kernel;
    nvidiaPackages = lib.genAttrs [ "stable" "production" "latest" "beta" "dc" ] driver;
  };
  driver =
    name:
    stand-in name
    // {
      version = "580.1";
      persistenced = stand-in "persistenced";
      settings = stand-in "s";
      open = stand-in "open";
      useProfiles = false;
    };
  stubs =
    lib.genAttrs (
      names
      ++ [
        "ninja"
        "gcc"
        "podman"
        "nix"
        "etcd"
        "nats-server"
      ]
    ) stand-in
    // {
      inherit lib;
      inherit (small)
        linkFarm
        runCommand
        writeText
        runtimeShell
        ;
      config = { };
      linuxPackages = kernel;
      formats = formats // {
        toml = _: {
          type = toml;
          generate = name: _: stand-in name;
        };
      };
      path = nixpkgs;
      stdenv = platform // {
        hostPlatform = platform;
        buildPlatform = platform;
        targetPlatform = platform;
        inherit (stand-in "stdenv") mkDerivation;
      };
      python3Packages = lib.genAttrs names stand-in // {
        huggingface-hub = stand-in "huggingface-hub";
      };
      callPackage = _: _: stand-in "package";
    };

  # Whose options recurse through all packages.
  isLeftOut = module: builtins.isPath module && lib.hasSuffix "misc/nixpkgs.nix" (toString module);
  nixpkgsOptions = {
    options.nixpkgs =
      lib.genAttrs
        [
          "pkgs"
          "config"
          "overlays"
          "hostPlatform"
          "buildPlatform"
          "localSystem"
          "crossSystem"
          "system"
        ]
        (
          _:
          lib.mkOption {
            type = lib.types.raw;
            default = { };
          }
        );
  };
  given = {
    _module.args.pkgs = lib.mkForce stubs;
    nixpkgs.hostPlatform = platform // {
      efiArch = "x64";
    };
    boot.isContainer = lib.mkDefault true;
    documentation.enable = false;
    system.stateVersion = lib.mkDefault "24.11";
  };
  packages = _: {
    kvlens = small.runCommand "kvlens" { } "";
    vllm = small.runCommand "vllm" { } "";
  };
  evaluate =
    module:
    lib.evalModules {
      modules =
        lib.filter (module: !isLeftOut module) (import (nixpkgs + "/nixos/modules/module-list.nix"))
        ++ [
          nixpkgsOptions
          given
          (import ../../nix/module packages)
          module
        ];
      specialArgs = {
        modulesPath = toString (nixpkgs + "/nixos/modules");
      };
    };

  # What the module refuses; other modules' assertions ask more of their packages than stand-ins have.
  failed =
    host:
    map (one: one.message) (
      lib.filter (one: !one.assertion) (
        lib.concatMap (one: one.value) (
          lib.filter (
            one: lib.hasSuffix "module/refused.nix" one.file
          ) host.options.assertions.definitionsWithLocations
        )
      )
    );
  cases = import ../../nix/examples;
  appliance =
    (evaluate {
      imports = [ ../../nix/appliance.nix ];
      boot.isContainer = false;
      appliance.updates = "http://updates/";
    }).config;
  # As nix/docs.nix has it: the module without the rest of NixOS.
  alone = lib.evalModules {
    modules = [
      (import ../../nix/module packages)
      { _module.check = false; }
    ];
    specialArgs.pkgs = stubs;
  };
  documented = lib.filter (option: option.visible && !option.internal) (
    lib.optionAttrSetToDocList { inherit (alone.options) services; }
  );
in
{
  documented = map (option: {
    inherit (option) name;
    hasAll = option ? description && option ? type && (option ? default || option.type == "submodule");
  }) documented;
  appliance = {
    image = lib.mapAttrs (_: one: one.repartConfig) appliance.image.repart.partitions;
    boot = lib.attrNames appliance.image.repart.partitions."10-boot".contents;
    disk = appliance.systemd.repart.partitions;
    transfers = appliance.systemd.sysupdate.transfers;
    mounts = lib.mapAttrs (_: one: one.device) appliance.fileSystems;
    units = lib.filter (lib.hasPrefix "kvlens") (lib.attrNames appliance.systemd.units);
  };
  demo = lib.filter (lib.hasPrefix "kvlens") (
    lib.attrNames (evaluate ../../nix/demo.nix).config.systemd.units
  );
  examples = lib.mapAttrs (
    _: module:
    let
      host = evaluate module;
      inherit (host) config;
    in
    {
      failed = failed host;
      inherit (config.services.kvlens) settings;
      units = lib.mapAttrs (_: unit: unit.text) (
        lib.filterAttrs (name: _: lib.hasPrefix "kvlens" name) config.systemd.units
      );
      ports = config.networking.firewall.allowedTCPPorts;
      user = config.users.users.kvlens.name or null;
    }
  ) cases.examples;
  refused = lib.mapAttrs (_: bad: failed (evaluate bad.module)) (
    lib.filterAttrs (_: bad: bad ? says) cases.refused
  );
}
