# A host of the same cluster that has GPUs and nothing else; its model is fetched before it is served.
{
  services.kvlens = {
    enable = true;
    roles = [ "inference" ];
    nvidia = true;
    openFirewall = true;
    models.qwen = {
      repository = "Qwen/Qwen3-VL-8B-Instruct";
      revision = "0c351dd01ed87e9c1b53cbc748cba10e6187ff3b";
      hash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    };
    workers.rack-1-gpu-0 = {
      model = "qwen";
      gpus = [ "GPU-5f2c0d1e-0000-0000-0000-000000000000" ];
      listen = "10.0.0.5:8100";
      keyFile = "credential:gate";
      agentListen = "10.0.0.5:8200";
      agentAdvertise = "http://gpu-host-1:8200";
      mediaDir = "/dev/shm/media";
      labels = [ "rack-1" ];
    };
    settings = {
      etcd.endpoints = [ "http://10.0.0.1:2379" ];
      nats.servers = [ "nats://10.0.0.1:4222" ];
      nats.user = "agent-rack-1-gpu-0";
      nats.password_file = "credential:nats";
      worker.key_file = "credential:gate";
    };
    credentials.engine.gate = "/run/secrets/kvlens-gate";
    credentials.worker = {
      gate = "/run/secrets/kvlens-gate";
      nats = "/run/secrets/nats-agent";
    };
  };
}
