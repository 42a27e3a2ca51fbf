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

  pins = builtins.fromJSON (builtins.readFile ../pins.json);
  # The pin that an engine is from; null where it is from elsewhere.
  pinOf =
    told:
    if told.engine != "vllm" || told.image != null then
      null
    else if told.runtime == "podman" then
      pins.vllm_image
    else
      pins.vllm;

  # Keys at their defaults are left out.
  worker =
    _: told:
    let
      model = cfg.models.${toString told.model} or null;
      pin = pinOf told;
      pinned = if pin ? digest then "${pin.image}@${pin.digest}" else null;
    in
    filterAttrs (_: value: value != null && value != [ ]) {
      inherit (told)
        engine
        runtime
        ranks
        labels
        listen
        ;
      image = if told.image == null then pinned else told.image;
      model = if model == null then told.model else folders.${told.model};
      name = if told.name == null && model != null then model.name else told.name;
      gpus = map toString told.gpus;
      driver_min = if told.driverMin == null then pin.driver_min or null else told.driverMin;
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
