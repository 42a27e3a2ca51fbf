# What `nix flake check` builds: the program's own checks, those of Nix files and units, the module under
# every example and every refused configuration, and virtual machines with mock engines.
{
  pkgs,
  module,
  nixosSystem,
  packages,
}:
let
  inherit (pkgs) lib kvlens;
  cases = import ../examples;

  evaluate =
    example:
    (nixosSystem {
      modules = [
        module
        example
        {
          nixpkgs.pkgs = pkgs;
          boot.isContainer = true;
          system.stateVersion = "26.05";
        }
      ];
    }).config;
  failed = config: map (one: one.message) (lib.filter (one: !one.assertion) config.assertions);

  # Its units and its kvlens.toml, which `kvlens check-config` has to take.
  example =
    name: path:
    let
      config = evaluate path;
      wrong = failed config;
    in
    lib.nameValuePair "module-${name}" (
      if wrong != [ ] then
        throw "nix/examples/${name}.nix: ${lib.concatStringsSep "; " wrong}"
      else
        pkgs.linkFarm "module-${name}" [
          {
            name = "kvlens.toml";
            path = config.environment.etc."kvlens/kvlens.toml".source;
          }
          {
            name = "units";
            path = config.environment.etc."systemd/system".source;
          }
        ]
    );

  refused =
    name: bad:
    let
      found = failed (evaluate bad.module);
    in
    lib.any (lib.hasInfix bad.says) found
    || throw "${name}: should say ${bad.says}, says ${lib.concatStringsSep "; " found}";
  accepts = bad: (builtins.tryEval (lib.deepSeq (failed (evaluate bad.module)) true)).success;

  files = lib.fileset.toSource {
    root = ../..;
    fileset = lib.fileset.fileFilter (file: file.hasExt "nix") ../..;
  };
  lint =
    name: command:
    pkgs.runCommand name { nativeBuildInputs = [ pkgs.${name} ]; } ''
      cd ${files}
      ${command}
      touch $out
    '';
  machines = name: pkgs.testers.runNixOSTest (import ./${name}.nix { inherit module; });
in
kvlens.checks
// lib.mapAttrs' example cases.examples
// {
  inherit (packages) units docs;
  inherit (pkgs) kvlens;

  deadnix = lint "deadnix" "deadnix --fail --no-lambda-pattern-names .";
  statix = lint "statix" "statix check --config ${./statix.toml} .";

  # systemd finds nothing to say of the units, and their walls stand.
  units-hold = pkgs.runCommand "units-hold" { nativeBuildInputs = [ pkgs.systemd ]; } (
    builtins.readFile ./units.sh
    + ''
      check ${packages.units}/lib/systemd/system
      touch $out
    ''
  );

  module-refuses =
    assert lib.all (name: refused name cases.refused.${name}) (
      lib.filter (name: cases.refused.${name} ? says) (lib.attrNames cases.refused)
    );
    assert !lib.any accepts (lib.filter (bad: bad ? throws) (lib.attrValues cases.refused));
    pkgs.writeText "module-refuses" (toString (lib.attrNames cases.refused));

  one-box = machines "one-box";
  cluster = machines "cluster";
}
