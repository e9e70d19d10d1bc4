"""A snapshot is restored many times; nothing that must be random may come twice."""

from textwrap import dedent as strip

from conftest import call, create, private

SOURCE = strip("""
    import hashlib, hmac, os, random, secrets, ssl, tempfile, uuid

    # Made before the snapshot, as a library would at import.
    generator = random.Random()
    system = random.SystemRandom()

    def handler(event, context):
        return {
            "random": [random.random(), random.getrandbits(64)],
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
