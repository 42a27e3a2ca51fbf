# What the machine is, and what it serves.
{ modulesPath, ... }:
{
  imports = [ "${modulesPath}/installer/scan/not-detected.nix" ];

  boot.loader.systemd-boot.enable = true;
  boot.loader.efi.canTouchEfiVariables = true;
  networking.hostName = "metal";
  services.openssh.enable = true;
  # Yours, or nobody comes in again.
  users.users.root.openssh.authorizedKeys.keys = [ ];

  services.kvlens = {
    enable = true;
    nvidia = true;
    openFirewall = true;
    models.qwen.path = "/srv/models/Qwen3-VL-8B-Instruct";
    workers.gpu-0 = {
      model = "qwen";
      gpus = [ 0 ];
    };
    settings = {
      media.enabled = true;
      frontend.host = "0.0.0.0";
      frontend.key_file = "credential:tenants";
    };
  };

  # NVIDIA's driver and the CUDA libraries of vLLM are unfree.
  nixpkgs.config.allowUnfree = true;
  system.stateVersion = "26.05";
}
