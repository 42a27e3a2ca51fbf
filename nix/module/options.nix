# The options of services.kvlens.
packagesOf:
{ lib, pkgs, ... }:
let
  inherit (lib)
    literalExpression
    mkEnableOption
    mkOption
    types
    ;
  package =
    attribute: description:
    mkOption {
      type = types.package;
      default = (packagesOf pkgs).${attribute};
      defaultText = literalExpression "kvlens.packages.\${system}.${attribute}";
      inherit description;
    };
in
{
  options.services.kvlens = {
    enable = mkEnableOption "kvlens, which sends each request to the GPU that already holds its KV-cache blocks";

    package = package "kvlens" "kvlens itself.";

    roles = mkOption {
      type = types.listOf (
        types.enum [
          "control"
          "router"
          "frontend"
          "inference"
        ]
      );
      default = [
        "control"
        "router"
        "frontend"
        "inference"
      ];
      description = "What this host runs: etcd and NATS (control), a router, a frontend, and the workers.";
    };

    settings = mkOption {
      type = (pkgs.formats.toml { }).type;
      default = { };
      example = {
        router.mode = "kv";
        frontend.key_file = "credential:tenants";
      };
      description = ''
        What stands in kvlens.toml. `kvlens check-config --reference` shows every key with its meaning and
        default; the file is checked when the system is built. Files that hold secrets are named
        `credential:NAME`, see {option}`services.kvlens.credentials`. etcd and NATS of other hosts are
        named here too, as `etcd.endpoints` and `nats.servers`, with `ca_file`, `cert_file` and
        `cert_key_file` where they ask for certificates.
      '';
    };

    workers = mkOption {
      type = types.attrsOf (types.submodule ./worker.nix);
      default = { };
      example = literalExpression ''{ gpu-0 = { model = "qwen"; gpus = [ 0 ]; }; }'';
      description = "The workers of this host, by name: an engine each, and the agent beside it.";
    };

    models = mkOption {
      type = types.attrsOf (types.submodule ./model.nix);
      default = { };
      example = literalExpression ''{ qwen.path = "/srv/models/Qwen3-VL-8B-Instruct"; }'';
      description = "The models that workers may name.";
    };

    credentials = mkOption {
      type = types.attrsOf (types.attrsOf types.str);
      default = { };
      example = {
        frontend.tenants = "/run/secrets/kvlens-tenants";
      };
      description = ''
        Files with secrets, by the role that is given them (etcd, nats, router, frontend, engine or worker)
        and by the name under which the settings ask for them, as `credential:tenants`. systemd gives each
        to the units of that role alone. Files in `/etc/kvlens/credentials/ROLE` need not be named here.
      '';
    };

    vllm.package = package "vllm" "vLLM, for native engines of that kind: any package with `bin/vllm`.";

    etcd.package = mkOption {
      type = types.package;
      default = pkgs.etcd;
      defaultText = literalExpression "pkgs.etcd";
      description = "etcd, where this host runs it.";
    };

    etcd.listen = mkOption {
      type = types.str;
      default = "127.0.0.1";
      example = "10.0.0.1";
      description = ''
        Address of this host at which its etcd is asked, beside 127.0.0.1. It has neither users nor TLS: across
        a network that others use, run etcd by other means and name it in the settings.
      '';
    };

    nats.package = mkOption {
      type = types.package;
      default = pkgs.nats-server;
      defaultText = literalExpression "pkgs.nats-server";
      description = "The NATS server, where this host runs it.";
    };

    nats.configFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/run/secrets/nats.conf";
      description = ''
        The NATS server's configuration, where it listens for other hosts: `nats-rack.conf` of kvlens' units
        with its passwords filled in. Unset, it listens on 127.0.0.1 and has no users.
      '';
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Whether other hosts may reach what listens beyond loopback, the admin listeners excepted.";
    };

    nvidia = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether to set up NVIDIA's driver, its persistence daemon and, where a worker runs in podman, the
        container toolkit. The driver is unfree: `nixpkgs.config` has to allow it.
      '';
    };
  };
}
