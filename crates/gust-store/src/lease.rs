//! Leases: who may do something until when, kept as records, so that every place that keeps records has them.
//!
//! A lease ends by the clock of whoever looks at it: clocks that differ by less than a lease's length are good enough, as
//! for the leases of Kubernetes. A holder stops some time before its lease ends unless it could renew it, and what it writes
//! while it holds the lease depends on revisions: one that has been too slow gets a conflict and changes nothing.

use serde::{Deserialize, Serialize};

use crate::{Batch, Meta, Precondition, Record, Revision, StoreError};

/// A lease as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Lease {
    holder: String,
    /// Grows by one with each holder.
    term: u64,
    /// In milliseconds of the Unix epoch; 0 when it was given back.
    ends_unix_ms: u64,
}

impl Record for Lease {
    const TABLE: &'static str = "leases";
    const KIND: u8 = 6;
    const VERSION: u8 = 1;
}

/// A lease that is held.
#[derive(Debug)]
pub struct Held {
    name: String,
    lease: Lease,
    revision: Revision,
}

impl Held {
    /// Grows with each holder: the greater of two is the later one.
    pub fn term(&self) -> u64 {
        self.lease.term
    }

    /// When it ends, in milliseconds of the Unix epoch.
    pub fn ends_unix_ms(&self) -> u64 {
        self.lease.ends_unix_ms
    }
}

/// Why a lease is not held.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Another one has it.
    #[error("lease {name:?} is held by {holder:?} until {until_unix_ms} ms of the Unix epoch")]
    Taken {
        /// The lease.
        name: String,
        /// Who has it.
        holder: String,
        /// Until when, in milliseconds of the Unix epoch.
        until_unix_ms: u64,
    },
    /// Another one took it at the same time, or since.
    #[error("lease {name:?} has been taken by another holder")]
    Lost {
        /// The lease.
        name: String,
    },
    /// The store failed.
    #[error("use lease {name:?}")]
    Store {
        /// The lease.
        name: String,
        /// Why.
        #[source]
        source: StoreError,
    },
}

impl Meta {
    /// Takes a lease that is free, has ended by `now_unix_ms`, or is the same holder's, for `for_ms` milliseconds.
    ///
    /// # Errors
    /// [`LeaseError::Taken`], [`LeaseError::Lost`] to one of two who try at once, [`LeaseError::Store`].
    pub async fn acquire_lease(
        &self,
        name: &str,
        holder: &str,
        now_unix_ms: u64,
        for_ms: u64,
    ) -> Result<Held, LeaseError> {
        let found = self
            .get::<Lease>(name.as_bytes())
            .map_err(|source| failed(name, source))?;
        let (term, when) = match found {
            None => (1, Precondition::Absent),
            Some((lease, _)) if lease.ends_unix_ms > now_unix_ms && lease.holder != holder => {
                return Err(LeaseError::Taken {
                    name: name.to_owned(),
                    holder: lease.holder,
                    until_unix_ms: lease.ends_unix_ms,
                });
            }
            Some((lease, revision)) => (lease.term + 1, Precondition::Is(revision)),
        };
        let lease = Lease {
            holder: holder.to_owned(),
            term,
            ends_unix_ms: now_unix_ms.saturating_add(for_ms),
        };
        let revision = self.put_lease(name, &lease, when).await?;
        Ok(Held {
            name: name.to_owned(),
            lease,
            revision,
        })
    }

    /// Keeps a lease for `for_ms` milliseconds from now, even if it has ended meanwhile and nobody has taken it.
    ///
    /// # Errors
    /// [`LeaseError::Lost`], [`LeaseError::Store`].
    pub async fn renew_lease(
        &self,
        held: &mut Held,
        now_unix_ms: u64,
        for_ms: u64,
    ) -> Result<(), LeaseError> {
        let lease = Lease {
            ends_unix_ms: now_unix_ms.saturating_add(for_ms),
            ..held.lease.clone()
        };
        held.revision = self
            .put_lease(&held.name, &lease, Precondition::Is(held.revision))
            .await?;
        held.lease = lease;
        Ok(())
    }

    /// Gives a lease back before its end.
    ///
    /// # Errors
    /// [`LeaseError::Lost`], [`LeaseError::Store`].
    pub async fn release_lease(&self, held: Held) -> Result<(), LeaseError> {
        let lease = Lease {
            ends_unix_ms: 0,
            ..held.lease
        };
        let given_back = self.put_lease(&held.name, &lease, Precondition::Is(held.revision));
        given_back.await.map(drop)
    }

    async fn put_lease(&self, name: &str, lease: &Lease, when: Precondition) -> Result<Revision, LeaseError> {
        let mut batch = Batch::new();
        batch.put_if(when, name.as_bytes(), lease);
        match self.commit(batch).await {
            Ok(revisions) => revisions
                .first()
                .copied()
                .ok_or_else(|| failed(name, StoreError::Closed)),
            Err(StoreError::Conflict { .. }) => Err(LeaseError::Lost {
                name: name.to_owned(),
            }),
            Err(source) => Err(failed(name, source)),
        }
    }
}

fn failed(name: &str, source: StoreError) -> LeaseError {
    LeaseError::Store {
        name: name.to_owned(),
        source,
    }
}
