"""HTTP questions of the run itself, to admin listeners and agents."""

import http.client
import json
import urllib.parse

ANSWER_SECONDS_MAX = 5


def get(address, path, key=None, seconds=ANSWER_SECONDS_MAX):
    """Status and body of a page; `None` as status where nobody answers."""
    return request("GET", address, path, key, seconds)


def request(method, address, path, key=None, seconds=ANSWER_SECONDS_MAX):
    url = urllib.parse.urlsplit(address)
    opened = http.client.HTTPConnection(url.hostname, url.port, timeout=seconds)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        opened.request(method, path, headers=headers)
        response = opened.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        return None, str(error).encode()
    finally:
        opened.close()


def workers(address, key=None):
    """The entries of a list of workers; none where nobody answers."""
    status, body = get(address, "/kvlens/v1/workers", key)
    return json.loads(body)["workers"] if status == 200 else []


def metric(address, name):
    """A metric, summed over its labels; 0 where nobody answers."""
    status, body = get(address, "/metrics")
    page = body.decode() if status == 200 else ""
    lines = (line for line in page.splitlines() if line.partition("{")[0].split(" ")[0] == name)
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)
