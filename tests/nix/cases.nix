# Every example and every refused configuration, evaluated with the real module: what became of each.
let
  inherit (import ./nixpkgs/lib.nix) lib;
  pkgs = import ./nixpkgs { };
  packages = _: {
    kvlens = pkgs.runCommand "kvlens" { } "";
    vllm = pkgs.runCommand "vllm" { } "";
  };
  hostWith =
    more: modules:
    lib.evalModules {
      modules = [ ./nixpkgs/options.nix ] ++ modules;
      specialArgs = {
        inherit pkgs;
      }
      // more;
    };
  host =
    module:
    hostWith { } [
      (import ../../nix/module packages)
      module
    ];
  evaluate = module: (host module).config;
  cases = import ../../nix/examples;

  plan = settings: { inherit (import ../../nix/plan.nix settings) target units; };
  failed = config: map (one: one.message) (lib.filter (one: !one.assertion) config.assertions);
  # What NixOS adds to units, without what it would add anyway.
  bare =
    unit:
    lib.filterAttrs (
      _: value:
      !lib.elem value [
        ""
        [ ]
        { }
        null
      ]
    ) (unit // { path = map (one: "${one}") unit.path; });

  of =
    module:
    let
      config = evaluate module;
      inherit (config.services.kvlens) settings;
    in
    {
      failed = failed config;
      inherit settings;
      plan = plan settings;
      texts = lib.listToAttrs (
        map (entry: {
          inherit (entry) name;
          value = entry.path.text;
        }) (lib.head config.systemd.packages).entries
      );
      etc = lib.mapAttrs (_: told: told.text or "${told.source}") (
        removeAttrs config.environment.etc [ "systemd/system" ]
      );
      services = lib.mapAttrs (_: bare) config.systemd.services;
      sockets = lib.mapAttrs (_: bare) config.systemd.sockets;
      targets = lib.mapAttrs (_: bare) config.systemd.targets;
      tmpfiles = config.systemd.tmpfiles.settings;
      ports = config.networking.firewall.allowedTCPPorts;
      inherit (config) users hardware virtualisation;
    };
  refused = lib.mapAttrs (_: bad: evaluate bad.module) cases.refused;

  # The flakes of templates/, all that they ask of others being stand-ins.
  nixpkgs = (import ./nixpkgs/flake.nix).outputs { };
  kvlens = {
    inputs = { inherit nixpkgs; };
    nixosModules.default = import ../../nix/module packages;
  };
  metal = (import ../../templates/metal/flake.nix).outputs {
    inherit kvlens;
    nixpkgs = nixpkgs // {
      legacyPackages.x86_64-linux = pkgs;
    };
    disko.nixosModules.disko = { };
    nixos-anywhere.packages.x86_64-linux.nixos-anywhere = pkgs.runCommand "nixos-anywhere" { } "";
  };

  # Every option of a tree, those of submodules too.
  optionsOf =
    path: tree:
    lib.concatMap (
      name:
      let
        at = if path == "" then name else "${path}.${name}";
        option = tree.${name};
      in
      if (option._type or "") != "option" then
        optionsOf at option
      else
        [
          {
            name = at;
            type = option ? type;
            description = option.description or "";
            default = option ? default;
          }
        ]
        ++ optionsOf at (option.type.options or { })
    ) (lib.attrNames tree);
in
{
  options = optionsOf "services.kvlens" (host { }).options.services.kvlens;
  examples = lib.mapAttrs (_: of) cases.examples;
  refused = lib.mapAttrs (name: config: {
    found = failed config;
    inherit (cases.refused.${name}) says;
  }) (lib.filterAttrs (name: _: cases.refused.${name} ? says) refused);
  # The machines of the flake's own tests, and what is done to them.
  machines = lib.genAttrs [ "one-box" "cluster" ] (
    name:
    let
      test = import (../../nix/checks + "/${name}.nix") { module = kvlens.nixosModules.default; };
      node = module: (hostWith { inherit nodes; } [ module ]).config;
      nodes = lib.mapAttrs (_: node) test.nodes;
    in
    {
      script = test.testScript;
      nodes = lib.mapAttrs (_: config: {
        failed = failed config;
        inherit (config.services.kvlens) settings;
      }) nodes;
    }
  );
  templates = {
    default = failed (evaluate ../../templates/default/configuration.nix);
    metal = failed metal.nixosConfigurations.metal.config;
    disk = metal.nixosConfigurations.metal.config.disko.devices.disk.main.device;
    install = metal.apps.x86_64-linux.default.program;
  };
  # These end the evaluation; each is asked for alone.
  throws = lib.mapAttrs (_: bad: bad.throws) (lib.filterAttrs (_: bad: bad ? throws) cases.refused);
  thrown = name: (failed refused.${name});
}
