# A host that clients come to, and two with a mock engine each: workers die, etcd starts anew, a host boots.
{ module }:
let
  # Tests have no secrets.
  keys = builtins.toFile "keys" "cluster:key-of-the-test\n";
  # NATS without users, for every host: the network of this test is its own.
  bus = builtins.toFile "nats.conf" ''
    listen: "0.0.0.0:4222"
    http: "127.0.0.1:8222"
    max_payload: 1MB
  '';
  put = {
    systemd.tmpfiles.rules = [
      "C /run/keys-of-the-test 0600 root root - ${keys}"
      "C /run/nats.conf 0600 root root - ${bus}"
    ];
  };

  inference =
    name:
    { nodes, ... }:
    let
      address = nodes.${name}.networking.primaryIPAddress;
    in
    {
      imports = [
        module
        put
      ];
      services.kvlens = {
        enable = true;
        roles = [ "inference" ];
        openFirewall = true;
        workers.${name} = {
          engine = "mock";
          listen = "${address}:8100";
          keyFile = "credential:keys";
          agentListen = "${address}:8200";
        };
        settings = {
          etcd.endpoints = [ "http://control:2379" ];
          nats.servers = [ "nats://control:4222" ];
          worker.key_file = "credential:keys";
        };
        credentials.engine.keys = "/run/keys-of-the-test";
        credentials.worker.keys = "/run/keys-of-the-test";
      };
    };
in
{
  name = "kvlens-cluster";

  nodes = {
    control =
      { nodes, pkgs, ... }:
      {
        imports = [
          module
          put
        ];
        environment.systemPackages = [
          pkgs.curl
          pkgs.jq
        ];
        services.kvlens = {
          enable = true;
          roles = [
            "control"
            "router"
            "frontend"
          ];
          openFirewall = true;
          etcd.listen = nodes.control.networking.primaryIPAddress;
          nats.configFile = "/run/nats.conf";
          settings.discovery.key_file = "credential:keys";
          credentials.frontend.keys = "/run/keys-of-the-test";
          credentials.router.keys = "/run/keys-of-the-test";
        };
      };
    gpu-a = inference "gpu-a";
    gpu-b = inference "gpu-b";
  };

  testScript = ''
    import json

    body = json.dumps({"model": "demo", "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]})

    def ask():
        control.succeed(
            f"curl --fail --silent --show-error -H 'content-type: application/json' -d '{body}' "
            "http://127.0.0.1:8000/v1/chat/completions"
        )

    def healthy():
        control.wait_until_succeeds(
            "curl --fail --silent http://127.0.0.1:8001/kvlens/v1/workers "
            "| jq --exit-status '[.workers[] | select(.verdict == \"healthy\" and .cause == null)] | length == 2'",
            timeout=120,
        )

    start_all()
    control.wait_until_succeeds("curl --fail --silent http://127.0.0.1:8000/ready", timeout=180)
    healthy()
    ask()

    with subtest("a worker that is killed costs no request"):
        gpu_a.succeed("systemctl kill --signal=KILL kvlens-engine@gpu-a kvlens-worker@gpu-a")
        for _ in range(20):
            ask()
        gpu_a.wait_for_unit("kvlens-engine@gpu-a.service")
        gpu_a.wait_for_unit("kvlens-worker@gpu-a.service")

    with subtest("etcd starts anew"):
        control.succeed("systemctl restart kvlens-etcd")
        ask()
        healthy()

    with subtest("a host boots again"):
        gpu_b.crash()
        ask()
        gpu_b.start()
        gpu_b.wait_for_unit("kvlens-engine@gpu-b.service")
        healthy()
        ask()
  '';
}
