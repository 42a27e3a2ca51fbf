# An engine out of the image that kvlens pins, and beside it one that is a command line of one's own.
{
  services.kvlens = {
    enable = true;
    nvidia = true;
    workers.gpu-0 = {
      runtime = "podman";
      model = "/srv/models/Qwen3-VL-8B-Instruct";
      gpus = [ 0 ];
    };
    workers.gpu-1 = {
      engine = "command";
      name = "Qwen3-VL-8B-Instruct";
      model = "/srv/models/Qwen3-VL-8B-Instruct";
      gpus = [ 1 ];
      extraArgs = [
        "/opt/vllm/bin/vllm"
        "serve"
        "{model}"
        "--uds"
        "{uds}"
      ];
    };
  };
}
