# What this host serves. Every option: `nix build kvlens#docs`, every key of the settings:
# `kvlens check-config --reference`.
{
  services.kvlens = {
    enable = true;
    nvidia = true;
    models.qwen.path = "/srv/models/Qwen3-VL-8B-Instruct";
    workers.gpu-0 = {
      model = "qwen";
      gpus = [ 0 ];
    };
    settings.media.enabled = true;
  };

  # NVIDIA's driver and the CUDA libraries of vLLM are unfree.
  nixpkgs.config.allowUnfree = true;
  system.stateVersion = "26.05";
}
