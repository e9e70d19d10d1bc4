"""Tests of the Python runtime: the real bootstrap in a process of its own, spoken to over a socket pair.

Run with `python3 -m unittest discover runtimes/python3.11`.
"""

import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
REQUEST_ID = "5b1c1f2e-0000-4000-8000-000000000001"
ARN = "arn:aws:lambda:us-east-1:000000000000:function:f"

FUNCTION, EVENT = 1, 2
RESPONSE, ERROR, INIT_ERROR, READY = 1, 2, 3, 4


class Runtime:
    """A bootstrap that runs, and our end of its socket."""

    def __init__(self, files, handler="app.handler", environment=None):
        self.dir = tempfile.TemporaryDirectory()
        for name, content in files.items():
            path = os.path.join(self.dir.name, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write(textwrap.dedent(content))
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(30)
        self.process = subprocess.Popen(
            [sys.executable, "-B", os.path.join(HERE, "bootstrap.py")],
            env={"GUST_DEVICE": f"fd:{theirs.fileno()}", "PATH": os.environ["PATH"]},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        self.ready()
        function = {"handler": handler, "environment": environment or {}, "task_root": self.dir.name}
        self.send(FUNCTION, json.dumps(function))

    def send(self, kind, meta, body=b"", flags=0, pieces=1):
        meta = meta.encode()
        message = struct.pack("<IIII", kind, len(meta), len(body), flags) + meta + body
        step = max(1, len(message) // pieces)
        for at in range(0, len(message), step):
            self.socket.sendall(message[at : at + step])

    def read(self, count):
        data = bytearray()
        while len(data) < count:
            chunk = self.socket.recv(count - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return bytes(data)

    def answer(self):
        kind, count, handler_ns = struct.unpack("<IIQ", self.read(16))
        return kind, self.read(count), handler_ns

    def ready(self):
        kind, body, _ = self.answer()
        assert (kind, body) == (READY, b""), (kind, body)

    def event(self, payload, *, trace="", client="", restore=None, deadline=None, pieces=1):
        deadline = deadline or int(time.time() * 1000) + 10_000
        fields = [REQUEST_ID, str(deadline), ARN, trace]
        if restore:
            entropy, changes = restore
            fields += [entropy.hex(), json.dumps(changes)]
        fields.append(client)
        self.send(EVENT, "\n".join(fields), payload, 1 if restore else 0, pieces)

    def call(self, payload, **fields):
        """Sends an event; returns the answer's kind and its content."""
        self.event(json.dumps(payload).encode(), **fields)
        kind, body, _ = self.answer()
        return kind, json.loads(body)

    def close(self):
        """Ends the runtime; returns its status and what it wrote."""
        self.socket.close()
        out, err = self.process.communicate(timeout=30)
        self.dir.cleanup()
        return self.process.returncode, out.decode(), err.decode()


class Case(unittest.TestCase):
    def start(self, source, **options):
        runtime = Runtime({"app.py": source}, **options)
        self.addCleanup(lambda: runtime.process.poll() is None and runtime.close())
        return runtime

    def started(self, source, **options):
        runtime = self.start(source, **options)
        runtime.ready()
        return runtime

    def check_init_error(self, runtime, kind, message):
        answer, body, _ = runtime.answer()
        self.assertEqual(answer, INIT_ERROR)
        document = json.loads(body)
        self.assertEqual(document["errorType"], kind)
        self.assertRegex(document["errorMessage"], message)
        self.assertEqual(document["requestId"], "")
        status, out, _ = runtime.close()
        self.assertEqual(status, 1)
        self.assertTrue(out.startswith(f"[ERROR] {kind}"), out)
        return document


class Answers(Case):
    def test_events_are_answered_one_after_the_other(self):
        runtime = self.started("count = 0\ndef handler(event, context):\n global count\n count += 1\n return [event, count]")
        self.assertEqual(runtime.call({"a": 1}), (RESPONSE, [{"a": 1}, 1]))
        self.assertEqual(runtime.call("é\ud83d\ude00"), (RESPONSE, ["é😀", 2]))
        status, out, err = runtime.close()
        self.assertEqual((status, out, err), (0, "", ""))

    def test_messages_of_every_size_arrive_whole(self):
        runtime = self.started("def handler(event, context):\n return event")
        for size in (0, 1, 65_000, 65_536, 1_000_000, 6_000_000):
            payload = "x" * size
            self.assertEqual(runtime.call(payload), (RESPONSE, payload))
        self.assertEqual(runtime.call("in pieces", pieces=50), (RESPONSE, "in pieces"))
        self.assertEqual(runtime.call("y" * 100_000, pieces=7), (RESPONSE, "y" * 100_000))

    def test_handler_time_is_measured(self):
        runtime = self.started("import time\ndef handler(event, context):\n time.sleep(0.05)")
        runtime.event(b"{}")
        kind, body, handler_ns = runtime.answer()
        self.assertEqual((kind, body), (RESPONSE, b"null"))
        self.assertGreaterEqual(handler_ns, 50_000_000)

    def test_responses_are_encoded_as_aws_does(self):
        runtime = self.started(
            """
            import decimal
            def handler(event, context):
                if event == "bytes":
                    return b'\\x00raw'
                return [decimal.Decimal("1.5"), True, None, (1, 2), "é", float("nan")]
            """
        )
        runtime.event(b'"x"')
        _, body, _ = runtime.answer()
        self.assertEqual(body, rb'[1.5, true, null, [1, 2], "\u00e9", NaN]')
        runtime.event(b'"bytes"')
        self.assertEqual(runtime.answer()[1], b"\x00raw")

    def test_what_json_cannot_hold_is_a_marshal_error(self):
        runtime = self.started("def handler(event, context):\n return object()")
        kind, document = runtime.call(1)
        self.assertEqual(kind, ERROR)
        self.assertEqual(document["errorType"], "Runtime.MarshalError")
        self.assertEqual(
            document["errorMessage"], "Unable to marshal response: Object of type object is not JSON serializable"
        )
        self.assertEqual((document["requestId"], document["stackTrace"]), (REQUEST_ID, []))

    def test_an_event_that_is_no_json_is_an_unmarshal_error(self):
        runtime = self.started("def handler(event, context):\n return 1")
        runtime.event(b"{")
        kind, body, _ = runtime.answer()
        self.assertEqual((kind, json.loads(body)["errorType"]), (ERROR, "Runtime.UnmarshalError"))
        self.assertEqual(runtime.call(1), (RESPONSE, 1))


class Errors(Case):
    def test_an_exception_has_lambdas_shape_and_log(self):
        runtime = self.started(
            """
            def inner():
                raise ValueError("no such thing")
            def handler(event, context):
                inner()
            """
        )
        kind, document = runtime.call(1)
        self.assertEqual(kind, ERROR)
        self.assertEqual(list(document), ["errorMessage", "errorType", "requestId", "stackTrace"])
        self.assertEqual((document["errorMessage"], document["errorType"]), ("no such thing", "ValueError"))
        self.assertEqual(document["requestId"], REQUEST_ID)
        path = os.path.join(runtime.dir.name, "app.py")
        self.assertEqual(
            document["stackTrace"],
            [
                f'  File "{path}", line 5, in handler\n    inner()\n',
                f'  File "{path}", line 3, in inner\n    raise ValueError("no such thing")\n',
            ],
        )
        _, out, _ = runtime.close()
        lines = out.splitlines()
        self.assertEqual(lines[:2], ["[ERROR] ValueError: no such thing", "Traceback (most recent call last):"])
        self.assertEqual(lines[2], f'\u00a0\u00a0File "{path}", line 5, in handler')
        self.assertEqual(len(lines), 6)

    def test_a_process_that_exits_in_the_handler_ends_with_its_status(self):
        runtime = self.started("import sys\ndef handler(event, context):\n print('bye', end='')\n sys.exit(7)")
        runtime.event(b"1")
        self.assertRaises(EOFError, runtime.answer)
        status, out, _ = runtime.close()
        self.assertEqual((status, out), (7, "bye"))

    def test_a_module_that_is_missing(self):
        runtime = self.start("", handler="nowhere.handler")
        self.check_init_error(
            runtime, "Runtime.ImportModuleError", "^Unable to import module 'nowhere': No module named 'nowhere'$"
        )

    def test_a_module_whose_import_fails(self):
        runtime = self.start("import does_not_exist")
        self.check_init_error(runtime, "Runtime.ImportModuleError", "^Unable to import module 'app': No module named")

    def test_a_function_that_is_missing(self):
        runtime = self.start("x = 1")
        self.check_init_error(runtime, "Runtime.HandlerNotFound", "^Handler 'handler' missing on module 'app'$")

    def test_a_handler_string_without_a_dot(self):
        runtime = self.start("", handler="handler")
        self.check_init_error(
            runtime, "Runtime.MalformedHandlerName", r"^Bad handler 'handler': not enough values to unpack"
        )

    def test_a_builtin_module_as_handler(self):
        runtime = self.start("", handler="sys.exit")
        self.check_init_error(
            runtime, "Runtime.BuiltInModuleConflict", "^Cannot use built-in module sys as a handler module$"
        )

    def test_a_syntax_error(self):
        runtime = self.start("def handler(:\n")
        document = self.check_init_error(
            runtime, "Runtime.UserCodeSyntaxError", r"^Syntax error in module 'app': invalid syntax \(app.py, line 1\)$"
        )
        self.assertRegex(document["stackTrace"][0], r'^  File ".*app.py" Line 1\n    def handler\(:')

    def test_an_exception_at_import(self):
        runtime = self.start("\nraise RuntimeError('at import')")
        document = self.check_init_error(runtime, "RuntimeError", "^at import$")
        self.assertRegex(document["stackTrace"][-1], r'app.py", line 2, in <module>')
        # Only the runtime's own frames are left out; the import machinery's stay, as on AWS.
        self.assertNotIn("bootstrap.py", document["stackTrace"][0])

    def test_an_exit_at_import(self):
        runtime = self.start("import sys\nsys.exit(3)")
        self.assertRaises(EOFError, runtime.answer)
        self.assertEqual(runtime.close()[0], 3)


class Surroundings(Case):
    def test_the_context_has_aws_attributes(self):
        runtime = self.started(
            """
            def handler(event, context):
                client = context.client_context
                return [
                    context.aws_request_id, context.invoked_function_arn, context.function_name,
                    context.function_version, context.memory_limit_in_mb, context.log_group_name,
                    context.log_stream_name, context.tenant_id, context.identity.cognito_identity_id,
                    context.get_remaining_time_in_millis(), client and [client.custom, client.env, client.client.app_title],
                    repr(context)[:40],
                ]
            """,
            environment={
                "AWS_LAMBDA_FUNCTION_NAME": "f",
                "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
                "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128",
                "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/f",
                "AWS_LAMBDA_LOG_STREAM_NAME": "stream",
            },
        )
        _, values = runtime.call(1)
        self.assertEqual(values[:9], [REQUEST_ID, ARN, "f", "$LATEST", "128", "/aws/lambda/f", "stream", None, None])
        self.assertTrue(0 < values[9] <= 10_000)
        self.assertIsNone(values[10])
        self.assertEqual(values[11], "LambdaContext([aws_request_id=5b1c1f2e-0"[:40])
        client = {"custom": {"a": "\n"}, "env": {"b": 1}, "client": {"app_title": "t"}}
        _, values = runtime.call(1, client=json.dumps(client, indent=1), deadline=1)
        self.assertEqual(values[9:11], [0, [{"a": "\n"}, {"b": 1}, "t"]])
        kind, document = runtime.call(1, client="{")
        self.assertEqual((kind, document["errorType"]), (ERROR, "Runtime.LambdaContextUnmarshalError"))

    def test_environment_time_zone_and_path(self):
        runtime = self.started(
            """
            import os, sys, time
            at_import = os.environ["AT_IMPORT"]
            def handler(event, context):
                return [at_import, time.localtime(0).tm_hour, sys.path, os.getcwd(), os.environ.get("GUST_DEVICE"),
                        os.environ.get("_X_AMZN_TRACE_ID")]
            """,
            environment={"AT_IMPORT": "here", "TZ": "UTC-5", "PYTHONPATH": "/opt/mine"},
        )
        _, values = runtime.call(1, trace="Root=1-2-3")
        self.assertEqual(values[:2], ["here", 5])
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.assertEqual(
            values[2][:4],
            [runtime.dir.name, "/opt/mine", f"/opt/python/lib/{version}/site-packages", "/opt/python"],
        )
        self.assertEqual(values[2][-1], HERE)
        self.assertEqual(values[3:], [os.path.realpath(runtime.dir.name), None, "Root=1-2-3"])
        self.assertIsNone(runtime.call(1)[1][5])

    def test_handlers_in_directories(self):
        for handler in ("dir/sub/mod.func", "dir.sub.mod.func"):
            runtime = Runtime({"dir/sub/mod.py": "def func(event, context):\n return 'found'"}, handler=handler)
            runtime.ready()
            self.assertEqual(runtime.call(1), (RESPONSE, "found"))
            runtime.close()

    def test_output_leaves_line_by_line_and_before_the_answer(self):
        runtime = self.started("import sys\ndef handler(event, context):\n print('one')\n sys.stdout.write('two')")
        runtime.call(1)
        self.assertEqual(os.read(runtime.process.stdout.fileno(), 4096), b"one\ntwo")

    def test_a_handler_may_close_its_output(self):
        runtime = self.started("import sys\ndef handler(event, context):\n sys.stdout.close()\n return 1")
        self.assertEqual(runtime.call(1), (RESPONSE, 1))
        self.assertEqual(runtime.call(1)[0], RESPONSE)

    def test_log_records_have_lambdas_form(self):
        runtime = self.started(
            """
            import logging
            log = logging.getLogger("mine")
            def handler(event, context):
                log.warning("careful %s", event)
                log.info("not shown")
                logging.getLogger().setLevel(logging.INFO)
                log.info("shown")
            """
        )
        runtime.call("x")
        lines = runtime.close()[1].splitlines()
        stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
        self.assertRegex(lines[0], rf"^\[WARNING\]\t{stamp}\t{REQUEST_ID}\tcareful x$")
        self.assertRegex(lines[1], rf"^\[INFO\]\t{stamp}\t{REQUEST_ID}\tshown$")
        self.assertEqual(len(lines), 2)


class Restores(Case):
    def test_restored_instances_differ_where_they_must(self):
        source = """
            import random, tempfile, uuid
            random.seed(1)
            next(tempfile._get_candidate_names())
            uuid._last_timestamp = 1 << 62
            def handler(event, context):
                import os
                return [random.random(), next(tempfile._get_candidate_names()), uuid.uuid1().time < 1 << 62,
                        os.environ["AWS_LAMBDA_LOG_STREAM_NAME"], context.log_stream_name]
        """
        values = []
        for number in (1, 2):
            runtime = self.started(source, environment={"AWS_LAMBDA_LOG_STREAM_NAME": "snapshot"})
            stream = f"stream-{number}"
            _, value = runtime.call(1, restore=(bytes([number] * 32), {"AWS_LAMBDA_LOG_STREAM_NAME": stream}))
            self.assertEqual(value[2:], [True, stream, stream])
            values.append(value)
            _, second = runtime.call(1)
            self.assertNotEqual(second[0], value[0])
        self.assertNotEqual(values[0][0], values[1][0])
        self.assertNotEqual(values[0][1], values[1][1])

    def test_the_same_entropy_gives_the_same_numbers(self):
        numbers = []
        for _ in range(2):
            runtime = self.started("import random\ndef handler(event, context):\n return random.random()")
            numbers.append(runtime.call(1, restore=(b"\x07" * 32, {}))[1])
        self.assertEqual(numbers[0], numbers[1])

    def test_hooks_run_after_a_restore_in_order(self):
        runtime = self.started(
            """
            from snapshot_restore_py import register_after_restore, register_before_snapshot
            calls = []
            @register_after_restore
            def first():
                calls.append("first")
            register_after_restore(calls.append, "second")
            register_before_snapshot(calls.append, "never: a socket has no snapshots")
            def handler(event, context):
                return calls
            """
        )
        self.assertEqual(runtime.call(1, restore=(bytes(32), {}))[1], ["first", "second"])
        self.assertEqual(runtime.call(1)[1], ["first", "second"])

    def test_a_hook_that_fails_is_the_calls_error_and_the_end(self):
        runtime = self.started(
            """
            from snapshot_restore_py import register_after_restore
            @register_after_restore
            def fail():
                raise KeyError("lost")
            def handler(event, context):
                return 1
            """
        )
        kind, document = runtime.call(1, restore=(bytes(32), {}))
        self.assertEqual((kind, document["errorType"], document["requestId"]), (ERROR, "KeyError", REQUEST_ID))
        self.assertEqual(runtime.close()[0], 65)


class Ends(Case):
    def test_the_end_of_the_stream_is_a_quiet_end(self):
        runtime = self.started("def handler(event, context):\n return 1")
        self.assertEqual(runtime.close(), (0, "", ""))

    def test_the_end_in_the_middle_of_a_message_too(self):
        runtime = self.started("def handler(event, context):\n return 1")
        runtime.socket.sendall(struct.pack("<IIII", EVENT, 10, 10, 0) + b"abc")
        self.assertEqual(runtime.close(), (0, "", ""))


class Cost(Case):
    def test_a_small_event_costs_one_read_and_one_write(self):
        """Counted by the kernel: system calls of the runtime between two events."""
        runtime = self.started("def handler(event, context):\n return event")
        runtime.call({"a": 1})

        def counts():
            # The last write is counted before the runtime sleeps in its next read.
            state = None
            while state != "S":
                with open(f"/proc/{runtime.process.pid}/stat", encoding="ascii") as file:
                    state = file.read().rsplit(")", 1)[1].split()[0]
                self.assertNotIn(state, ("Z", "X"))
            with open(f"/proc/{runtime.process.pid}/io", encoding="ascii") as file:
                fields = dict(re.findall(r"(\w+): (\d+)", file.read()))
            return int(fields["syscr"]), int(fields["syscw"])

        before = counts()
        for _ in range(10):
            runtime.call({"a": 1})
        after = counts()
        self.assertEqual((after[0] - before[0], after[1] - before[1]), (10, 10))


if __name__ == "__main__":
    unittest.main()
