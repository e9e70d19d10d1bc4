"""The context object: a handler's second argument, with the attributes that AWS gives it."""

import os
import sys
import time


class CognitoIdentity:
    __slots__ = ["cognito_identity_id", "cognito_identity_pool_id"]

    def __init__(self):
        self.cognito_identity_id = None
        self.cognito_identity_pool_id = None

    def __repr__(self):
        return (
            f"{self.__class__.__name__}([cognito_identity_id={self.cognito_identity_id},"
            f"cognito_identity_pool_id={self.cognito_identity_pool_id}])"
        )


class Fields:
    """An object with a fixed set of attributes, filled from a JSON object."""

    __slots__ = []

    def __init__(self, values):
        for name in self.__slots__:
            setattr(self, name, values.get(name))

    def __repr__(self):
        fields = ",".join(f"{name}={getattr(self, name)}" for name in self.__slots__)
        return f"{self.__class__.__name__}([{fields}])"


class Client(Fields):
    __slots__ = ["installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name"]


class ClientContext(Fields):
    __slots__ = ["custom", "env", "client"]

    def __init__(self, values):
        super().__init__(values)
        if self.client is not None:
            self.client = Client(self.client)


class LambdaContext:
    """The handler's second argument. What is the same for all events stands in the class."""

    tenant_id = None

    @classmethod
    def load_environment(cls):
        get = os.environ.get
        cls.log_group_name = get("AWS_LAMBDA_LOG_GROUP_NAME")
        cls.log_stream_name = get("AWS_LAMBDA_LOG_STREAM_NAME")
        cls.function_name = get("AWS_LAMBDA_FUNCTION_NAME")
        cls.memory_limit_in_mb = get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
        cls.function_version = get("AWS_LAMBDA_FUNCTION_VERSION")

    def __init__(self, request_id, deadline_unix_ms, function_arn, client_context):
        self.aws_request_id = request_id
        self.invoked_function_arn = function_arn
        self._deadline_unix_ms = deadline_unix_ms
        self.client_context = ClientContext(client_context) if client_context is not None else None
        self.identity = CognitoIdentity()

    def get_remaining_time_in_millis(self):
        return max(0, self._deadline_unix_ms - int(time.time() * 1000))

    def log(self, msg):
        sys.stdout.write(str(msg))

    def __repr__(self):
        names = (
            "aws_request_id", "log_group_name", "log_stream_name", "function_name", "memory_limit_in_mb",
            "function_version", "invoked_function_arn", "client_context", "identity", "tenant_id",
        )  # fmt: skip
        fields = ",".join(f"{name}={getattr(self, name)}" for name in names)
        return f"{self.__class__.__name__}([{fields}])"
