"""A TLS server and its clients in one process, with a certificate of its own."""

import hashlib
import http.client
import http.server
import socket
import ssl
import threading

import test

# Certificates that the standard library's own tests use.
DIRECTORY = test.__path__[0]
KEY = f"{DIRECTORY}/keycert3.pem"
AUTHORITY = f"{DIRECTORY}/pycacert.pem"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        answer = hashlib.sha256(body).hexdigest().encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(KEY)
server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()

trusting = ssl.create_default_context(cafile=AUTHORITY)
trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
trusting.check_hostname = False
for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
    trusting.minimum_version = trusting.maximum_version = version
    connection = http.client.HTTPSConnection("127.0.0.1", server.server_port, context=trusting, timeout=30)
    for size in (1, 1000, 300_000):
        body = bytes(n % 251 for n in range(size))
        connection.request("POST", "/", body)
        answer = connection.getresponse().read().decode()
        print(version.name, connection.sock.version(), size, answer == hashlib.sha256(body).hexdigest())
    connection.close()

try:
    with socket.create_connection(("127.0.0.1", server.server_port)) as raw:
        ssl.create_default_context().wrap_socket(raw, server_hostname="localhost")
except ssl.SSLCertVerificationError as error:
    print("an unknown authority:", error.verify_message)
server.shutdown()
print(ssl.OPENSSL_VERSION)
