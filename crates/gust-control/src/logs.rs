//! Reading functions' logs.

use gust_store::{Follower, LogLine, LogReadError};

use crate::{
    control::{Control, log_scope},
    error::ControlError,
    ids::FunctionName,
};

impl Control {
    /// The newest lines of a function's log, oldest first, at most `lines_max` and none before `since_unix_ms`.
    ///
    /// # Errors
    /// When there is no such function, or its log cannot be read.
    pub async fn log_tail(
        &self,
        name: &FunctionName,
        lines_max: usize,
        since_unix_ms: Option<u64>,
    ) -> Result<Vec<LogLine>, ControlError> {
        self.function(name)?;
        self.0.store.logs.flush().await;
        let (control, scope) = (self.clone(), log_scope(name));
        let read =
            tokio::task::spawn_blocking(move || control.0.store.logs.tail(&scope, lines_max, since_unix_ms));
        match read.await {
            Ok(lines) => lines.map_err(unreadable),
            Err(panic) => Err(ControlError::Service(format!("reading the log failed: {panic}"))),
        }
    }

    /// Follows a function's log from its present end.
    ///
    /// # Errors
    /// When there is no such function, or its log cannot be read.
    pub fn log_follow(&self, name: &FunctionName) -> Result<Follower, ControlError> {
        self.function(name)?;
        self.0.store.logs.follow(&log_scope(name)).map_err(unreadable)
    }
}

fn unreadable(error: LogReadError) -> ControlError {
    tracing::error!(%error, cause = ?error.source, "a log cannot be read");
    ControlError::Service(error.to_string())
}
