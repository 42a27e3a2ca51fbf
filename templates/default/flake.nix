{
  description = "A host with GPUs that serves a model";

  # Where you have kvlens from.
  inputs.kvlens.url = "github:OWNER/kvlens";

  outputs =
    { kvlens, ... }:
    {
      nixosConfigurations.box = kvlens.inputs.nixpkgs.lib.nixosSystem {
        modules = [
          kvlens.nixosModules.default
          ./configuration.nix
          # From `nixos-generate-config`.
          ./hardware-configuration.nix
        ];
      };
    };
}
