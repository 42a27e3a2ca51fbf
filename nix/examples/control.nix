# The host of a cluster that clients come to: etcd, NATS, a router and a frontend, and no GPU.
{
  services.kvlens = {
    enable = true;
    roles = [
      "control"
      "router"
      "frontend"
    ];
    openFirewall = true;
    etcd.listen = "10.0.0.1";
    nats.configFile = "/run/secrets/nats.conf";
    settings = {
      units.router = "a";
      media.enabled = true;
      frontend.host = "0.0.0.0";
      frontend.key_file = "credential:tenants";
      discovery.key_file = "credential:gates";
      # The router's; the frontend has another, below.
      nats.user = "router-a";
      nats.password_file = "credential:nats";
    };
    credentials = {
      frontend = {
        tenants = "/run/secrets/kvlens-tenants";
        gates = "/run/secrets/kvlens-gates";
        nats = "/run/secrets/nats-frontend";
      };
      router = {
        gates = "/run/secrets/kvlens-gates";
        nats = "/run/secrets/nats-router";
      };
    };
  };
  systemd.services.kvlens-frontend.environment.KVLENS_NATS_USER = "frontend-a";
}
