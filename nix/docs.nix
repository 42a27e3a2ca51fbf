# The references: every option of the module, every key of kvlens.toml, every module of the program.
{
  lib,
  pkgs,
  kvlens,
  module,
}:
let
  inherit
    (lib.evalModules {
      modules = [
        module
        # Only what the module declares is documented; what it sets of NixOS is not looked at.
        { _module.check = false; }
      ];
      specialArgs = { inherit pkgs; };
    })
    options
    ;
  reference = pkgs.nixosOptionsDoc {
    options = { inherit (options) services; };
    warningsAreErrors = true;
  };
in
pkgs.runCommand "kvlens-docs" { } ''
  mkdir -p $out/share/doc
  cp ${reference.optionsCommonMark} $out/share/doc/options.md
  ${kvlens}/bin/kvlens check-config --reference > $out/share/doc/kvlens.toml
  cp -r ${kvlens.checks.doc}/share/doc $out/share/doc/kvlens
''
