# etcd and NATS of others, behind TLS.
{
  services.kvlens = {
    enable = true;
    roles = [
      "router"
      "frontend"
      "inference"
    ];
    workers.mock-0.engine = "mock";
    settings = {
      etcd = {
        endpoints = [
          "https://etcd-0.rack:2379"
          "https://etcd-1.rack:2379"
          "https://etcd-2.rack:2379"
        ];
        ca_file = "/etc/ssl/rack-ca.pem";
        cert_file = "/etc/ssl/kvlens.pem";
        cert_key_file = "credential:etcd-key";
      };
      nats = {
        servers = [
          "tls://nats-0.rack:4222"
          "tls://nats-1.rack:4222"
        ];
        ca_file = "/etc/ssl/rack-ca.pem";
        creds_file = "credential:nats";
      };
    };
    credentials = {
      frontend = {
        etcd-key = "/run/secrets/etcd-key";
        nats = "/run/secrets/nats-frontend";
      };
      router = {
        etcd-key = "/run/secrets/etcd-key";
        nats = "/run/secrets/nats-router";
      };
      worker = {
        etcd-key = "/run/secrets/etcd-key";
        nats = "/run/secrets/nats-worker";
      };
    };
  };
}
