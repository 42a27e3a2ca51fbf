# What stands for nixpkgs among the flake's inputs.
{
  outputs =
    _:
    let
      inherit (import ./lib.nix) lib;
      evaluate =
        modules:
        let
          host = lib.evalModules {
            modules = [ ./options.nix ] ++ modules;
            specialArgs = {
              pkgs = import ./. { inherit (host.config.nixpkgs.hostPlatform) system; };
              modulesPath = toString ./nixos;
            };
          };
        in
        host;
    in
    {
      lib = lib // {
        nixosSystem = { modules, ... }: evaluate modules;
      };
    };
}
