"""Below the SDKs: what arrives at the socket."""

import socket
import urllib.parse

from conftest import raw

LIST = b"GET /2015-03-31/functions HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Connection:
    """One connection. What arrives beyond an answer is kept for the next one."""

    def __init__(self, server):
        address = urllib.parse.urlsplit(server.endpoint)
        self.socket = socket.create_connection((address.hostname, address.port), timeout=60)
        self.sendall = self.socket.sendall
        self.close = self.socket.close
        self.rest = b""

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.close()

    def more(self):
        piece = self.socket.recv(65536)
        self.rest += piece
        return piece

    def answer(self):
        """One answer: status line and headers, and the body."""
        while b"\r\n\r\n" not in self.rest and self.more():
            pass
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        while len(self.rest) < length and self.more():
            pass
        body, self.rest = self.rest[:length], self.rest[length:]
        return head, body


def send(server, data):
    with Connection(server) as connection:
        connection.sendall(data)
        return connection.answer()


def test_garbage_is_refused_and_harms_nobody(server):
    assert send(server, b"\0\1\2\3 garbage\r\n\r\n")[0].startswith(b"HTTP/1.1 400")
    huge = b"GET /2015-03-31/functions HTTP/1.1\r\nHost: localhost\r\nX-Huge: " + b"x" * 200_000 + b"\r\n\r\n"
    assert send(server, huge)[0].startswith(b"HTTP/1.1 431")
    assert raw(server, "GET", "/2015-03-31/functions")[0] == 200


def test_connections_serve_many_requests(server):
    with Connection(server) as connection:
        for _ in range(3):
            connection.sendall(LIST)
            assert connection.answer()[0].startswith(b"HTTP/1.1 200")
        # A body that is too large is read and thrown away: the connection goes on.
        path = b"/2015-03-31/functions/missing/invocations"
        head = b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8000000\r\n\r\n"
        connection.sendall(head + b"1" * 8_000_000)
        assert connection.answer()[0].startswith(b"HTTP/1.1 413")
        connection.sendall(b"PUT /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc" + LIST)
        assert connection.answer()[0].startswith(b"HTTP/1.1 404")
        assert connection.answer()[0].startswith(b"HTTP/1.1 200")


def test_chunked_bodies_are_taken(server):
    head = b"POST /2015-03-31/functions/missing/invocations HTTP/1.1\r\nHost: localhost\r\n"
    data = head + b"Transfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\n4\r\n\":1}\r\n0\r\n\r\n"
    status, body = send(server, data)
    assert status.startswith(b"HTTP/1.1 404") and b"Function not found" in body


def test_a_body_that_breaks_off_harms_nobody(server):
    with Connection(server) as connection:
        connection.sendall(b"POST /2015-03-31/functions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    assert raw(server, "GET", "/2015-03-31/functions")[0] == 200


def test_many_idle_connections_are_no_burden(server):
    idle = [Connection(server) for _ in range(200)]
    try:
        assert raw(server, "GET", "/2015-03-31/functions")[0] == 200
        idle[150].sendall(LIST)
        assert idle[150].answer()[0].startswith(b"HTTP/1.1 200")
    finally:
        for connection in idle:
            connection.close()


def test_every_answer_has_a_request_id(server):
    seen = set()
    for method, path in [("GET", "/2015-03-31/functions"), ("GET", "/x"), ("GET", "/_gust/v1/stats"), ("GET", "/_gust/v1/x")]:
        request_id = raw(server, method, path)[1]["x-amzn-requestid"]
        assert request_id and request_id not in seen
        seen.add(request_id)


def test_many_large_bodies_wait_for_room(server):
    """More bodies at once than are held in memory: none is lost, each waits for its turn."""
    import concurrent.futures

    body = b'"' + b"x" * 6_000_000 + b'"'
    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        path = "/2015-03-31/functions/missing/invocations"
        answers = list(pool.map(lambda _: raw(server, "POST", path, body)[0], range(150)))
    assert set(answers) == {404}
