# services.kvlens.workers.<name>: what kvlens.toml has in [workers.NAME].
{ lib, ... }:
let
  inherit (lib) mkOption types;
  unset =
    type: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };
in
{
  options = {
    engine = mkOption {
      type = types.enum [
        "vllm"
        "mock"
        "command"
        "tensorrt-llm"
        "sglang"
      ];
      default = "vllm";
      description = "Which engine it runs. Neither TensorRT-LLM nor SGLang can be run yet: they are refused.";
    };

    runtime = mkOption {
      type = types.enum [
        "native"
        "podman"
      ];
      default = "native";
      description = "Where the engine's program comes from: this host, or an image.";
    };

    image = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "docker.io/vllm/vllm-openai@sha256:…";
      description = "The image that podman runs, best with its digest; unset, for vllm the one that kvlens pins.";
    };

    model = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "qwen";
      description = "Which of {option}`services.kvlens.models` it serves, or the folder of one.";
    };

    name = unset types.str "The model's base name, the same on every host; unset, that of the model.";

    gpus = mkOption {
      type = types.listOf (types.either types.ints.unsigned types.str);
      default = [ ];
      example = [ "GPU-5f2c0d1e-0000-0000-0000-000000000000" ];
      description = "GPUs that the engine may see, by UUID or number; none leaves the choice to it.";
    };

    driverMin = unset types.str "The oldest NVIDIA driver that its engine is started with; unset, for a vLLM that kvlens pins the one that it needs.";

    ranks = mkOption {
      type = types.ints.between 1 1024;
      default = 1;
      description = "Data-parallel ranks of the engine.";
    };

    extraArgs = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [
        "--max-model-len"
        "32768"
      ];
      description = "Further arguments of the engine; of a `command` its whole command line.";
    };

    mediaDir = unset types.str "Folder whose files the engine may read as images.";

    listen = unset types.str "Address and port of the engine's gate; unset, 127.0.0.1 and 8100 plus the number that the name ends in.";

    keyFile = unset types.str "File of the gate's bearer keys, which it needs beyond loopback.";

    agentListen = unset types.str "Address and port of the agent; unset, 127.0.0.1 and 8200 plus the number that the name ends in.";

    agentAdvertise = unset types.str "Where other hosts reach the agent, as `http://10.0.0.5:8200`.";

    labels = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "What routers may prefer the worker by, see `router.preferred_labels`.";
    };
  };
}
