"""The Python runtime: loads a function, then answers events until the sandbox ends.

It speaks the protocol of docs/runtime-device.md: one read takes an event, one writev gives the answer.

    start -> wait for the function -> import the handler -> wait for an event -> call, answer -> wait for an event ...
             (base snapshot here)                           (snapshot here)

What runs between an event and its answer is kept small on purpose: every page that it touches is copied in a freshly
restored sandbox. Errors have the shapes, types and texts of AWS Lambda's Python runtime.
"""

import gc
import importlib
import io
import json
import logging
import os
import struct
import sys
import time
import traceback

from lambda_context import LambdaContext

try:
    # AWS encodes responses with simplejson: named tuples become objects, bytes become text.
    import simplejson as encoder_module
except ImportError:
    encoder_module = json

FUNCTION, EVENT = 1, 2
RESPONSE, ERROR, INIT_ERROR, READY = 1, 2, 3, 4
AFTER_RESTORE = 1

MESSAGE_HEADER = struct.Struct("<IIII")
ANSWER_HEADER = struct.Struct("<IIQ")
HEADER_BYTES = 16

# Room for one message without an allocation; longer ones get a buffer of their own.
BUFFER_BYTES = 64 << 10

# What many handlers import. Loaded only where a snapshot keeps it, and only what is in the standard library: a function
# may bring its own version of anything else.
PRELOADED = (
    "base64", "collections", "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "enum", "functools",
    "gzip", "hashlib", "hmac", "html", "http.client", "inspect", "itertools", "math", "operator", "pathlib", "queue",
    "random", "re", "secrets", "shutil", "socket", "ssl", "string", "tempfile", "textwrap", "threading", "types",
    "typing", "urllib.parse", "urllib.request", "uuid", "zlib",
)  # fmt: skip


class Fault(Exception):
    """An error of the function that the runtime itself has found."""

    def __init__(self, kind, message, trace=None):
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.trace = trace


class Device:
    """The other end: messages in, answers out."""

    def __init__(self, name):
        self.is_socket = name.startswith("fd:")
        if self.is_socket:
            self.fd = int(name[3:])
            os.set_inheritable(self.fd, False)
        else:
            self.fd = os.open(name, os.O_RDWR | os.O_CLOEXEC)
        self.buffer = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.buffer)

    def wait(self):
        """Takes the next message: its kind, flags, meta (text) and body (bytes that live until the next wait)."""
        got = os.readv(self.fd, (self.buffer,))
        if got < HEADER_BYTES:
            got = self.read_on(self.view, got, HEADER_BYTES)
        kind, meta_bytes, body_bytes, flags = MESSAGE_HEADER.unpack_from(self.buffer)
        body_at = HEADER_BYTES + meta_bytes
        end = body_at + body_bytes
        view = self.view
        if got < end:
            if end > BUFFER_BYTES:
                view = memoryview(bytearray(end))
                view[:got] = self.view[:got]
            self.read_on(view, got, end)
        return kind, flags, str(view[HEADER_BYTES:body_at], "utf-8"), view[body_at:end]

    def read_on(self, view, got, end):
        """Reads until `end` bytes are there. The end of the stream is the end of the runtime."""
        while got < end:
            more = os.readv(self.fd, (view[got:end],)) if got else 0
            if more == 0:
                flush_output()
                os._exit(0)
            got += more
        return got

    def answer(self, kind, body, handler_ns=0):
        """Gives an answer, in one write where the other end takes it whole."""
        header = ANSWER_HEADER.pack(kind, len(body), handler_ns)
        sent = os.writev(self.fd, (header, body))
        total = HEADER_BYTES + len(body)
        if sent < total:
            rest = memoryview(header + bytes(body))
            while sent < total:
                sent += os.write(self.fd, rest[sent:])

    def announce(self):
        """Tells a socket's other end, which cannot see a read, that the next wait has begun."""
        if self.is_socket:
            self.answer(READY, b"")


class Encoder(encoder_module.JSONEncoder):
    """Encodes responses as AWS does: decimals as numbers."""

    def default(self, obj):
        decimal = sys.modules.get("decimal")
        if decimal is not None and isinstance(obj, decimal.Decimal):
            if obj.is_nan():
                return float("nan")
            raw = getattr(encoder_module, "RawJSON", None)
            return raw(str(obj)) if raw is not None else float(obj)
        return super().default(obj)


def new_encoder():
    return Encoder(use_decimal=False) if encoder_module is not json else Encoder()


class RequestId:
    """The id of the event in work, for log records."""

    current = ""


class LogHandler(logging.Handler):
    """Writes log records as AWS does: `[LEVEL]<TAB>time<TAB>request id<TAB>message`."""

    def emit(self, record):
        record.aws_request_id = RequestId.current
        try:
            sys.stdout.write(self.format(record))
        except Exception:
            self.handleError(record)


def set_up_output():
    """One write a line, and log records in AWS's form."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    logging.Formatter.converter = time.gmtime
    handler = LogHandler()
    form = "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s\n"
    handler.setFormatter(logging.Formatter(form, "%Y-%m-%dT%H:%M:%S"))
    logging.getLogger().addHandler(handler)


def flush_output():
    """Gives out what stands unfinished on a line. A stream that the function has closed is its own affair."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        pass


def apply_environment(changes):
    os.environ.update(changes)
    if "TZ" in changes:
        time.tzset()
    level = os.environ.get("AWS_LAMBDA_LOG_LEVEL", "").upper().replace("TRACE", "DEBUG")
    if level in ("DEBUG", "INFO", "WARN", "WARNING", "ERROR", "CRITICAL", "FATAL"):
        logging.getLogger().setLevel(level)


def set_up_path(task_root):
    """The function's code first, then layers, then what the runtime brings."""
    own = os.path.dirname(os.path.abspath(__file__))
    rest = [path for path in sys.path if path not in ("", own)]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    user = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    layers = [f"/opt/python/lib/{version}/site-packages", "/opt/python"]
    sys.path[:] = list(dict.fromkeys([task_root, *user, *layers, *rest, own]))
    try:
        os.chdir(task_root)
    except OSError:
        # A package without files may have no directory; the import that follows says so in Lambda's words.
        pass


def load_handler(name):
    """Imports `module.function` or `directory/module.function`."""
    try:
        module_name, function_name = name.rsplit(".", 1)
    except ValueError as error:
        raise Fault("Runtime.MalformedHandlerName", f"Bad handler '{name}': {error}") from None
    if module_name.split(".")[0] in sys.builtin_module_names:
        message = f"Cannot use built-in module {module_name} as a handler module"
        raise Fault("Runtime.BuiltInModuleConflict", message)
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(module_name.replace("/", "."))
    except ImportError as error:
        message = f"Unable to import module '{module_name}': {error}"
        raise Fault("Runtime.ImportModuleError", message) from error
    except SyntaxError as error:
        trace = [f'  File "{error.filename}" Line {error.lineno}\n    {error.text}']
        message = f"Syntax error in module '{module_name}': {error}"
        raise Fault("Runtime.UserCodeSyntaxError", message, trace) from error
    try:
        return getattr(module, function_name)
    except AttributeError:
        message = f"Handler '{function_name}' missing on module '{module_name}'"
        raise Fault("Runtime.HandlerNotFound", message) from None


def describe(error, request_id=""):
    """Lambda's error document for an exception; writes it to the log too."""
    if isinstance(error, Fault):
        kind, message, trace = error.kind, error.message, error.trace or []
    else:
        frames = traceback.extract_tb(error.__traceback__)
        # The runtime's own frames come first and say nothing of the function.
        own = next((at for at, frame in enumerate(frames) if "/bootstrap.py" not in frame.filename), 0)
        plain = [(frame.filename, frame.lineno, frame.name, frame.line) for frame in frames[own:]]
        kind, message, trace = type(error).__name__, str(error), traceback.format_list(plain)
    log_error(kind, message, trace)
    document = {"errorMessage": message, "errorType": kind, "requestId": request_id, "stackTrace": trace}
    return json.dumps(document).encode()


def log_error(kind, message, trace):
    """`[ERROR] Type: message` and the trace. Indentation is made of no-break spaces, which log viewers keep."""
    lines = [f"[ERROR] {kind}" + (f": {message}" if message else ""), "Traceback (most recent call last):"]
    for line in "".join(f"{element}\n" for element in trace).splitlines():
        if line:
            indent = len(line) - len(line.lstrip(" "))
            lines.append("\u00a0" * indent + line[indent:])
    try:
        sys.stdout.write("\n".join(lines) + "\n")
    except (AttributeError, OSError, ValueError):
        pass


def snapshot_hooks(getter):
    """The function's hooks, if it uses the module, ours or its own copy of AWS's."""
    module = sys.modules.get("snapshot_restore_py")
    return getattr(module, getter)() if hasattr(module, getter) else []


def run_before_snapshot():
    hooks = snapshot_hooks("get_before_snapshot")
    while hooks:
        func, args, kwargs = hooks.pop()
        func(*args, **kwargs)


def after_restore(entropy, changes):
    """Makes this instance different from the others that were restored from the same snapshot (entropy: 32 bytes)."""
    loaded = sys.modules.get
    if loaded("random") is not None:
        loaded("random").seed(entropy + b"random")
    if loaded("numpy.random") is not None:
        # Each word of the seed counts; the last one sets this generator apart from `random`.
        words = [int.from_bytes(entropy[at : at + 4], "little") for at in range(0, len(entropy), 4)]
        loaded("numpy.random").seed([*words, 1])
    if loaded("uuid") is not None:
        loaded("uuid")._last_timestamp = None
        loaded("uuid")._node = None
    if loaded("tempfile") is not None:
        loaded("tempfile")._name_sequence = None
    apply_environment(changes)
    LambdaContext.load_environment()
    for func, args, kwargs in snapshot_hooks("get_after_restore"):
        func(*args, **kwargs)


def serve(device, handler):
    """Answers events for ever."""
    wait, answer, now = device.wait, device.answer, time.perf_counter_ns
    encode, loads = new_encoder().encode, json.loads
    stdout, environ = sys.stdout, os.environ
    trace_id = ""
    while True:
        _kind, flags, meta, body = wait()
        if flags & AFTER_RESTORE:
            request_id, deadline, arn, trace, entropy, changes, client = meta.split("\n", 6)
            RequestId.current = request_id
            try:
                after_restore(bytes.fromhex(entropy), loads(changes))
            except BaseException as error:
                document = describe(error, request_id)
                flush_output()
                answer(ERROR, document)
                raise SystemExit(65) from error
        else:
            request_id, deadline, arn, trace, client = meta.split("\n", 4)
            RequestId.current = request_id
        if trace != trace_id:
            trace_id = trace
            if trace:
                environ["_X_AMZN_TRACE_ID"] = trace
            else:
                environ.pop("_X_AMZN_TRACE_ID", None)
        start = now()
        try:
            context = LambdaContext(request_id, int(deadline), arn, parse_client(client) if client else None)
            event = parse_event(body)
            start = now()
            response = handler(event, context)
            spent = now() - start
            kind, out = RESPONSE, response if isinstance(response, bytes) else encode_response(encode, response)
        except Exception as error:
            spent = now() - start
            kind, out = ERROR, describe(error, request_id)
        if sys.stdout is stdout:
            try:
                stdout.flush()
            except ValueError:
                pass
        else:
            flush_output()
        answer(kind, out, spent)
        # After the answer, because no one waits for it now; before the next event, because it may be large.
        event = context = response = body = out = None


def parse_event(body):
    try:
        return json.loads(str(body, "utf-8"))
    except Exception as error:
        raise Fault("Runtime.UnmarshalError", f"Unable to unmarshal input: {error}") from None


def parse_client(text):
    try:
        return json.loads(text)
    except Exception as error:
        message = f"Unable to parse Client Context JSON: {error}"
        raise Fault("Runtime.LambdaContextUnmarshalError", message) from None


def encode_response(encode, response):
    try:
        return encode(response).encode()
    except Exception as error:
        raise Fault("Runtime.MarshalError", f"Unable to marshal response: {error}") from None


def fail_init(device, error, status):
    """Reports that the function cannot be initialised, and ends."""
    document = describe(error)
    flush_output()
    device.answer(INIT_ERROR, document)
    sys.exit(status)


def main():
    device = Device(os.environ.pop("GUST_DEVICE"))
    set_up_output()
    if not device.is_socket:
        for name in PRELOADED:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()

    device.announce()
    _kind, _flags, meta, _body = device.wait()
    function = json.loads(meta)
    apply_environment(function["environment"])
    LambdaContext.load_environment()
    try:
        set_up_path(function["task_root"])
        handler = load_handler(function["handler"])
    except Exception as error:
        fail_init(device, error, 1)
    if not device.is_socket:
        try:
            run_before_snapshot()
        except Exception as error:
            fail_init(device, error, 64)
    flush_output()
    # What exists now lives as long as the instance. Collections need not visit it, so they do not touch its pages.
    gc.collect()
    gc.freeze()
    device.announce()
    serve(device, handler)


if __name__ == "__main__":
    main()
