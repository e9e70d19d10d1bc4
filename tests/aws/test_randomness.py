"""A snapshot is restored many times; nothing that must be random may come twice."""

from textwrap import dedent as strip

from conftest import call, create, make_zip, needs, private

SOURCE = strip("""
    import hashlib, hmac, os, random, secrets, ssl, tempfile, uuid

    # Made before the snapshot, as a library would at import.
    generator = random.Random()
    system = random.SystemRandom()
    tls = ssl.create_default_context()
    directory = tempfile.TemporaryDirectory()

    def client_hello():
        # The random bytes and the session id that a TLS client begins with; its key share lies behind them.
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        connection = tls.wrap_bio(incoming, outgoing, server_hostname="example.com")
        try:
            connection.do_handshake()
        except ssl.SSLWantReadError:
            pass
        hello = outgoing.read()
        assert hello[0] == 22 and hello[5] == 1 and len(hello) > 200
        return hello[11:43].hex(), hello[44:76].hex(), hashlib.sha256(hello[76:]).hexdigest()

    def handler(event, context):
        hello = client_hello()
        return {
            "random": [random.random(), random.getrandbits(64)],
            "shuffle": random.sample(range(10**9), 4),
            "uuid1": str(uuid.uuid1()),
            "tls random": hello[0],
            "tls session": hello[1],
            "tls key share": hello[2],
            "secrets choice": secrets.randbelow(2**100),
            "random bytes": random.randbytes(12).hex(),
            "getrandom": os.getrandom(16).hex(),
            "device": open("/dev/urandom", "rb").read(16).hex(),
            "named file": tempfile.NamedTemporaryFile().name,
            "new directory": tempfile.mkdtemp(dir=directory.name),
            "uuid4": str(uuid.uuid4()),
            "secrets": secrets.token_hex(16),
            "system": system.getrandbits(128),
            "openssl": ssl.RAND_bytes(16).hex(),
            "kernel": os.urandom(16).hex(),
            "temporary": tempfile.mktemp(),
            "process": open("/proc/sys/kernel/random/uuid").read().strip(),
        }
""")


def distinct(answers):
    for source in answers[0]:
        seen = [repr(answer[source]) for answer in answers]
        assert len(set(seen)) == len(seen), f"{source} came twice"


def test_a_thousand_restores_of_one_snapshot_are_a_thousand_instances(client, name):
    """With `fresh` memory every call starts from the snapshot, on whatever instance it runs."""
    create(client, name, SOURCE, Tags={"gust:memory": "fresh"})
    distinct([call(client, name)["Payload"] for _ in range(1000)])


def test_cold_starts_are_different_instances(server, client, name):
    create(client, name, SOURCE)
    answers = []
    for _ in range(20):
        private(server, f"functions/{name}/evict", "POST")
        answers.append(call(client, name)["Payload"])
    distinct(answers)


NODE_SOURCE = strip("""
    const crypto = require("node:crypto");
    const { randomUUID, randomInt } = crypto;

    // Drawn before the snapshot, as a library would at import, so that the stores behind them are filled.
    const early = [randomUUID(), globalThis.crypto.randomUUID(), randomInt(1000), Math.random(), crypto.randomBytes(8)];
    const { random } = Math;

    exports.handler = async () => ({
      random: [Math.random(), Math.random()],
      kept: [random(), random()],
      uuid: crypto.randomUUID(),
      bound: randomUUID(),
      web: globalThis.crypto.randomUUID(),
      fresh: crypto.randomUUID({ disableEntropyCache: true }),
      bytes: crypto.randomBytes(16).toString("hex"),
      values: Buffer.from(globalThis.crypto.getRandomValues(new Uint8Array(16))).toString("hex"),
      integers: Array.from({ length: 8 }, () => randomInt(2 ** 40)),
      later: await new Promise((done, failed) => crypto.randomInt(0, 2 ** 47, (error, value) => error ? failed(error) : done(value))),
      key: crypto.generateKeyPairSync("ec", { namedCurve: "P-256" }).publicKey.export({ type: "spki", format: "der" }).toString("hex"),
    });
""")


def create_node(client, name, **options):
    needs("nodejs20.x")
    code = {"ZipFile": make_zip({"index.js": NODE_SOURCE})}
    create(client, name, Runtime="nodejs20.x", Handler="index.handler", Code=code, MemorySize=256, **options)


def test_two_hundred_restores_of_one_snapshot_of_node(client, name):
    create_node(client, name, Tags={"gust:memory": "fresh"})
    distinct([call(client, name)["Payload"] for _ in range(200)])


def test_cold_starts_of_node_are_different_instances(server, client, name):
    create_node(client, name)
    answers = []
    for _ in range(20):
        private(server, f"functions/{name}/evict", "POST")
        answers.append(call(client, name)["Payload"])
    distinct(answers)
