{
  description = "A bare machine with GPUs that serves a model, installed over SSH";

  inputs = {
    # Where you have kvlens from.
    kvlens.url = "github:OWNER/kvlens";
    nixpkgs.follows = "kvlens/nixpkgs";
    disko = {
      url = "github:nix-community/disko";
      inputs.nixpkgs.follows = "nixpkgs";
    };
    nixos-anywhere = {
      url = "github:nix-community/nixos-anywhere";
      inputs.nixpkgs.follows = "nixpkgs";
      inputs.disko.follows = "disko";
    };
  };

  outputs =
    {
      kvlens,
      nixpkgs,
      disko,
      nixos-anywhere,
      ...
    }:
    let
      system = "x86_64-linux";
    in
    {
      nixosConfigurations.metal = nixpkgs.lib.nixosSystem {
        modules = [
          disko.nixosModules.disko
          kvlens.nixosModules.default
          ./configuration.nix
          ./disks.nix
          { nixpkgs.hostPlatform = system; }
        ];
      };

      # `nix run . -- root@ADDRESS`, in this folder, takes over a machine that runs any Linux, and wipes its disk.
      apps.${system}.default = {
        type = "app";
        program = toString (
          nixpkgs.legacyPackages.${system}.writeShellScript "install" ''
            exec ${nixos-anywhere.packages.${system}.nixos-anywhere}/bin/nixos-anywhere \
              --flake .#metal --target-host "$@"
          ''
        );
        meta.description = "Installs this host on a machine, by SSH; all on its disk is lost";
      };
    };
}
