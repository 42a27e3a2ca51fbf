# One box with two GPUs, a worker on each; clients with a key may come from other hosts.
{
  services.kvlens = {
    enable = true;
    nvidia = true;
    openFirewall = true;
    models.qwen.path = "/srv/models/Qwen3-VL-8B-Instruct";
    workers.gpu-0.model = "qwen";
    workers.gpu-0.gpus = [ 0 ];
    workers.gpu-1.model = "qwen";
    workers.gpu-1.gpus = [ 1 ];
    settings.media.enabled = true;
    settings.frontend.host = "0.0.0.0";
    settings.frontend.key_file = "credential:tenants";
    credentials.frontend.tenants = "/run/secrets/kvlens-tenants";
  };
}
