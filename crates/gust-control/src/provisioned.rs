//! Provisioned concurrency: instances that a version or alias has at all times, as AWS Lambda's API sets it.
//!
//! What is asked for is stored; that it is there is the autoscaler's work, and what is there is counted, not stored.

use std::sync::Arc;

use crate::{
    account::Account,
    change::Next,
    clock,
    concurrency::UNRESERVED_MIN,
    control::Control,
    error::{ControlError, Missing},
    ids::{FunctionName, Qualifier, Target, VersionNumber},
    model::{Function, Provisioned},
    ops,
};

/// What is provisioned for a version or alias, and what there is of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvisionedStatus {
    /// The version or alias.
    pub qualifier: Qualifier,
    /// What was asked for.
    pub provisioned: Provisioned,
    /// How much of it is ready.
    pub allocated: u32,
}

impl ProvisionedStatus {
    /// Everything that was asked for is there.
    pub fn is_ready(&self) -> bool {
        self.allocated >= self.provisioned.requested
    }
}

impl Control {
    /// Provisions concurrency for a version or alias.
    ///
    /// # Errors
    /// When there is no such version or alias, it is `$LATEST`, the version is provisioned already under another name, or
    /// it is more than the function or the account may have.
    pub async fn provision(
        &self,
        target: &Target,
        requested: u32,
    ) -> Result<ProvisionedStatus, ControlError> {
        let qualifier = target.qualifier_or_latest().clone();
        let (place, step_target) = (self.config().place.clone(), target.clone());
        let concurrency = self.config().limits.concurrency;
        let provisioned = Provisioned {
            requested,
            modified_unix_ms: clock::unix_ms(),
        };
        let entered = self.change(&target.name, move |account| {
            let function = account.function(&place, &step_target)?;
            account.resolve(&place, &step_target, 0.0)?;
            let qualifier = step_target.qualifier_or_latest();
            check_qualifier(function, qualifier)?;
            check_room(account, function, qualifier, requested, concurrency)?;
            let next = ops::set_provisioned(function, qualifier, Some(provisioned));
            Ok((Next::Put(next), ()))
        });
        let (function, ()) = entered.await?;
        let function = function.expect("a changed function is there");
        Ok(self.provisioned_status(&function, &qualifier, provisioned))
    }

    /// What is provisioned for a version or alias.
    ///
    /// # Errors
    /// When there is no such function, or nothing is provisioned for it.
    pub fn provisioned(&self, target: &Target) -> Result<ProvisionedStatus, ControlError> {
        let function = self.function(&target.name)?;
        let qualifier = target.qualifier_or_latest();
        match function.scaling.provisioned.get(qualifier) {
            Some(provisioned) => Ok(self.provisioned_status(&function, qualifier, *provisioned)),
            None => Err(self.nothing_provisioned(target)),
        }
    }

    /// Everything that is provisioned for a function.
    ///
    /// # Errors
    /// When there is no such function.
    pub fn all_provisioned(&self, name: &FunctionName) -> Result<Vec<ProvisionedStatus>, ControlError> {
        let function = self.function(name)?;
        let all = function.scaling.provisioned.iter();
        Ok(all
            .map(|(qualifier, provisioned)| self.provisioned_status(&function, qualifier, *provisioned))
            .collect())
    }

    /// Lifts what is provisioned for a version or alias; its instances go as those of others do.
    ///
    /// # Errors
    /// When there is no such function, or nothing is provisioned for it.
    pub async fn delete_provisioned(&self, target: &Target) -> Result<(), ControlError> {
        let nothing = self.nothing_provisioned(target);
        let qualifier = target.qualifier_or_latest().clone();
        let step = move |function: &Function| match function.scaling.provisioned.contains_key(&qualifier) {
            true => Ok((Next::Put(ops::set_provisioned(function, &qualifier, None)), ())),
            false => Err(nothing),
        };
        self.change_function(&target.name, step).await
    }

    fn nothing_provisioned(&self, target: &Target) -> ControlError {
        ControlError::NotFound {
            kind: Missing::Provisioned,
            arn: self.config().place.target_arn(target),
        }
    }

    fn provisioned_status(
        &self,
        function: &Arc<Function>,
        qualifier: &Qualifier,
        provisioned: Provisioned,
    ) -> ProvisionedStatus {
        let numbers = versions_of(function, qualifier);
        let ready = self.read(|published| {
            let found = numbers
                .iter()
                .filter_map(|number| published.runnable(&function.shared.name, *number))
                .map(|runnable| self.0.fleet.regular_ready(runnable.function));
            found.sum::<u32>()
        });
        ProvisionedStatus {
            qualifier: qualifier.clone(),
            provisioned,
            allocated: ready.min(provisioned.requested),
        }
    }
}

/// The versions that a qualifier leads to.
fn versions_of(function: &Function, qualifier: &Qualifier) -> Vec<VersionNumber> {
    match qualifier {
        Qualifier::Version(number) => vec![*number],
        Qualifier::Alias(name) => function.shared.aliases.get(name).map_or_else(Vec::new, |alias| {
            let second = alias
                .additional
                .map(|(number, _)| VersionNumber::Published(number));
            std::iter::once(alias.version).chain(second).collect()
        }),
    }
}

fn check_qualifier(function: &Function, qualifier: &Qualifier) -> Result<(), ControlError> {
    let numbers = versions_of(function, qualifier);
    if numbers.contains(&VersionNumber::Latest) {
        return Err(ControlError::InvalidParameter(
            "Provisioned Concurrency Configs cannot be applied to unpublished function versions.".to_owned(),
        ));
    }
    let others = function
        .scaling
        .provisioned
        .keys()
        .filter(|other| *other != qualifier);
    for other in others {
        if versions_of(function, other)
            .iter()
            .any(|number| numbers.contains(number))
        {
            return Err(ControlError::Conflict(
                "Alias can't be used for Provisioned Concurrency configuration on an already Provisioned version"
                    .to_owned(),
            ));
        }
    }
    Ok(())
}

/// Checks that what is to be provisioned fits what the function has reserved, or what no function has reserved.
fn check_room(
    account: &Account,
    function: &Function,
    qualifier: &Qualifier,
    requested: u32,
    concurrency: u32,
) -> Result<(), ControlError> {
    let provisioned = |of: &Function| {
        let others = of.scaling.provisioned.iter();
        let others =
            others.filter(|(other, _)| of.shared.name != function.shared.name || *other != qualifier);
        others
            .map(|(_, provisioned)| u64::from(provisioned.requested))
            .sum::<u64>()
    };
    let requested = u64::from(requested);
    if let Some(reserved) = function.shared.reserved_concurrency {
        if provisioned(function) + requested > u64::from(reserved) {
            return Err(ControlError::InvalidParameter(
                "Requested Provisioned Concurrency should not be greater than the reservedConcurrentExecution for \
                 function"
                    .to_owned(),
            ));
        }
        return Ok(());
    }
    let of_others: u64 = account
        .functions()
        .map(|of| match of.shared.reserved_concurrency {
            Some(reserved) => u64::from(reserved),
            None => provisioned(of),
        })
        .sum();
    if of_others + requested + u64::from(UNRESERVED_MIN) > u64::from(concurrency) {
        return Err(ControlError::InvalidParameter(format!(
            "Specified ConcurrentExecutions for function decreases account's UnreservedConcurrentExecution below its \
             minimum value of [{UNRESERVED_MIN}]."
        )));
    }
    Ok(())
}
