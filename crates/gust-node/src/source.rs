//! Where workers come from.

use std::{io, sync::Arc};

use crate::{worker::Worker, zygote::Zygote};

/// Makes workers that have not reported yet.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// Copies of a zygote.
    Zygote(Arc<Zygote>),
}

impl Source {
    pub(crate) async fn spawn(&self) -> io::Result<Worker> {
        match self {
            Self::Zygote(zygote) => zygote.spawn().await,
        }
    }

    /// Whether there will be no more.
    pub(crate) fn is_stopped(&self) -> bool {
        match self {
            Self::Zygote(zygote) => zygote.is_stopped(),
        }
    }

    /// Ends every worker; returns when they are gone.
    pub(crate) async fn stop(&self) {
        match self {
            Self::Zygote(zygote) => zygote.stop().await,
        }
    }
}
