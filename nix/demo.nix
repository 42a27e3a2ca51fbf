# A container that runs all of kvlens with two mock engines: `nixos-container create kvlens --flake .#demo`.
{
  boot.isContainer = true;
  networking.hostName = "kvlens-demo";
  system.stateVersion = "26.05";
  services.kvlens = {
    enable = true;
    openFirewall = true;
    workers.mock-0.engine = "mock";
    workers.mock-1.engine = "mock";
    settings = {
      media.enabled = true;
      frontend.host = "0.0.0.0";
      frontend.expose_routing = true;
    };
  };
}
