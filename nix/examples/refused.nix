# Configurations that are refused, and how what is said of each begins: by an assertion, or (`throws`) by an
# option's type.
let
  one = settings: {
    services.kvlens = {
      enable = true;
      workers.m-0.engine = "mock";
    }
    // settings;
  };
  worker = told: {
    services.kvlens = {
      enable = true;
      workers.w-0 = told;
    };
  };
  at = "services.kvlens";
in
{
  "no workers" = {
    module.services.kvlens.enable = true;
    says = "${at}.workers is empty: name one";
  };
  "a worker without a number" = {
    module.services.kvlens = {
      enable = true;
      workers.blue.engine = "mock";
    };
    says = "${at}.workers.blue its name ends in no number of 0 to 99";
  };
  "two workers on one GPU" = {
    module.services.kvlens = {
      enable = true;
      workers.a-0 = {
        model = "/srv/m";
        gpus = [
          0
          1
        ];
      };
      workers.b-1 = {
        model = "/srv/m";
        gpus = [ 1 ];
      };
    };
    says = "${at}.workers.a-0.gpus and ${at}.workers.b-1.gpus both have 1";
  };
  "one GPU twice" = {
    module = worker {
      model = "/srv/m";
      gpus = [
        0
        "0"
      ];
    };
    says = "${at}.workers.w-0.gpus names one GPU twice";
  };
  "a worker on the frontend's port" = {
    module = worker {
      engine = "mock";
      listen = "127.0.0.1:8000";
    };
    says = "kvlens-engine@w-0.service (gate) is to listen on 127.0.0.1:8000 and kvlens-frontend.service (public) on 127.0.0.1:8000";
  };
  "a frontend on etcd's port of every address" = {
    module = one {
      settings.frontend = {
        host = "0.0.0.0";
        port = 2379;
      };
    };
    says = "on 127.0.0.1:2379: two listeners need two addresses";
  };
  "a secret in the store" = {
    module = one { settings.frontend.key_file = "${builtins.storeDir}/tenants"; };
    says = "${at}.settings.frontend.key_file is in the Nix store, which everybody can read";
  };
  "a worker's key in the store" = {
    module = worker {
      engine = "mock";
      listen = "10.0.0.5:8100";
      keyFile = "${builtins.storeDir}/gate";
    };
    says = "${at}.workers.w-0.keyFile is in the Nix store";
  };
  "a credential in the store" = {
    module = one { credentials.router.nats = "${builtins.storeDir}/nats"; };
    says = "${at}.credentials.router.nats is in the Nix store";
  };
  "NATS' passwords in the store" = {
    module = one { nats.configFile = "${builtins.storeDir}/nats.conf"; };
    says = "${at}.nats.configFile is in the Nix store";
  };
  "a credential of nobody" = {
    module = one { credentials.frontends.tenants = "/run/secrets/tenants"; };
    says = "${at}.credentials.frontends is no role: there are etcd, nats, router, frontend, engine, worker";
  };
  "podman without the container toolkit" = {
    module = worker {
      runtime = "podman";
      model = "/srv/m";
    };
    says = "${at}.workers.w-0.runtime is podman, which finds no GPU without hardware.nvidia-container-toolkit.enable";
  };
  "podman without an image" = {
    module = worker {
      runtime = "podman";
      engine = "command";
      extraArgs = [ "serve" ];
    };
    says = "${at}.workers.w-0.image is unset, its runtime podman and its engine command";
  };
  "an image that nothing uses" = {
    module = worker {
      image = "i@sha256:1";
      model = "/srv/m";
    };
    says = "${at}.workers.w-0.image is set and its runtime is native";
  };
  "the mock in podman" = {
    module = worker {
      engine = "mock";
      runtime = "podman";
      image = "i@sha256:1";
    };
    says = "${at}.workers.w-0.runtime is podman and its engine is mock";
  };
  "TensorRT-LLM" = {
    module = worker {
      engine = "tensorrt-llm";
      model = "/srv/m";
    };
    says = "${at}.workers.w-0.engine is tensorrt-llm, which kvlens cannot run yet";
  };
  "SGLang" = {
    module = worker {
      engine = "sglang";
      model = "/srv/m";
    };
    says = "${at}.workers.w-0.engine is sglang, which kvlens cannot run yet";
  };
  "vLLM without a model" = {
    module = worker { };
    says = "${at}.workers.w-0.model is unset and its engine is vllm";
  };
  "a model that is nowhere" = {
    module = worker { model = "qwen"; };
    says = "${at}.workers.w-0.model is qwen, which is neither in ${at}.models nor the path of a folder";
  };
  "a worker's model in a home" = {
    module = worker { model = "/home/me/qwen"; };
    says = "${at}.workers.w-0.model is /home/me/qwen, in a folder that is hidden from units";
  };
  "a model in a home" = {
    module = one { models.qwen.path = "/home/me/qwen"; };
    says = "${at}.models.qwen.path is /home/me/qwen, in a folder that is hidden from units";
  };
  "a model that is nothing" = {
    module = one { models.qwen = { }; };
    says = "${at}.models.qwen needs either a path or a repository";
  };
  "a model without its hash" = {
    module = one {
      models.qwen = {
        repository = "Qwen/Qwen3-VL-8B-Instruct";
        revision = "main";
      };
    };
    says = "${at}.models.qwen needs revision and hash beside its repository";
  };
  "a command without words" = {
    module = worker { engine = "command"; };
    says = "${at}.workers.w-0.extraArgs is empty and its engine is command";
  };
  "a gate for everybody" = {
    module = worker {
      engine = "mock";
      listen = "10.0.0.5:8100";
    };
    says = "${at}.workers.w-0.listen is reachable from other hosts and its keyFile is unset";
  };
  "a worker's name" = {
    module.services.kvlens = {
      enable = true;
      workers.GPU_0.engine = "mock";
    };
    says = "${at}.workers.GPU_0 its name must be 1 to 63 of a-z, 0-9 and -";
  };
  "an option that is not there" = {
    module = worker { engin = "mock"; };
    throws = "The option `${at}.workers.w-0.engin' does not exist";
  };
  "an engine of nobody" = {
    module = worker { engine = "ollama"; };
    throws = "A definition for option `${at}.workers.w-0.engine' is not of type `one of \"vllm\", \"mock\"";
  };
  "a GPU that is no number" = {
    module = worker { gpus = [ true ]; };
    throws = "A definition for option `${at}.workers.w-0.gpus";
  };
  "roles in the settings" = {
    module = one { settings.units.roles = [ "frontend" ]; };
    says = "${at}.settings.units.roles is said by ${at}.roles";
  };
  "workers in the settings" = {
    module = one { settings.workers.n-1.engine = "mock"; };
    says = "${at}.settings.workers is said by ${at}.workers";
  };
}
