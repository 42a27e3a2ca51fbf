"""etcd's side of the cluster: its process, and what is registered there."""

import base64
import json
import urllib.request

import net
from processes import Process
from wait import until

PORT = 2379
ADDRESS = f"http://{net.ADDRESSES[net.CONTROL]}:{PORT}"
PREFIX = "/kvlens/v1/workers/"


class Etcd(Process):
    """A cluster of one member."""

    def __init__(self, site):
        self.data = site.make_folder("etcd")
        words = ["etcd", "--name", "one", "--data-dir", self.data]
        words += ["--listen-client-urls", ADDRESS, "--advertise-client-urls", ADDRESS]
        # Its peers' listener is of no use here, and wants another port than another etcd's.
        words += ["--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "warn"]
        words += ["--logger", "zap"]
        super().__init__(site, "etcd", net.CONTROL, words)

    def ready(self):
        until("etcd answers", lambda: registered() is not None, 15)
        return self

    def lose(self):
        """Its data is gone."""
        assert not self.is_running()
        self.site.make_folder("etcd")


def registered():
    """The records in etcd by worker, with the lease of each; `None` where etcd does not answer."""
    after = PREFIX[:-1] + chr(ord(PREFIX[-1]) + 1)
    key, end = (base64.b64encode(text.encode()).decode() for text in (PREFIX, after))
    question = json.dumps({"key": key, "range_end": end}).encode()
    try:
        with urllib.request.urlopen(f"{ADDRESS}/v3/kv/range", question, timeout=2) as answer:
            found = json.load(answer).get("kvs", [])
    except OSError:
        return None
    records = {}
    for entry in found:
        name = base64.b64decode(entry["key"]).decode().removeprefix(PREFIX)
        record = json.loads(base64.b64decode(entry["value"]))
        records[name] = (record, int(entry.get("lease", 0)))
    return records
