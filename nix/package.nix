# kvlens as the appliance runs it; its `passthru.checks` share what was compiled for it.
{
  lib,
  craneLib,
  cargo-deny,
  etcd,
  git,
  nats-server,
  pkg-config,
  protobuf,
  revision,
  systemd,
}:
let
  common = {
    inherit (craneLib.crateNameFromCargoToml { cargoToml = ../Cargo.toml; }) pname version;
    src = lib.fileset.toSource {
      root = ../.;
      fileset = lib.fileset.unions [
        ../.clippy.toml
        ../.deny.toml
        ../Cargo.lock
        ../Cargo.toml
        ../benches
        ../build.rs
        ../rust-toolchain.toml
        ../src
        ../systemd
        ../tests
      ];
    };
    strictDeps = true;
    nativeBuildInputs = [
      pkg-config
      protobuf
    ];
    buildInputs = [ systemd ];
    cargoExtraArgs = "--locked --features appliance";
  };
  cargoArtifacts = craneLib.buildDepsOnly common;
  built = common // {
    inherit cargoArtifacts;
  };
in
craneLib.buildPackage (
  built
  // {
    # What `kvlens --version` shows; crates that we depend on need not be built again for it.
    KVLENS_REVISION = revision;
    # Tests are a check of their own.
    doCheck = false;
    meta = {
      description = "Serves vision-language models, each request on the GPU that already holds its prompt's blocks";
      license = lib.licenses.asl20;
      mainProgram = "kvlens";
      platforms = lib.platforms.linux;
    };
    passthru.checks = {
      fmt = craneLib.cargoFmt { inherit (common) pname version src; };
      clippy = craneLib.cargoClippy (
        built // { cargoClippyExtraArgs = "--all-targets -- --deny warnings"; }
      );
      doc = craneLib.cargoDoc (built // { RUSTDOCFLAGS = "--deny warnings"; });
      tests = craneLib.cargoTest (
        built
        // {
          nativeCheckInputs = [
            etcd
            git
            nats-server
            systemd
          ];
        }
      );
      deny = craneLib.cargoDeny {
        inherit (common) pname version src;
        nativeBuildInputs = [ cargo-deny ];
      };
    };
  }
)
