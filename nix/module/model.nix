# services.kvlens.models.<name>: a folder of this host, or one that is fetched before it is served.
{ name, lib, ... }:
let
  inherit (lib) mkOption types;
  unset =
    example: description:
    mkOption {
      type = types.nullOr types.str;
      default = null;
      inherit example description;
    };
in
{
  options = {
    path = unset "/srv/models/Qwen3-VL-8B-Instruct" "Folder of the model. Those below /home are hidden from engines.";

    repository = unset "Qwen/Qwen3-VL-8B-Instruct" ''
      Repository that the model is fetched from, once, before its engines start; they then need no network.
    '';

    revision = unset "0c351dd01ed87e9c1b53cbc748cba10e6187ff3b" "The commit of the repository.";

    hash = unset "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" ''
      What the fetched folder must be, as `nix hash path` says it. With a wrong one the model is refused, and
      the right one shown.
    '';

    name = mkOption {
      type = types.str;
      default = name;
      defaultText = lib.literalExpression "its name here";
      description = "The name that requests know it by, the same on every host of a cluster.";
    };
  };
}
