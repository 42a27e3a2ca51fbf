# kvlens and what belongs to it, among the packages of nixpkgs.
{
  crane,
  rust-overlay,
  revision,
}:
final: prev:
let
  # The compiler that rust-toolchain.toml names, the same as outside of Nix.
  toolchain =
    pkgs: (rust-overlay.lib.mkRustBin { } pkgs).fromRustupToolchainFile ../rust-toolchain.toml;
in
{
  kvlens = final.callPackage ./package.nix {
    craneLib = (crane.mkLib final).overrideToolchain toolchain;
    inherit revision;
  };
  kvlens-units = final.callPackage ./units.nix { };
  kvlens-vllm = final.callPackage ./vllm/env.nix { };
  kvlens-toolchain = toolchain prev;
}
