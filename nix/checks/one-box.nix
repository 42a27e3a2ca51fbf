# One box with two mock engines: it answers, keeps what it knows, and mends.
{ module }:
{
  name = "kvlens-one-box";

  nodes.box =
    { pkgs, ... }:
    {
      imports = [ module ];
      environment.systemPackages = [ pkgs.curl ];
      services.kvlens = {
        enable = true;
        workers.mock-0.engine = "mock";
        workers.mock-1.engine = "mock";
        settings.frontend.expose_routing = true;
      };
    };

  testScript = ''
    import json

    prompt = "What stands in this sentence is long enough for some blocks. " * 12
    body = json.dumps({"model": "demo", "max_tokens": 8, "messages": [{"role": "user", "content": prompt}]})

    def ask():
        return box.succeed(
            f"curl --fail --silent --show-error -i -H 'content-type: application/json' -d '{body}' "
            "http://127.0.0.1:8000/v1/chat/completions"
        ).lower()

    def ready():
        box.wait_until_succeeds("curl --fail --silent http://127.0.0.1:8000/ready", timeout=120)

    box.start()
    ready()

    with subtest("a prompt finds its blocks again"):
        first = ask()
        worker = next(line for line in first.splitlines() if line.startswith("x-kvlens-worker:"))
        box.sleep(2)
        second = ask()
        assert worker in second, second
        assert "x-kvlens-overlap: 0/" not in second, second

    with subtest("a killed engine and a killed agent come back"):
        box.succeed("systemctl kill --signal=KILL kvlens-engine@mock-0 kvlens-worker@mock-0")
        ask()
        box.wait_for_unit("kvlens-engine@mock-0.service")
        box.wait_for_unit("kvlens-worker@mock-0.service")

    with subtest("etcd and NATS may go and come"):
        box.succeed("systemctl stop kvlens-etcd kvlens-nats")
        box.succeed("systemctl start kvlens-etcd kvlens-nats")
        ready()
        ask()

    with subtest("a reboot changes nothing"):
        box.shutdown()
        box.start()
        ready()
        ask()
  '';
}
