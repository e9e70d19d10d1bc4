//! Why something was not done, in the domain's own words; the gateway maps each to a code and a status.

use std::time::Duration;

use gust_store::StoreError;

use crate::concurrency::ThrottleReason;

/// Why something was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ControlError {
    /// No such function, version or alias.
    #[error("{kind} not found: {arn}")]
    NotFound {
        /// What was looked for.
        kind: Missing,
        /// Its ARN.
        arn: String,
    },
    /// There is one of that name already.
    #[error("{what} already exist: {name}")]
    Exists {
        /// `Function` or `Alias`.
        what: &'static str,
        /// Its name or ARN.
        name: String,
    },
    /// The revision that the caller saw is not the present one.
    #[error(
        "The RevisionId provided does not match the latest RevisionId. Call the GetFunction/GetAlias API to retrieve \
         the latest RevisionId"
    )]
    RevisionMismatch,
    /// The digest that the caller expects is not that of the code.
    #[error(
        "CodeSHA256 ({expected}) is different from current CodeSHA256 in $LATEST ({found}). Please try again with the CodeSHA256 in $LATEST."
    )]
    CodeMismatch {
        /// What the caller expects, in base64.
        expected: String,
        /// What it is, in base64.
        found: String,
    },
    /// A change is being carried out.
    #[error("The operation cannot be performed at this time. An update is in progress for resource: {arn}")]
    UpdateInProgress {
        /// The function's ARN.
        arn: String,
    },
    /// The function is not in a state in which it can be changed or called.
    #[error(
        "The operation cannot be performed at this time. The function is currently in the following state: {state}"
    )]
    NotReady {
        /// `Pending` or `Failed`.
        state: &'static str,
    },
    /// Something else stands in the way.
    #[error("{0}")]
    Conflict(String),
    /// A parameter is wrong.
    #[error("{0}")]
    InvalidParameter(String),
    /// The payload is not JSON.
    #[error("Could not parse request body into json: {0}")]
    InvalidContent(String),
    /// All packages together are over the bound.
    #[error("Code storage limit exceeded.")]
    CodeStorageExceeded,
    /// A concurrency bound was met.
    #[error("{}", reason.message())]
    Throttled {
        /// Which one.
        reason: ThrottleReason,
        /// When trying again makes sense.
        retry_after: Duration,
    },
    /// The code or the platform could not answer.
    #[error("{0}")]
    Service(String),
    /// The server is stopping.
    #[error("The server is stopping")]
    Stopping,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was looked for and not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// A function or a version of it.
    Function,
    /// An alias, asked for by name.
    Alias,
    /// Settings of asynchronous events.
    EventConfig,
    /// Provisioned concurrency.
    Provisioned,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Function => "Function",
            Self::Alias => "Alias",
            Self::EventConfig => "EventInvokeConfig",
            Self::Provisioned => "ProvisionedConcurrencyConfig",
        })
    }
}
