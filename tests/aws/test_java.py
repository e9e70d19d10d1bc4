"""Functions in Java, with AWS's own runtime client in the image."""

import base64
import io
import pathlib
import re
import shutil
import subprocess
import zipfile
from textwrap import dedent

import pytest

from conftest import call, create, needs, private

RUNTIME = "java17"
EXAMPLE = pathlib.Path(__file__).parent.parent.parent / "examples" / "hello-java" / "src" / "main" / "java"

# Only to compile against: the runtime has the real ones, and packages leave them out.
CORE = {
    "Context": """
        public interface Context {
            String getAwsRequestId(); String getLogGroupName(); String getLogStreamName(); String getFunctionName();
            String getFunctionVersion(); String getInvokedFunctionArn(); int getRemainingTimeInMillis(); int getMemoryLimitInMB();
            LambdaLogger getLogger();
        }""",
    "LambdaLogger": "public interface LambdaLogger { void log(String message); }",
    "RequestHandler": "public interface RequestHandler<I, O> { O handleRequest(I input, Context context); }",
    "RequestStreamHandler": """
        public interface RequestStreamHandler {
            void handleRequest(java.io.InputStream in, java.io.OutputStream out, Context context) throws java.io.IOException;
        }""",
}

KINDS = """
    package tests;
    import com.amazonaws.services.lambda.runtime.*;
    import java.io.*;
    import java.util.*;
    import java.util.concurrent.*;

    public class Kinds {
        static final Map<String, Integer> calls = new ConcurrentHashMap<>();
        static final java.security.SecureRandom early = new java.security.SecureRandom();
        static final byte[] used = new byte[8];
        static { early.nextBytes(used); }

        public static class Event { public String kind; public int number; }

        public Map<String, Object> typed(Event event, Context context) {
            Map<String, Object> answer = new TreeMap<>();
            answer.put("kind", event.kind);
            answer.put("number", event.number + 1);
            answer.put("id", context.getAwsRequestId());
            answer.put("name", context.getFunctionName());
            answer.put("memory", context.getMemoryLimitInMB());
            answer.put("left", context.getRemainingTimeInMillis());
            answer.put("heap", Runtime.getRuntime().maxMemory() >> 20);
            answer.put("option", System.getProperty("mine", ""));
            answer.put("text", "\\u00fc");
            context.getLogger().log("through the logger");
            System.err.println("through stderr");
            return answer;
        }

        public Object fails(Event event) throws Exception {
            switch (event.kind) {
                case "throw": throw new IllegalStateException("thrown", new IOException("the cause"));
                case "null": { Object nothing = null; return nothing.toString(); }
                case "stack": return fails(event);
                case "exit": System.exit(9);
                case "divide": return 1 / event.number;
                case "allocate": { List<byte[]> hoard = new ArrayList<>(); for (;;) hoard.add(new byte[1 << 20]); }
                case "threads": return threads();
                case "random": return random();
                default: return "fine";
            }
        }

        static Object threads() throws Exception {
            ExecutorService pool = Executors.newFixedThreadPool(8);
            List<Future<Long>> sums = new ArrayList<>();
            for (int n = 0; n < 64; n++) {
                long from = n * 10_000L;
                sums.add(pool.submit(() -> java.util.stream.LongStream.range(from, from + 10_000).sum()));
            }
            long sum = 0;
            for (Future<Long> part : sums) sum += part.get();
            pool.shutdown();
            for (int n = 0; n < 200; n++) calls.put("garbage" + n % 3, new byte[1 << 20].length);
            return sum;
        }

        static Object random() {
            byte[] bytes = new byte[16];
            early.nextBytes(bytes);
            return Map.of("secure", Base64.getEncoder().encodeToString(bytes), "uuid", UUID.randomUUID().toString());
        }
    }
"""

STREAM = """
    package tests;
    import com.amazonaws.services.lambda.runtime.*;
    import java.io.*;

    public class Stream implements RequestStreamHandler {
        @Override
        public void handleRequest(InputStream in, OutputStream out, Context context) throws IOException {
            in.transferTo(out);
        }
    }
"""


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Compiled classes by path: the tests' and the example's."""
    needs(RUNTIME)
    if shutil.which("javac") is None:
        pytest.skip("SKIPPED: no javac to compile functions in Java with")
    root = tmp_path_factory.mktemp("java")
    core = root / "core" / "com" / "amazonaws" / "services" / "lambda" / "runtime"
    core.mkdir(parents=True)
    for name, source in CORE.items():
        (core / f"{name}.java").write_text(f"package com.amazonaws.services.lambda.runtime;\n{dedent(source)}\n")
    for name, source in {"Kinds": KINDS, "Stream": STREAM}.items():
        (root / f"{name}.java").write_text(dedent(source))
    sources = [root / "Kinds.java", root / "Stream.java", EXAMPLE / "example" / "Hello.java"]
    out = root / "classes"
    command = ["javac", "--release", "17", "-encoding", "UTF-8", "-sourcepath", root / "core", "-d", out, *sources]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.class")}
    return {path: content for path, content in files.items() if not path.startswith("com/amazonaws")}


def archive(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for path, content in files.items():
            target.writestr(path, content)
    return buffer.getvalue()


def create_java(client, name, code, handler, **options):
    create(client, name, Runtime=RUNTIME, Handler=handler, Code={"ZipFile": code}, **{"MemorySize": 512, "Timeout": 30, **options})


@pytest.fixture(scope="module")
def failing(client, classes):
    name = "java-kinds"
    create_java(client, name, archive(classes), "tests.Kinds::fails")
    yield name
    client.delete_function(FunctionName=name)


def test_a_typed_handler(client, name, classes):
    # A jar is a package, too: classes at its root.
    options = {"Environment": {"Variables": {"JAVA_TOOL_OPTIONS": "-Dmine=yes"}}}
    create_java(client, name, archive(classes), "tests.Kinds::typed", **options)
    for number in range(2):
        response = call(client, name, {"kind": "a", "number": number}, LogType="Tail")
        answer = response["Payload"]
        assert (answer["kind"], answer["number"], answer["text"], answer["option"]) == ("a", number + 1, "ü", "yes"), response
        assert answer["id"] == response["ResponseMetadata"]["RequestId"]
        assert (answer["name"], answer["memory"]) == (name, 512) and 0 < answer["left"] <= 30_000
        assert 300 < answer["heap"] < 512
        log = base64.b64decode(response["LogResult"]).decode()
        assert "through the logger" in log and "through stderr\n" in log


def test_the_example_as_a_library(client, name, classes):
    hello = {path: content for path, content in classes.items() if path.startswith("example/")}
    create_java(client, name, archive({"lib/hello.jar": archive(hello)}), "example.Hello")
    response = call(client, name, {"name": "you"}, LogType="Tail")
    assert response["Payload"] == {"message": "hello, you", "request_id": response["ResponseMetadata"]["RequestId"]}, response
    assert "saying hello to you\n" in base64.b64decode(response["LogResult"]).decode()
    response = call(client, name, {"name": "nobody"})
    assert response["Payload"]["errorType"] == "java.lang.IllegalArgumentException", response
    assert response["Payload"]["errorMessage"] == "nobody is here" and "example.Hello" in response["Payload"]["stackTrace"][0]


def test_a_stream_handler(client, name, classes):
    create_java(client, name, archive(classes), "tests.Stream")
    for event in [{"a": ["ü"]}, "x" * 1_000_000]:
        assert call(client, name, event)["Payload"] == event


@pytest.mark.parametrize(
    "event, error_type, message",
    [
        ({"kind": "throw"}, "java.lang.IllegalStateException", "^thrown$"),
        ({"kind": "null"}, "java.lang.NullPointerException", "toString"),
        ({"kind": "stack"}, "java.lang.StackOverflowError", ""),
        ({"kind": "divide", "number": 0}, "java.lang.ArithmeticException", "/ by zero"),
        ({"kind": "exit"}, "Runtime.ExitError", "exit status 9$"),
        ({"kind": "allocate"}, "java.lang.OutOfMemoryError|Runtime.OutOfMemory", "Java heap space|killed"),
    ],
)
def test_ways_to_fail(client, failing, event, error_type, message):
    response = call(client, failing, event)
    assert response["FunctionError"] == "Unhandled", response
    document = response["Payload"]
    assert re.fullmatch(error_type, document["errorType"]), document
    assert re.search(message, document.get("errorMessage") or ""), document
    assert call(client, failing, {"kind": "fine"})["Payload"] == "fine", "the next call works"


def test_threads_and_garbage(client, failing):
    for _ in range(2):
        assert call(client, failing, {"kind": "threads"})["Payload"] == sum(range(640_000))


def test_restored_instances_draw_other_numbers(server, client, failing):
    answers = []
    for _ in range(20):
        private(server, f"functions/{failing}/evict", "POST")
        answers.append(call(client, failing, {"kind": "random"})["Payload"])
    for source in answers[0]:
        assert len({answer[source] for answer in answers}) == len(answers), f"{source} came twice"


@pytest.mark.parametrize("handler, error_type", [("tests.Nowhere::fails", "java.lang.ClassNotFoundException"), ("tests.Kinds::nothing", ".*")])
def test_a_function_that_does_not_initialise(client, name, classes, handler, error_type):
    create_java(client, name, archive(classes), handler)
    response = call(client, name, {"kind": "fine"})
    assert response["FunctionError"] == "Unhandled", response
    assert re.search(error_type, response["Payload"].get("errorType", "")), response["Payload"]
