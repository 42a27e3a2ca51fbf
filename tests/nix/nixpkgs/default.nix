# A stand-in for nixpkgs: packages that are names alone, and what the flake asks of them. What a package is
# made of is evaluated with it, so that a fault in there shows.
{
  system ? "x86_64-linux",
  overlays ? [ ],
  ...
}:
let
  inherit (import ./lib.nix) lib;
  inherit (builtins) functionArgs intersectAttrs toJSON;

  # Nothing is ever built of it.
  package = name: of: {
    type = "derivation";
    inherit name system;
    inherit
      (derivation {
        name = builtins.replaceStrings [ "@" ] [ "-" ] name;
        builder = "/bin/sh";
        of = toJSON of;
        inherit system;
      })
      drvPath
      outPath
      outputName
      ;
    meta = { };
  };

  names = [
    "binutils"
    "cargo-deny"
    "coreutils"
    "deadnix"
    "etcd"
    "gcc"
    "curl"
    "git"
    "gnupatch"
    "gnused"
    "jq"
    "makeWrapper"
    "nats-server"
    "ninja"
    "nix"
    "nixfmt"
    "nixfmt-tree"
    "patchelf"
    "pkg-config"
    "podman"
    "protobuf"
    "python3"
    "rdma-core"
    "statix"
    "systemd"
    "uv"
    "zlib"
  ];
  own = lib.genAttrs names (name: package name null) // {
    inherit lib system;
    stdenv = {
      hostPlatform = { inherit system; };
      cc = package "cc" null // {
        cc = package "cc-unwrapped" null // {
          lib = package "cc-lib" null;
        };
      };
      mkDerivation =
        told:
        package "${told.pname}-${told.version}" (
          removeAttrs told [
            "passthru"
            "meta"
          ]
        )
        // {
          inherit (told) meta;
        };
    };
    addDriverRunpath.driverLink = "/run/opengl-driver";
    fetchPypi = row: package "${row.pname}-${row.version}.whl" row;
    python312 = package "python3" null // {
      pythonVersion = "3.12";
      sitePackages = "lib/python3.12/site-packages";
      interpreter = "/bin/python3";
    };
    python3Packages.huggingface-hub = package "huggingface-hub" null;
    runtimeShell = "/bin/sh";
    formats.toml = _: {
      type = lib.types.anything;
      generate = package;
    };
    writeText = name: text: package name text // { inherit text; };
    linkFarm =
      name: entries:
      package name (map (entry: entry // { path = "${entry.path}"; }) entries) // { inherit entries; };
    runCommand =
      name: told: script:
      package name [
        told
        script
      ];
    writeShellScript = package;
    writeShellApplication = told: package told.name told;
    mkShell = package "shell";
    callPackage =
      file: more:
      let
        make = if lib.isFunction file then file else import file;
      in
      make (intersectAttrs (functionArgs make) pkgs // more);
    nixosOptionsDoc = { options, ... }: {
      optionsCommonMark = package "options.md" (lib.attrNames options.services.kvlens);
    };
    testers.runNixOSTest =
      test:
      let
        node =
          name: module:
          (lib.evalModules {
            modules = [
              ./options.nix
              module
            ];
            specialArgs = { inherit nodes pkgs; };
          }).config;
        nodes = lib.mapAttrs node test.nodes;
      in
      package "vm-test-${test.name}" [
        test.testScript
        (map (host: "${host.system.build.toplevel}") (lib.attrValues nodes))
      ];
  };
  pkgs = lib.foldl' (found: overlay: found // overlay pkgs found) own overlays // {
    inherit pkgs;
  };
in
pkgs
