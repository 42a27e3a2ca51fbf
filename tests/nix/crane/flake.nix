# What stands for crane: the names that package.nix calls, each of which makes a package of a name alone.
{
  outputs = _: {
    mkLib =
      pkgs:
      let
        rest =
          told:
          removeAttrs told [
            "cargoArtifacts"
            "meta"
            "passthru"
            "src"
          ];
        make =
          name: told:
          pkgs.runCommand name (rest told) "${told.src}"
          // (told.passthru or { })
          // {
            meta = told.meta or { };
          };
      in
      {
        overrideToolchain = _: {
          crateNameFromCargoToml = { cargoToml }: {
            pname = (builtins.fromTOML (builtins.readFile cargoToml)).package.name;
            inherit ((builtins.fromTOML (builtins.readFile cargoToml)).package) version;
          };
          buildDepsOnly = make "kvlens-deps";
          buildPackage = make "kvlens";
          cargoClippy = make "kvlens-clippy";
          cargoDeny = make "kvlens-deny";
          cargoDoc = make "kvlens-doc";
          cargoFmt = make "kvlens-fmt";
          cargoTest = make "kvlens-test";
        };
      };
  };
}
