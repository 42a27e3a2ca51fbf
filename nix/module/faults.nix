# What cannot hold together in one worker or one model: whether it is so, the option, and what is said of it.
{
  at,
  config,
  lib,
}:
let
  inherit (builtins) elem match;
  inherit (lib) hasPrefix unique;
  cfg = config.services.kvlens;

  runs = [
    "vllm"
    "mock"
    "command"
  ];
  isOpen = address: address != null && match "(127[.].*|\\[::1]):.*" address == null;

  # Units see nothing of these, or have their own.
  isHidden =
    path:
    path != null
    && lib.any (folder: hasPrefix folder path) [
      "/home/"
      "/root/"
      "/run/user/"
      "/tmp/"
      "/var/tmp/"
    ];

  gpusOf = worker: map toString worker.gpus;
in
{
  worker = name: worker: [
    [
      (match "[a-z0-9-]{1,63}" name == null)
      ""
      "its name must be 1 to 63 of a-z, 0-9 and -"
    ]
    [
      (
        match "(.*[^0-9])?0*[0-9]{1,2}" name == null
        && (worker.listen == null || worker.agentListen == null)
      )
      ""
      "its name ends in no number of 0 to 99, which would be its ports': set listen and agentListen"
    ]
    [
      (!elem worker.engine runs)
      "engine"
      "is ${worker.engine}, which kvlens cannot run yet: take vllm, mock or command"
    ]
    [
      (worker.runtime == "podman" && worker.engine == "command" && worker.image == null)
      "image"
      "is unset, its runtime podman and its engine command: name the image that podman runs"
    ]
    [
      (worker.runtime == "native" && worker.image != null)
      "image"
      "is set and its runtime is native: nothing would use it"
    ]
    [
      (worker.runtime == "podman" && worker.engine == "mock")
      "runtime"
      "is podman and its engine is mock, which is in no image: take native"
    ]
    [
      (worker.runtime == "podman" && !config.hardware.nvidia-container-toolkit.enable)
      "runtime"
      "is podman, which finds no GPU without hardware.nvidia-container-toolkit.enable: set it, or ${at}.nvidia"
    ]
    [
      (worker.engine == "vllm" && worker.model == null)
      "model"
      "is unset and its engine is vllm: name one of ${at}.models, or a folder"
    ]
    [
      (worker.model != null && !cfg.models ? ${toString worker.model} && !hasPrefix "/" worker.model)
      "model"
      "is ${toString worker.model}, which is neither in ${at}.models nor the path of a folder"
    ]
    [
      (isHidden worker.model)
      "model"
      "is ${toString worker.model}, in a folder that is hidden from units: move it, to /srv for example"
    ]
    [
      (worker.engine == "command" && worker.extraArgs == [ ])
      "extraArgs"
      "is empty and its engine is command: put the command line there"
    ]
    [
      (isOpen worker.listen && worker.keyFile == null)
      "listen"
      "is reachable from other hosts and its keyFile is unset: anybody there could ask the engine"
    ]
    [
      (unique (gpusOf worker) != gpusOf worker)
      "gpus"
      "names one GPU twice"
    ]
  ];
  model = _: model: [
    [
      ((model.path == null) == (model.repository == null))
      ""
      "needs either a path or a repository"
    ]
    [
      (isHidden model.path)
      "path"
      "is ${toString model.path}, in a folder that is hidden from units: move it, to /srv for example"
    ]
    [
      (model.repository != null && (model.revision == null || model.hash == null))
      ""
      "needs revision and hash beside its repository, so that it stays what it is"
    ]
  ];
}
