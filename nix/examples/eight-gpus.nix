# Eight GPUs: four engines of two GPUs each, tensor-parallel.
{ lib, ... }:
{
  services.kvlens = {
    enable = true;
    nvidia = true;
    models.qwen.path = "/srv/models/Qwen3-VL-32B-Instruct";
    workers = lib.genAttrs [ "gpu-0" "gpu-2" "gpu-4" "gpu-6" ] (
      name:
      let
        first = lib.toInt (lib.removePrefix "gpu-" name);
      in
      {
        model = "qwen";
        gpus = [
          first
          (first + 1)
        ];
        extraArgs = [
          "--tensor-parallel-size"
          "2"
        ];
      }
    );
    settings.media.enabled = true;
  };
}
