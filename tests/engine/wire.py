"""HTTP to kvlens and to engines, over TCP and unix sockets: whole answers and streams."""

import http.client
import json
import socket
import urllib.parse

ANSWER_SECONDS_MAX = 60


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection to a unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=ANSWER_SECONDS_MAX)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Answer:
    """A whole answer."""

    def __init__(self, response):
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    def json(self):
        return json.loads(self.body)

    def good(self):
        """Itself, if its status is 200."""
        assert self.status == 200, f"status {self.status}: {self.body[:500]!r}"
        return self


def connection(address):
    """A new connection to `http://host:port` or `unix:/path`."""
    if address.startswith("unix:"):
        return UnixConnection(address.removeprefix("unix:"))
    url = urllib.parse.urlsplit(address)
    return http.client.HTTPConnection(url.hostname, url.port, timeout=ANSWER_SECONDS_MAX)


def send(address, method, path, body=None):
    """Sends one request; the connection and the answer, whose head has come."""
    opened = connection(address)
    headers = {"content-type": "application/json", "connection": "close"}
    text = None if body is None else json.dumps(body).encode()
    try:
        opened.request(method, path, text, headers)
        return opened, opened.getresponse()
    except BaseException:
        opened.close()
        raise


def get(address, path):
    opened, response = send(address, "GET", path)
    try:
        return Answer(response)
    finally:
        opened.close()


def post(address, path, body=None):
    opened, response = send(address, "POST", path, body)
    try:
        return Answer(response)
    finally:
        opened.close()


class Stream:
    """A streamed answer, event by event."""

    def __init__(self, address, path, body):
        self.connection, self.response = send(address, "POST", path, body)
        self.status = self.response.status
        self.headers = {name.lower(): value for name, value in self.response.getheaders()}

    def next(self):
        """The next event's data; None at the end."""
        while line := self.response.readline():
            if line.startswith(b"data: "):
                return line.removeprefix(b"data: ").strip().decode()
        return None

    def chunks(self):
        """The chunks that are left, up to `[DONE]`, which must come."""
        while (data := self.next()) != "[DONE]":
            assert data is not None, "the stream was cut"
            chunk = json.loads(data)
            assert "error" not in chunk, f"the stream failed: {data}"
            yield chunk

    def close(self):
        """Goes away, as a client that loses interest."""
        # The response has the socket too, and only the last of both closes it.
        self.response.close()
        self.connection.close()


def metric(address, name):
    """A metric of an engine or of kvlens, summed over its labels."""
    page = get(address, "/metrics").good().body.decode()
    lines = (line for line in page.splitlines() if line.partition("{")[0].split(" ")[0] == name)
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)
