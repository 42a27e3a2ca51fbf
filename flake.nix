{
  description = "kvlens: serves vision-language models, each request on the GPU that already holds its prompt's blocks";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";
    crane.url = "github:ipetkov/crane";
    rust-overlay = {
      url = "github:oxalica/rust-overlay";
      inputs.nixpkgs.follows = "nixpkgs";
    };
  };

  outputs =
    {
      self,
      nixpkgs,
      crane,
      rust-overlay,
    }:
    let
      inherit (nixpkgs) lib;

      each = make: lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (system: make (pkgsOf system));
      pkgsOf =
        system:
        import nixpkgs {
          inherit system;
          overlays = [ self.overlays.default ];
          # vLLM's closure has CUDA in it, and appliances have NVIDIA's driver.
          config.allowUnfree = true;
        };

      # What the module installs unless told otherwise: built from this flake's own inputs.
      packagesOf = pkgs: self.packages.${pkgs.stdenv.hostPlatform.system};
      host =
        module:
        lib.nixosSystem {
          modules = [
            self.nixosModules.default
            {
              nixpkgs.hostPlatform = "x86_64-linux";
              # NVIDIA's driver.
              nixpkgs.config.allowUnfree = true;
            }
            module
          ];
        };
    in
    {
      overlays.default = import ./nix/overlay.nix {
        inherit crane rust-overlay;
        revision = self.shortRev or self.dirtyShortRev or "unknown";
      };

      packages = each (pkgs: {
        inherit (pkgs) kvlens;
        default = pkgs.kvlens;
        vllm = pkgs.kvlens-vllm;
        units = pkgs.kvlens-units;
        docs = pkgs.callPackage ./nix/docs.nix { module = self.nixosModules.default; };
      });

      apps = each (pkgs: import ./nix/apps.nix { inherit pkgs; });

      nixosModules = {
        kvlens = import ./nix/module packagesOf;
        default = self.nixosModules.kvlens;
      };

      nixosConfigurations = {
        demo = host ./nix/demo.nix;
        appliance = host ./nix/appliance.nix;
      };

      checks = each (
        pkgs:
        import ./nix/checks {
          inherit pkgs;
          inherit (lib) nixosSystem;
          module = self.nixosModules.default;
          packages = packagesOf pkgs;
        }
      );

      devShells = each (pkgs: {
        default = pkgs.callPackage ./nix/dev-shell.nix { };
      });

      formatter = each (pkgs: pkgs.nixfmt-tree);

      templates = {
        default = {
          path = ./templates/default;
          description = "A NixOS host with GPUs that serves a model";
        };
        metal = {
          path = ./templates/metal;
          description = "The same on a bare machine, its disks laid out and installed over SSH";
        };
      };
    };
}
