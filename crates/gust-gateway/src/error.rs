//! Errors as AWS's clients expect them: a status, a code in `x-amzn-ErrorType`, and a JSON body.

use bytes::Bytes;
use gust_control::{ControlError, Missing};
use gust_store::StoreError;
use hyper::{StatusCode, header::HeaderValue};
use serde_json::json;

use crate::{body::Body, foreign::Form, sigv4::SignatureError};

/// An error for a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// AWS's name of the error.
    pub code: &'static str,
    /// HTTP status.
    pub status: StatusCode,
    /// For a person.
    pub message: String,
    /// Which bound was met, for throttled calls.
    pub reason: Option<&'static str>,
    /// When trying again makes sense, in seconds, for throttled calls.
    pub retry_after_s: Option<u64>,
    /// What its body is.
    pub form: Form,
}

impl ApiError {
    fn new(code: &'static str, status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            code,
            status,
            message: message.into(),
            reason: None,
            retry_after_s: None,
            form: Form::default(),
        }
    }

    /// A request violates the API's model.
    pub fn validation(message: impl Into<String>) -> Self {
        Self::new("ValidationException", StatusCode::BAD_REQUEST, message)
    }

    /// A parameter is wrong.
    pub fn invalid_parameter(message: impl Into<String>) -> Self {
        Self::new("InvalidParameterValueException", StatusCode::BAD_REQUEST, message)
    }

    /// A body is not JSON.
    pub fn invalid_content(message: impl Into<String>) -> Self {
        Self::new("InvalidRequestContentException", StatusCode::BAD_REQUEST, message)
    }

    /// A body is JSON of another shape.
    pub fn serialization(message: impl Into<String>) -> Self {
        Self::new("SerializationException", StatusCode::BAD_REQUEST, message)
    }

    /// A body is too large.
    pub fn too_large(bytes_max: usize, operation: &str) -> Self {
        let message = format!("Request must be smaller than {bytes_max} bytes for the {operation} operation");
        Self::new(
            "RequestEntityTooLargeException",
            StatusCode::PAYLOAD_TOO_LARGE,
            message,
        )
    }

    /// There is no such function.
    pub fn function_not_found(arn: &str) -> Self {
        Self::not_found(format!("Function not found: {arn}"))
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new("ResourceNotFoundException", StatusCode::NOT_FOUND, message)
    }

    /// An operation that AWS has and this server does not.
    pub fn unserved(operation: &str) -> Self {
        let message = format!("The operation {operation} is not supported by this server.");
        Self::new("NotImplementedException", StatusCode::NOT_IMPLEMENTED, message)
    }

    /// No operation of the API.
    pub fn unknown_operation() -> Self {
        let message = "No operation of the AWS Lambda API has this method and path.";
        Self::new("UnknownOperationException", StatusCode::NOT_FOUND, message)
    }

    /// An operation of another service of AWS.
    pub fn other_service(asked: &str) -> Self {
        let message = format!("This server has the AWS Lambda API and no other: {asked} is not served.");
        Self::new("UnknownOperationException", StatusCode::NOT_FOUND, message)
    }

    /// A path of the API with a method that it does not have.
    pub fn wrong_method() -> Self {
        let message = "No operation of the AWS Lambda API has this method on this path.";
        Self::new(
            "UnknownOperationException",
            StatusCode::METHOD_NOT_ALLOWED,
            message,
        )
    }

    /// The caller may not do this.
    pub fn access_denied(message: impl Into<String>) -> Self {
        Self::new("AccessDeniedException", StatusCode::FORBIDDEN, message)
    }

    /// The body did not arrive in time.
    pub fn request_timeout() -> Self {
        let message = "The body of the request did not arrive in time.";
        Self::new("RequestTimeoutException", StatusCode::REQUEST_TIMEOUT, message)
    }

    /// Too many large requests are being served.
    pub fn busy() -> Self {
        let message = "Too many large requests are being served. Try again later.";
        Self::new(
            "ServiceUnavailableException",
            StatusCode::SERVICE_UNAVAILABLE,
            message,
        )
    }

    /// The server failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new("ServiceException", StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The body, and its type.
    fn document(&self) -> (String, &'static str) {
        let kind = if self.status.is_server_error() {
            "Service"
        } else {
            "User"
        };
        // Members as AWS's model has them: some errors say `Message`, most `message`; clients read both.
        let upper = matches!(self.code, "ResourceNotFoundException" | "ServiceException");
        let mut document = json!({ "Type": kind });
        document[if upper { "Message" } else { "message" }] = json!(self.message);
        if let Some(reason) = self.reason {
            document["Reason"] = json!(reason);
        }
        match self.form {
            Form::RestJson => {}
            Form::Json => document["__type"] = json!(self.code),
            // The only errors of this form have nothing in them to be escaped.
            Form::Xml => {
                let (code, message) = (self.code, &self.message);
                let text = format!(
                    "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>\
                     </ErrorResponse>"
                );
                return (text, "text/xml");
            }
        }
        (document.to_string(), "application/json")
    }

    /// The response.
    pub fn into_response(self) -> hyper::Response<Body> {
        let (text, content_type) = self.document();
        let mut response = hyper::Response::new(Body::full(Bytes::from(text)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert("content-type", HeaderValue::from_static(content_type));
        headers.insert("x-amzn-errortype", HeaderValue::from_static(self.code));
        if let Some(seconds) = self.retry_after_s {
            headers.insert("retry-after", HeaderValue::from(seconds));
        }
        response
    }
}

impl From<SignatureError> for ApiError {
    fn from(error: SignatureError) -> Self {
        let code = match error {
            SignatureError::Missing => "MissingAuthenticationTokenException",
            SignatureError::Incomplete(_) => "IncompleteSignatureException",
            SignatureError::UnknownKey => "UnrecognizedClientException",
            SignatureError::Invalid(_) | SignatureError::Mismatch => "InvalidSignatureException",
        };
        Self::new(code, StatusCode::FORBIDDEN, error.to_string())
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        let message = error.to_string();
        let bad = |code| Self::new(code, StatusCode::BAD_REQUEST, message.clone());
        match error {
            ControlError::NotFound {
                kind: Missing::Function,
                ..
            } => Self::not_found(message),
            ControlError::NotFound {
                kind: Missing::Alias,
                arn,
            } => Self::not_found(format!("Cannot find alias arn: {arn}")),
            ControlError::NotFound {
                kind: Missing::EventConfig,
                arn,
            } => Self::not_found(format!("The function {arn} doesn't have an EventInvokeConfig")),
            ControlError::NotFound {
                kind: Missing::Provisioned,
                ..
            } => Self::new(
                "ProvisionedConcurrencyConfigNotFoundException",
                StatusCode::NOT_FOUND,
                "No Provisioned Concurrency Config found for this function",
            ),
            ControlError::Exists { .. }
            | ControlError::UpdateInProgress { .. }
            | ControlError::NotReady { .. }
            | ControlError::Conflict(_) => {
                Self::new("ResourceConflictException", StatusCode::CONFLICT, message)
            }
            ControlError::RevisionMismatch => Self::new(
                "PreconditionFailedException",
                StatusCode::PRECONDITION_FAILED,
                message,
            ),
            ControlError::CodeMismatch { .. } | ControlError::InvalidParameter(_) => {
                bad("InvalidParameterValueException")
            }
            ControlError::InvalidContent(_) => bad("InvalidRequestContentException"),
            ControlError::CodeStorageExceeded => bad("CodeStorageExceededException"),
            ControlError::Throttled { reason, retry_after } => Self {
                reason: Some(reason.code()),
                // Whole seconds, as HTTP has it; none would mean at once.
                retry_after_s: Some(retry_after.as_secs_f64().ceil().max(1.0) as u64),
                ..Self::new("TooManyRequestsException", StatusCode::TOO_MANY_REQUESTS, message)
            },
            ControlError::Service(_) => Self::internal(message),
            ControlError::Stopping => Self::new(
                "ServiceUnavailableException",
                StatusCode::SERVICE_UNAVAILABLE,
                message,
            ),
            ControlError::Store(error) => {
                tracing::error!(%error, cause = ?std::error::Error::source(&error), "the store failed");
                match error {
                    StoreError::DiskFull { .. } | StoreError::Busy => Self::internal(message),
                    StoreError::Conflict { .. } => {
                        Self::new("ResourceConflictException", StatusCode::CONFLICT, message)
                    }
                    StoreError::Locked { .. }
                    | StoreError::Io { .. }
                    | StoreError::Database { .. }
                    | StoreError::Record { .. }
                    | StoreError::TooLarge { .. }
                    | StoreError::Closed => Self::internal("The server could not read or write its data."),
                }
            }
        }
    }
}
