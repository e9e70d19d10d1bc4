"""Functions in JavaScript: what AWS's Node.js 20 runtime does with handlers, errors, logs and the event loop."""

import base64
import json
import pathlib
import re
import shutil
import subprocess
from textwrap import dedent

import pytest

import server as gust
from conftest import call, create, make_zip, needs, private

HERE = pathlib.Path(__file__).parent
RUNTIME = "nodejs20.x"

pytestmark = pytest.mark.usefixtures("runtime")


@pytest.fixture(scope="module")
def runtime():
    needs(RUNTIME)


def create_node(client, name, source, file="index.js", handler="index.handler", files=None, **options):
    package = {file: dedent(source), **(files or {})}
    return create(client, name, Runtime=RUNTIME, Handler=handler, Code={"ZipFile": make_zip(package)}, **options)


def log_of(response):
    return base64.b64decode(response["LogResult"]).decode()


KINDS = """
    const { setTimeout: sleep } = require("node:timers/promises");
    exports.handler = (event, context, callback) => {
      switch (event.do) {
        case "async": return sleep(1).then(() => ({ got: event.value }));
        case "throw": throw new RangeError("thrown");
        case "reject": return Promise.reject(new TypeError("rejected"));
        case "reject text": return Promise.reject("only text");
        case "callback": return void callback(null, event.value);
        case "callback error": return void callback(new SyntaxError("by callback"));
        case "callback text": return void callback("text");
        case "callback later": return void setTimeout(() => callback(null, "later"), 5);
        case "waits": setTimeout(() => console.log("the loop was waited for"), 20); return void callback(null, "waited");
        case "does not wait":
          context.callbackWaitsForEmptyEventLoop = false;
          setTimeout(() => {}, 60_000).unref?.call;
          setTimeout(() => {}, 60_000);
          return void callback(null, "at once");
        case "succeed": return void context.succeed("succeeded");
        case "fail": return void context.fail(new Error("failed"));
        case "done": return void context.done(null, "done");
        case "nothing": return;
        case "undefined": return Promise.resolve();
        case "never": return new Promise(() => {});
        case "twice": callback(null, 1); return void callback(null, 2);
        case "circular": { const a = {}; a.a = a; return Promise.resolve(a); }
        case "bigint": return Promise.resolve({ big: 1n });
        case "function": return Promise.resolve(() => 1);
        case "custom error": {
          const error = Object.assign(new Error("custom", { cause: new Error("inner") }), { code: "E_MINE", detail: { a: 1 } });
          error.name = "CustomError";
          return Promise.reject(error);
        }
        case "exit": process.exit(3);
        case "exit 0": process.exit(0);
        case "late throw": return void setTimeout(() => { throw new URIError("no one caught it"); }, 1);
        case "late rejection": return void Promise.reject(new EvalError("no one waited"));
        case "spin": for (;;);
        case "abort": process.abort();
        case "fine": return Promise.resolve("fine");
      }
    };
"""


@pytest.fixture(scope="module")
def kinds(client, runtime):
    name = "node-kinds"
    create_node(client, name, KINDS, Timeout=3, MemorySize=256)
    yield name
    client.delete_function(FunctionName=name)


@pytest.mark.parametrize(
    "event, answer",
    [
        ({"do": "async", "value": [1, None, "ü"]}, {"got": [1, None, "ü"]}),
        ({"do": "callback", "value": {"a": 1}}, {"a": 1}),
        ({"do": "callback"}, None),
        ({"do": "callback later"}, "later"),
        ({"do": "waits"}, "waited"),
        ({"do": "succeed"}, "succeeded"),
        ({"do": "done"}, "done"),
        ({"do": "nothing"}, None),
        ({"do": "undefined"}, None),
        ({"do": "never"}, None),
        ({"do": "twice"}, 2),
        ({"do": "function"}, None),
        ({"do": "does not wait"}, "at once"),
    ],
)
def test_ways_to_answer(client, kinds, event, answer):
    response = call(client, kinds, event, LogType="Tail")
    assert "FunctionError" not in response and response["Payload"] == answer, response
    assert (event["do"] == "waits") == ("the loop was waited for" in log_of(response))


@pytest.mark.parametrize(
    "kind, error_type, message",
    [
        ("throw", "RangeError", "^thrown$"),
        ("reject", "TypeError", "^rejected$"),
        ("reject text", "string", "^only text$"),
        ("callback error", "SyntaxError", "^by callback$"),
        ("callback text", "string", "^text$"),
        ("fail", "Error", "^failed$"),
        ("circular", "Error", "^Unable to stringify response body$"),
        ("bigint", "Error", "^Unable to stringify response body$"),
        ("custom error", "CustomError", "^custom$"),
        ("exit", "Runtime.ExitError", "Runtime exited with error: exit status 3$"),
        ("exit 0", "Runtime.ExitError", "Runtime exited without providing a reason$"),
        ("late throw", "URIError", "^no one caught it$"),
        ("late rejection", "Runtime.UnhandledPromiseRejection", "^EvalError: no one waited$"),
        ("abort", "Runtime.ExitError", "signal: aborted"),
        ("spin", "Sandbox.Timedout", r"Task timed out after 3\.00 seconds$"),
    ],
)
def test_ways_to_fail(client, kinds, kind, error_type, message):
    response = call(client, kinds, {"do": kind}, LogType="Tail")
    assert response["StatusCode"] == 200 and response["FunctionError"] == "Unhandled", response
    document = response["Payload"]
    assert document["errorType"] == error_type, document
    assert re.search(message, document["errorMessage"]), document
    if not error_type.startswith(("Runtime.Exit", "Sandbox.")):
        assert isinstance(document["trace"], list), document
        if error_type not in ("string", "Error", "Runtime.UnhandledPromiseRejection"):
            assert document["trace"][0] == f"{error_type}: {document['errorMessage']}", document
            assert any("/var/task/index.js:" in line for line in document["trace"]), document
        assert f"\tERROR\t" in log_of(response)
    assert call(client, kinds, {"do": "fine"})["Payload"] == "fine", "the next call works"


def test_an_error_is_logged_with_all_that_it_carries(client, kinds):
    response = call(client, kinds, {"do": "custom error"}, LogType="Tail")
    request_id = response["ResponseMetadata"]["RequestId"]
    line = re.search(rf"^(\S+)\t{request_id}\tERROR\tInvoke Error \t(\{{.*\}})$", log_of(response), re.MULTILINE)
    assert line, log_of(response)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line[1])
    logged = json.loads(line[2])
    assert (logged["errorType"], logged["errorMessage"], logged["code"], logged["detail"]) == ("CustomError", "custom", "E_MINE", {"a": 1})
    assert logged["stack"][0].endswith("Error: custom")


def test_the_console_writes_as_aws_does(client, name):
    create_node(
        client,
        name,
        """
        console.log("at import");
        exports.handler = async () => {
          console.log("log %s %d", "a", 1, { b: [2] });
          console.info("info"); console.warn("warn"); console.error("error"); console.debug("debug"); console.trace("trace");
          process.stdout.write("plain\\n");
          process.stderr.write("to stderr\\n");
          console.log("two\\nlines");
        };
        """,
    )
    response = call(client, name, LogType="Tail")
    request_id, log = response["ResponseMetadata"]["RequestId"], log_of(response)
    for level, text in [("INFO", "log a 1 { b: [ 2 ] }"), ("INFO", "info"), ("WARN", "warn"), ("ERROR", "error"), ("DEBUG", "debug"), ("TRACE", "trace")]:
        assert re.search(rf"^\d{{4}}-\S+Z\t{request_id}\t{level}\t{re.escape(text)}$", log, re.MULTILINE), log
    assert "\nplain\n" in log and "\nto stderr\n" in log and "\tINFO\ttwo\nlines\n" in log


def test_the_context_has_what_aws_gives(client, name):
    create_node(
        client,
        name,
        """
        exports.handler = async (event, context) => ({
          keys: Object.keys(context).sort(),
          values: JSON.parse(JSON.stringify(context)),
          left: context.getRemainingTimeInMillis(),
          client: context.clientContext,
          cwd: process.cwd(), exec: process.execPath, version: process.version, env: process.env,
          gc: typeof gc, device: process.env.GUST_DEVICE === undefined,
        });
        """,
        Timeout=7,
        MemorySize=192,
        Environment={"Variables": {"MINE": "yes"}},
    )
    context = base64.b64encode(json.dumps({"custom": {"k": "v"}}).encode()).decode()
    response = call(client, name, ClientContext=context)
    answer = response["Payload"]
    assert answer["keys"] == sorted([
        "awsRequestId", "callbackWaitsForEmptyEventLoop", "clientContext", "done", "fail", "functionName", "functionVersion",
        "getRemainingTimeInMillis", "identity", "invokedFunctionArn", "logGroupName", "logStreamName", "memoryLimitInMB", "succeed",
    ])  # fmt: skip
    values = answer["values"]
    assert values["awsRequestId"] == response["ResponseMetadata"]["RequestId"]
    assert values["callbackWaitsForEmptyEventLoop"] is True
    assert (values["functionName"], values["functionVersion"], values["memoryLimitInMB"]) == (name, "$LATEST", "192")
    assert values["invokedFunctionArn"].endswith(f":function:{name}")
    assert values["logGroupName"] == f"/aws/lambda/{name}" and "[$LATEST]" in values["logStreamName"]
    assert 0 < answer["left"] <= 7000 and answer["client"] == {"custom": {"k": "v"}}
    assert (answer["cwd"], answer["exec"]) == ("/var/task", "/var/lang/bin/node") and answer["version"].startswith("v20.")
    assert (answer["env"]["MINE"], answer["env"]["AWS_EXECUTION_ENV"]) == ("yes", "AWS_Lambda_nodejs20.x")
    assert answer["gc"] == "undefined" and answer["device"] is True


ESM = "export const handler = async (event) => ({ form: import.meta.url, event });\n"
CJS = "exports.handler = async (event) => ({ form: __filename, event });\n"


@pytest.mark.parametrize(
    "files, handler, form",
    [
        ({"index.mjs": ESM}, "index.handler", "file:///var/task/index.mjs"),
        ({"index.js": ESM, "package.json": '{"type": "module"}'}, "index.handler", "file:///var/task/index.js"),
        ({"index.js": CJS}, "index.handler", "/var/task/index.js"),
        ({"index.cjs": CJS, "package.json": '{"type": "module"}'}, "index.handler", "/var/task/index.cjs"),
        ({"src/app.js": CJS}, "src/app.handler", "/var/task/src/app.js"),
        ({"src/app.mjs": ESM}, "src/app.handler", "file:///var/task/src/app.mjs"),
        ({"index.js": "exports.api = { get: async () => ({ form: 'nested' }) };\n"}, "index.api.get", "nested"),
        ({"index.mjs": "const form = await Promise.resolve('awaited');\nexport const handler = async () => ({ form });\n"}, "index.handler", "awaited"),
        ({"node_modules/mine/package.json": '{"name": "mine", "main": "m.js"}', "node_modules/mine/m.js": CJS}, "mine.handler", "/var/task/node_modules/mine/m.js"),
        (
            {"index.mjs": 'import { form } from "other";\nexport const handler = async () => ({ form });\n',
             "node_modules/other/package.json": '{"name": "other", "type": "module", "exports": "./o.js"}',
             "node_modules/other/o.js": "export const form = 'imported';\n"},
            "index.handler", "imported",
        ),
    ],
)  # fmt: skip
def test_kinds_of_modules(client, name, files, handler, form):
    create(client, name, Runtime=RUNTIME, Handler=handler, Code={"ZipFile": make_zip(files)})
    assert call(client, name, {"a": 1})["Payload"]["form"] == form


@pytest.mark.parametrize(
    "source, handler, error_type, message",
    [
        ("exports.x = 1;", "index.missing", "Runtime.HandlerNotFound", "index.missing is undefined or not exported"),
        ("exports.handler = 1;", "index.handler", "Runtime.HandlerNotFound", "index.handler is not a function"),
        ("exports.x = 1;", "nowhere.handler", "Runtime.ImportModuleError", "Error: Cannot find module 'nowhere'"),
        ("require('no-such-package');", "index.handler", "Runtime.ImportModuleError", "Error: Cannot find module 'no-such-package'"),
        ("exports.handler = (", "index.handler", "Runtime.UserCodeSyntaxError", "SyntaxError: Unexpected end of input"),
        ("exports.x = 1;", "nodot", "Runtime.MalformedHandlerName", "Bad handler"),
        ("exports.x = 1;", "../index.handler", "Runtime.MalformedHandlerName", "not a valid handler name"),
        ("throw new RangeError('at import');", "index.handler", "RangeError", "at import"),
        ("process.exit(5);", "index.handler", "Runtime.ExitError", "exit status 5"),
    ],
)
def test_a_function_that_does_not_initialise(client, name, source, handler, error_type, message):
    create_node(client, name, source, handler=handler)
    for _ in range(2):
        response = call(client, name)
        assert response["FunctionError"] == "Unhandled"
        assert response["Payload"]["errorType"] == error_type, response["Payload"]
        assert message in response["Payload"]["errorMessage"]


def test_a_response_stream_is_answered_whole(client, name):
    create_node(
        client,
        name,
        """
        exports.handler = awslambda.streamifyResponse(async (event, stream, context) => {
          if (event.fail) throw new Error("broken stream");
          if (event.http) stream = awslambda.HttpResponseStream.from(stream, { statusCode: 201 });
          stream.setContentType("text/plain");
          for (const part of event.parts) { stream.write(part); await new Promise(setImmediate); }
          stream.end(context.awsRequestId);
        });
        """,
    )
    for event, expected in [({"parts": ["a", "ü"]}, "aü"), ({"parts": ["b"], "http": 1}, '{"statusCode":201}' + "\0" * 8 + "b")]:
        response = client.invoke(FunctionName=name, Payload=json.dumps(event))
        assert response["Payload"].read().decode() == expected + response["ResponseMetadata"]["RequestId"]
    assert call(client, name, {"fail": 1})["Payload"]["errorMessage"] == "broken stream"


def test_large_events_and_answers(client, name):
    create_node(client, name, "exports.handler = async (event) => event;", MemorySize=512)
    for event in ["x" * 65_500, "ü" * 100_000, "y" * 5_000_000]:
        assert call(client, name, event)["Payload"] == event
    create_node(client, name + "-large", "exports.handler = async () => 'x'.repeat(7 << 20);", MemorySize=512)
    try:
        assert call(client, name + "-large")["Payload"]["errorType"] == "Function.ResponseSizeTooLarge"
    finally:
        client.delete_function(FunctionName=name + "-large")


def test_state_and_timers_live_from_call_to_call(client, name):
    create_node(
        client,
        name,
        """
        let calls = 0, ticks = 0;
        exports.handler = async (event) => {
          calls += 1;
          if (event.timer) setTimeout(() => { ticks += 1; }, 1);
          if (event.wait) await new Promise((done) => setTimeout(done, 20));
          return [calls, ticks];
        };
        """,
    )
    # The first calls of a version may go to several instances.
    for _ in range(20):
        first, second = call(client, name, {"timer": 1})["Payload"], call(client, name, {"wait": 1})["Payload"]
        if second[0] == first[0] + 1:
            break
    assert second == [first[0] + 1, first[1] + 1]


PLATFORM = """
    const http = require("node:http"), zlib = require("node:zlib"), crypto = require("node:crypto"), fs = require("node:fs/promises");
    const { Worker } = require("node:worker_threads");
    exports.handler = async (event) => {
      const server = http.createServer((request, response) => response.end(`you asked for ${request.url}`));
      await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
      const fetched = await (await fetch(`http://127.0.0.1:${server.address().port}/path`)).text();
      server.closeAllConnections();
      await new Promise((closed) => server.close(closed));
      const worked = await new Promise((done, failed) => {
        const worker = new Worker("let x = 0; for (let i = 0; i < 1e6; i++) x += i; require('worker_threads').parentPort.postMessage(x)", { eval: true });
        worker.once("message", done); worker.once("error", failed);
      });
      await fs.writeFile("/tmp/file", "on disk");
      const key = await new Promise((done, failed) => crypto.pbkdf2("p", "s", 1000, 16, "sha256", (error, key) => error ? failed(error) : done(key.toString("hex"))));
      const wasm = new WebAssembly.Module(Uint8Array.from([0, 97, 115, 109, 1, 0, 0, 0]));
      return {
        fetched, worked, key, wasm: wasm instanceof WebAssembly.Module,
        zipped: zlib.gunzipSync(zlib.gzipSync("zipped")).toString(),
        file: await fs.readFile("/tmp/file", "utf8"),
        hot: Array.from({ length: 3e5 }, (_, i) => i * 2).reduce((a, b) => a + b, 0),
        sorted: new Intl.Collator("de").compare("ä", "z") < 0,
      };
    };
"""


def test_what_programs_use_of_node(client, name):
    create_node(client, name, PLATFORM, MemorySize=512, Timeout=60)
    for _ in range(2):
        assert call(client, name)["Payload"] == {
            "fetched": "you asked for /path",
            "worked": 499999500000,
            "key": "07f5f5e23e40846c35c4c7bbc8244ee2",
            "wasm": True,
            "zipped": "zipped",
            "file": "on disk",
            "hot": 89999700000,
            "sorted": True,
        }


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A package with what npm installs for it."""
    if shutil.which("npm") is None:
        pytest.skip("SKIPPED: no npm to install packages with")
    root = tmp_path_factory.mktemp("node")
    for file in ("index.mjs", "package.json", "package-lock.json"):
        shutil.copy(HERE / "node" / file, root)
    built = subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=root, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file() and not path.is_symlink()}


def test_packages_of_npm(server, client, name, installed):
    code = {"ZipFile": make_zip(installed)}
    create(client, name, Runtime=RUNTIME, Handler="index.handler", Code=code, MemorySize=512, Timeout=60)
    ids = set()
    for text in ["one", "two", "three"]:
        private(server, f"functions/{name}/evict", "POST")
        for _ in range(2):
            answer = call(client, name, {"text": text})["Payload"]
            assert (answer.get("stored"), answer.get("page")) == (text, {"hello": "you"}), answer
            ids.add(answer["id"])
    assert len(ids) == 6


def test_options_of_the_engine_that_come_too_late_are_named(client, name):
    create_node(
        client,
        name,
        "exports.handler = async () => globalThis.required;",
        files={"hook.js": "globalThis.required = 'by option';"},
        Environment={"Variables": {"NODE_OPTIONS": "--require ./hook.js --enable-source-maps --stack-size=100"}},
    )
    assert call(client, name)["Payload"] == "by option"


def test_a_handler_that_allocates_without_end(client, name):
    create_node(
        client,
        name,
        "exports.handler = async (event) => { const hoard = []; while (event.hoard) hoard.push(new Array(1e5).fill(Math.random())); return 'fine'; };",
        Timeout=30,
    )
    response = call(client, name, {"hoard": True})
    assert response["Payload"]["errorType"] in ("Runtime.OutOfMemory", "Runtime.ExitError"), response
    assert call(client, name, {})["Payload"] == "fine"


def test_garbage_is_collected_within_little_memory(client, name):
    create_node(
        client,
        name,
        """
        exports.handler = async () => {
          let kept = [];
          for (let round = 0; round < 150; round += 1) kept = Array.from({ length: 20_000 }, (_, at) => ({ at, round }));
          return kept.length;
        };
        """,
        Timeout=60,
    )
    for _ in range(2):
        assert call(client, name)["Payload"] == 20_000


@pytest.mark.skipif(gust.ISOLATION == "process", reason="SKIPPED: only micro-VMs go back to their snapshots")
def test_instances_that_go_back_to_their_snapshot_are_as_if_new(server, client, name):
    source = """
        let calls = 0;
        exports.handler = async (event) => {
          const texts = Array.from({ length: 20_000 }, (_, at) => `text ${at} of ${event}`);
          const found = JSON.parse(JSON.stringify(texts)).filter((text) => text.endsWith(event));
          return { calls: ++calls, found: found.length };
        };
    """
    create_node(client, name, source, Timeout=60, MemorySize=512)
    # The first instances find out what a run touches, and a call may come before one is armed again.
    for number in range(60):
        answer = call(client, name, f"event {number}")["Payload"]
        assert answer == {"calls": 1, "found": 20_000}
        private(server, f"functions/{name}/evict?armed=keep", "POST")
        starts = [made["start"] for made in private(server, f"functions/{name}")["calls"]]
        if starts.count("armed") >= 8:
            return
    pytest.fail(f"hardly an instance was armed: {starts}")
