# What `nix run` starts.
{ pkgs }:
let
  inherit (pkgs) kvlens lib;
  driver = builtins.readFile ./driver.sh;
  pins = builtins.fromJSON (builtins.readFile ./pins.json);
  app = name: description: more: text: {
    type = "app";
    program = lib.getExe (
      pkgs.writeShellApplication {
        name = "kvlens-${name}";
        inherit text;
        runtimeInputs = [
          kvlens
          pkgs.coreutils
          pkgs.gnused
        ]
        ++ more;
      }
    );
    meta = { inherit description; };
  };
  # What an engine compiles as it starts it compiles with these; etcd and NATS are for a cluster on loopback.
  beside = [
    pkgs.etcd
    pkgs.gcc
    pkgs.kvlens-vllm
    pkgs.nats-server
    pkgs.ninja
  ];
in
rec {
  default = up;
  up = app "up" "Serves a model on this box: an engine on each GPU, behind an OpenAI API" beside ''
    ${driver}
    # The oldest that the vLLM of this closure runs with.
    export KVLENS_ENGINE_DRIVER_MIN="''${KVLENS_ENGINE_DRIVER_MIN:-${pins.vllm.driver_min}}"
    exec kvlens up "$@"
  '';
  doctor =
    app "doctor" "Checks this host, etcd, NATS, agents and engines: what is wrong, and the next step"
      [ pkgs.gnused ]
      ''
        ${driver}
        exec kvlens doctor "$@"
      '';
  bench =
    app "bench" "Compares ways of choosing workers on a made-up trace of requests with images" [ ]
      ''
        exec kvlens replay --synthetic image "$@"
      '';
  update-pins =
    app "update-pins"
      "Bumps vLLM: writes nix/pins.json and nix/vllm anew, in a clone of this repository"
      [
        pkgs.gnupatch
        pkgs.python3
        pkgs.uv
      ]
      ''
        [ -f nix/update-pins ] || {
          echo "run this in a clone of kvlens: it writes nix/pins.json and nix/vllm" >&2
          exit 2
        }
        exec python3 nix/update-pins "$@"
      '';
}
