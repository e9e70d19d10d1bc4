//! From a call to the instance that serves it: what the fleet is told of functions, and what its refusals mean.

use std::{sync::Arc, time::Duration};

use gust_node::VersionId;
use gust_policy::{FunctionId, FunctionSpec, Refusal, TenantId};
use tokio::sync::watch;

use crate::{
    concurrency::ThrottleReason,
    config::{instances_max, per_instance, tenant},
    control::{Control, Runnable},
    error::ControlError,
    fleet::{Placed, Refused},
    ids::{FunctionName, Target},
    invoke::throttled,
    model::{Function, Version},
};

/// Memory that an instance is expected to use before one has been seen, in bytes; less for a function that may use less.
const EXPECTED_BYTES: u64 = 48 << 20;

/// Tags of tenants that are told apart; one more is counted with those that have none.
const TENANTS_MAX: usize = 65_536;

/// A call that has its place, and what runs there.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) runnable: Arc<Runnable>,
    /// As it is configured now.
    pub(crate) version: Arc<Version>,
    pub(crate) placed: Placed,
}

/// A call that waits for its place, until this is dropped.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn new(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Control {
    /// Tells the fleet of a version, and makes of it what calls are sent to.
    pub(crate) fn runnable_of(&self, id: VersionId, function: &Function, version: &Arc<Version>) -> Runnable {
        let fleet_id = self.tell_fleet(&id, function, version);
        Runnable {
            id,
            version: Arc::clone(version),
            function: fleet_id,
        }
    }

    /// Tells the fleet what has changed in how a function is to be scaled.
    pub(crate) fn tell_fleet_of(&self, name: &FunctionName) {
        let known = self.read(|published| {
            let function = published.account.get(name).cloned()?;
            let runnables = published.runnables.get(name)?;
            Some((function, runnables.values().cloned().collect::<Vec<_>>()))
        });
        let Some((function, runnables)) = known else {
            return;
        };
        for runnable in runnables {
            self.tell_fleet(&runnable.id, &function, &runnable.version);
        }
    }

    fn tell_fleet(&self, id: &VersionId, function: &Function, version: &Version) -> FunctionId {
        self.0.fleet.function(id, self.fleet_spec(function, version))
    }

    fn fleet_spec(&self, function: &Function, version: &Version) -> FunctionSpec {
        let tags = &function.shared.tags;
        let reserved = function.shared.reserved_concurrency;
        // What is stored has been checked; a tag of another program's making counts as none.
        let most = instances_max(tags).ok().flatten();
        let per_instance = per_instance(tags, true).unwrap_or(1);
        let for_reserved = reserved.map(|reserved| reserved.div_ceil(per_instance));
        FunctionSpec {
            tenant: self.tenant(tenant(tags)),
            memory_bytes: EXPECTED_BYTES.min(u64::from(version.config.memory_mib) << 20),
            concurrency_per_instance: per_instance,
            instances_min: function.provisioned_for(version.number),
            instances_max: [most, for_reserved].into_iter().flatten().min(),
            // Reservations are counted for all versions of a function together: see `concurrency`.
            reserved: None,
            home: 0,
            queue_timeout_ns: u64::try_from(self.config().queue_timeout.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    fn tenant(&self, tag: Option<&str>) -> TenantId {
        let Some(tag) = tag else {
            return TenantId(0);
        };
        let mut tenants = self.tenants();
        if let Some(tenant) = tenants.get(tag) {
            return *tenant;
        }
        if tenants.len() >= TENANTS_MAX {
            return TenantId(0);
        }
        let tenant = TenantId(u32::try_from(tenants.len() + 1).unwrap_or(0));
        tenants.insert(tag.to_owned(), tenant);
        tenant
    }

    /// Checks a call and has it placed.
    pub(crate) async fn ready(&self, target: &Target) -> Result<Ready, ControlError> {
        if self.is_stopping() {
            return Err(ControlError::Stopping);
        }
        // A function that there is not is told before any bound is.
        self.runnable(target)?;
        self.book().check(&target.name).map_err(throttled)?;
        let _waiting = Waiting::new(&self.0.placing);
        self.place(target).await
    }

    /// Has a call placed. A version that is replaced while the call waits for it is found again, once.
    async fn place(&self, target: &Target) -> Result<Ready, ControlError> {
        let (runnable, version) = self.runnable(target)?;
        let refused = match self.0.fleet.place(runnable.function).await {
            Ok(placed) => {
                return Ok(Ready {
                    runnable,
                    version,
                    placed,
                });
            }
            Err(refused) => refused,
        };
        if refused.reason != Refusal::UnknownFunction {
            return Err(self.refusal(target, refused));
        }
        let (runnable, version) = self.runnable(target)?;
        match self.0.fleet.place(runnable.function).await {
            Ok(placed) => Ok(Ready {
                runnable,
                version,
                placed,
            }),
            Err(refused) => Err(self.refusal(target, refused)),
        }
    }

    fn refusal(&self, target: &Target, refused: Refused) -> ControlError {
        if self.is_stopping() {
            return ControlError::Stopping;
        }
        let Refused { reason, retry_after } = refused;
        let throttled = |reason| ControlError::Throttled {
            reason,
            retry_after: retry_after.max(Duration::from_secs(1)),
        };
        match reason {
            Refusal::UnknownFunction => ControlError::Service(format!(
                "The function {} was changed while the call waited. It can be tried again.",
                target.name
            )),
            Refusal::Reserved => throttled(ThrottleReason::Reserved),
            Refusal::Account => throttled(ThrottleReason::Account),
            Refusal::QueueFull => throttled(ThrottleReason::Queue),
            Refusal::Deadline => throttled(ThrottleReason::Deadline),
            Refusal::NoNode => throttled(ThrottleReason::Node),
        }
    }
}
