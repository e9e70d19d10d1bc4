//! AWS Lambda's quotas, as it states them; those that are settings have these as their defaults.

/// Largest payload of a synchronous call, in bytes.
pub const SYNC_PAYLOAD_BYTES_MAX: usize = 6 * 1024 * 1024;

/// Largest payload of an asynchronous call, in bytes.
pub const ASYNC_PAYLOAD_BYTES_MAX: usize = 1024 * 1024;

/// Largest response, in bytes: the payload bound and room for Lambda's own envelope.
pub const RESPONSE_BYTES_MAX: usize = SYNC_PAYLOAD_BYTES_MAX + 100;

/// Largest package that is uploaded directly, in bytes.
pub const ZIPPED_BYTES_MAX: u64 = 50 * 1024 * 1024;

/// Largest content of a package, in bytes.
pub const UNZIPPED_BYTES_MAX: u64 = 250 * 1024 * 1024;

/// All packages of all versions together, in bytes.
pub const CODE_STORAGE_BYTES_DEFAULT: u64 = 75 * 1024 * 1024 * 1024;

/// Names and values of a function's environment variables together, in bytes.
pub const ENVIRONMENT_BYTES_MAX: usize = 4 * 1024;

/// Concurrent calls of all functions.
pub const CONCURRENCY_DEFAULT: u32 = 1000;

/// Longest run, in seconds.
pub const TIMEOUT_S_MAX: u32 = 900;

/// Timeout of a function that states none, in seconds.
pub const TIMEOUT_S_DEFAULT: u32 = 3;

/// Least memory, in MiB.
pub const MEMORY_MIB_MIN: u32 = 128;

/// Most memory, in MiB.
pub const MEMORY_MIB_MAX: u32 = 10_240;

/// Least writable space, in MiB; also the default.
pub const TMP_MIB_MIN: u32 = 512;

/// Most writable space, in MiB.
pub const TMP_MIB_MAX: u32 = 10_240;

/// Most tags of a function.
pub const TAGS_MAX: usize = 50;

/// Longest client context, in bytes before decoding.
pub const CLIENT_CONTEXT_BYTES_MAX: usize = 3583;

/// Bytes of log that a call can return.
pub const LOG_TAIL_BYTES: usize = 4 * 1024;

/// Longest initialisation, in seconds.
pub const INIT_TIMEOUT_S: u64 = 10;

/// Bounds that the server's owner may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccountLimits {
    /// Concurrent calls of all functions.
    pub concurrency: u32,
    /// All packages of all versions together, in bytes.
    pub code_storage_bytes: u64,
    /// Asynchronous events that wait.
    pub events_queued: usize,
    /// Payloads of the asynchronous events that wait, together, in bytes.
    pub events_queued_bytes: u64,
    /// Asynchronous events that are delivered at once.
    pub events_running: usize,
}

impl Default for AccountLimits {
    fn default() -> Self {
        Self {
            concurrency: CONCURRENCY_DEFAULT,
            code_storage_bytes: CODE_STORAGE_BYTES_DEFAULT,
            events_queued: 100_000,
            events_queued_bytes: 1 << 30,
            events_running: 256,
        }
    }
}
