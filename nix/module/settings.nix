# What the options say of kvlens.toml: its tables [units] and [workers], and who is asked on this host.
{ config, lib, ... }:
let
  inherit (lib)
    elem
    filterAttrs
    mapAttrs
    mkDefault
    mkIf
    ;
  cfg = config.services.kvlens;
  folders = import ./folders.nix cfg.models;

  # What podman runs unless told.
  pins = builtins.fromJSON (builtins.readFile ../pins.json);
  pinned =
    told:
    if told.runtime == "podman" && told.engine == "vllm" then
      "${pins.vllm_image.image}@${pins.vllm_image.digest}"
    else
      null;

  # Keys at their defaults are left out.
  worker =
    _: told:
    let
      model = cfg.models.${toString told.model} or null;
    in
    filterAttrs (_: value: value != null && value != [ ]) {
      inherit (told)
        engine
        runtime
        ranks
        labels
        listen
        ;
      image = if told.image == null then pinned told else told.image;
      model = if model == null then told.model else folders.${told.model};
      name = if told.name == null && model != null then model.name else told.name;
      gpus = map toString told.gpus;
      args = told.extraArgs;
      media_dir = told.mediaDir;
      key_file = told.keyFile;
      agent_listen = told.agentListen;
      agent_advertise = told.agentAdvertise;
    };
in
{
  config.services.kvlens.settings = mkIf cfg.enable {
    units.roles = cfg.roles;
    workers = mapAttrs worker cfg.workers;
    etcd.endpoints = mkIf (elem "control" cfg.roles) (mkDefault [ "http://127.0.0.1:2379" ]);
    nats.servers = mkIf (elem "control" cfg.roles) (mkDefault [ "nats://127.0.0.1:4222" ]);
    frontend.router = mkIf (elem "router" cfg.roles) (mkDefault "remote");
  };
}
