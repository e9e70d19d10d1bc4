//! What can be done with functions, versions, aliases and their settings.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use crate::{
    account::Account,
    change::Next,
    clock,
    config::{ConfigChange, EGRESS_TAG, MEMORY_TAG, check_own, egress, memory_mode},
    control::Control,
    error::ControlError,
    ids::{FunctionName, Target},
    limits,
    model::{Config, Function, State, Version},
    ops::{self, PublishRequest},
};

/// A function to be made.
#[derive(Debug)]
pub struct NewFunction {
    /// Its name.
    pub name: FunctionName,
    /// Its configuration.
    pub config: Config,
    /// Its code package.
    pub zip: Bytes,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Publish a version at once.
    pub publish: bool,
}

/// Code to be laid in place of a function's present one.
#[derive(Debug)]
pub struct NewCode {
    /// The package.
    pub zip: Bytes,
    /// Publish a version at once.
    pub publish: bool,
    /// Only check.
    pub dry_run: bool,
    /// Revision that the caller saw.
    pub revision_id: Option<String>,
}

/// How digests are written for callers; the wire's choice.
pub type Base64 = fn(&[u8]) -> String;

impl Control {
    /// Makes a function. It is active once it has been deployed in the background.
    ///
    /// # Errors
    /// When there is one of that name, the package or the configuration is wrong, or a bound is met.
    pub async fn create_function(
        &self,
        new: NewFunction,
        base64: Base64,
    ) -> Result<(Arc<Function>, Arc<Version>), ControlError> {
        let NewFunction {
            name,
            config,
            zip,
            tags,
            publish,
        } = new;
        self.check_running()?;
        config.check()?;
        check_tags(&tags)?;
        memory_mode(&tags, self.config().memory_mode)?;
        egress(&tags)?;
        check_own(&tags, self.runs_several())?;
        self.check_runtime(&config.runtime)?;
        // Before the package is unpacked, which is expensive; and again when the function is entered.
        self.read(|published| check_free(&published.account, &name))?;
        let received = self.receive(zip).await?;
        let code = received.code;
        let storage_max = self.config().limits.code_storage_bytes;
        let step_name = name.clone();
        let entered = self
            .change(&name, move |account| {
                check_free(account, &step_name)?;
                let copies = if publish { 2 } else { 1 };
                check_storage(account, code.zipped_bytes * copies, storage_max)?;
                let now = clock::unix_ms();
                let mut function = ops::create(step_name, config, code, tags, now);
                let mut version = Arc::clone(&function.latest);
                if publish {
                    (function, version) = ops::publish(&function, &PublishRequest::default(), base64, now)?;
                }
                Ok((Next::Put(function), version))
            })
            .await;
        self.release(received).await;
        let (function, version) = entered?;
        let function = function.expect("the function was just made");
        for version in function.versions() {
            self.spawn_deployment(&name, version);
        }
        Ok((function, version))
    }

    /// Replaces a function's code.
    ///
    /// # Errors
    /// When there is no such function, it is being changed, the package is wrong, or a bound is met.
    pub async fn update_code(
        &self,
        name: &FunctionName,
        new: NewCode,
        base64: Base64,
    ) -> Result<(Arc<Function>, Arc<Version>), ControlError> {
        self.check_running()?;
        let place = self.config().place.clone();
        let before = self.function(name)?;
        ops::check_revision(before.latest.revision_id, new.revision_id.as_deref())?;
        ops::check_changeable(&before, &place)?;
        let received = self.receive(new.zip).await?;
        let code = received.code;
        if new.dry_run {
            let function = ops::update(&before, before.latest.config.clone(), code, clock::unix_ms());
            let version = Arc::clone(&function.latest);
            self.release(received).await;
            return Ok((before, version));
        }
        let storage_max = self.config().limits.code_storage_bytes;
        let step = move |account: &Account, function: &Function| {
            ops::check_revision(function.latest.revision_id, new.revision_id.as_deref())?;
            ops::check_changeable(function, &place)?;
            let copies = if new.publish { 2 } else { 1 };
            let added = (code.zipped_bytes * copies).saturating_sub(function.latest.code.zipped_bytes);
            check_storage(account, added, storage_max)?;
            let now = clock::unix_ms();
            let next = ops::update(function, function.latest.config.clone(), code, now);
            let version = Arc::clone(&next.latest);
            if new.publish {
                let (next, version) = ops::publish(&next, &PublishRequest::default(), base64, now)?;
                return Ok((next, version));
            }
            Ok((next, version))
        };
        let updated = self.change_and_deploy(name, step).await;
        self.release(received).await;
        updated
    }

    /// Changes a function's configuration.
    ///
    /// # Errors
    /// When there is no such function, it is being changed, or the configuration is wrong.
    pub async fn update_configuration(
        &self,
        name: &FunctionName,
        change: ConfigChange,
        revision_id: Option<String>,
    ) -> Result<(Arc<Function>, Arc<Version>), ControlError> {
        self.check_running()?;
        if let Some(runtime) = &change.runtime {
            self.check_runtime(runtime)?;
        }
        let place = self.config().place.clone();
        let step = move |_: &Account, function: &Function| {
            ops::check_revision(function.latest.revision_id, revision_id.as_deref())?;
            ops::check_changeable(function, &place)?;
            let config = change.apply(&function.latest.config)?;
            let next = ops::update(function, config, function.latest.code, clock::unix_ms());
            let version = Arc::clone(&next.latest);
            Ok((next, version))
        };
        self.change_and_deploy(name, step).await
    }

    /// Publishes `$LATEST` as a version.
    ///
    /// # Errors
    /// When there is no such function, it is being changed, or it is not what the caller expects.
    pub async fn publish_version(
        &self,
        name: &FunctionName,
        request: PublishRequest,
        base64: Base64,
    ) -> Result<(Arc<Function>, Arc<Version>), ControlError> {
        self.check_running()?;
        let place = self.config().place.clone();
        let storage_max = self.config().limits.code_storage_bytes;
        let step = move |account: &Account, function: &Function| {
            ops::check_changeable(function, &place)?;
            let (next, version) = ops::publish(function, &request, base64, clock::unix_ms())?;
            if next.published.len() > function.published.len() {
                check_storage(account, version.code.zipped_bytes, storage_max)?;
            }
            Ok((next, version))
        };
        self.change_and_deploy(name, step).await
    }

    /// Deletes a function, or one published version of it.
    ///
    /// # Errors
    /// When there is no such function, or the version cannot be deleted.
    pub async fn delete(&self, target: Target) -> Result<(), ControlError> {
        let name = target.name.clone();
        let place = self.config().place.clone();
        let step = move |account: &Account| {
            let function = account.function(&place, &Target::unqualified(target.name.clone()))?;
            match &target.qualifier {
                None => Ok((Next::Gone, ())),
                Some(qualifier) => Ok((Next::Put(ops::delete_version(function, qualifier)?), ())),
            }
        };
        let (function, ()) = self.change(&name, step).await?;
        if function.is_none() {
            self.book().reserve(&name, None);
        }
        Ok(())
    }

    /// A function.
    ///
    /// # Errors
    /// When there is none.
    pub fn function(&self, name: &FunctionName) -> Result<Arc<Function>, ControlError> {
        self.read(|published| {
            let target = Target::unqualified(name.clone());
            published.account.function(&self.config().place, &target).cloned()
        })
    }

    /// A function and the version that a target names; an alias's main version.
    ///
    /// # Errors
    /// When there is none.
    pub fn version(&self, target: &Target) -> Result<(Arc<Function>, Arc<Version>), ControlError> {
        // The highest draw leads to an alias's main version unless the other one has everything.
        let resolved = self.resolve(target, 1.0_f64.next_down())?;
        Ok((resolved.function, resolved.version))
    }

    /// All functions, in the order of their names.
    pub fn functions(&self) -> Vec<Arc<Function>> {
        self.read(|published| published.account.functions().cloned().collect())
    }

    /// Sets and removes tags. A changed memory mode or way out is laid out in the background.
    ///
    /// # Errors
    /// When there is no such function, or it would have tags that it may not have.
    pub async fn change_tags(
        &self,
        name: &FunctionName,
        set: BTreeMap<String, String>,
        removed: Vec<String>,
    ) -> Result<(), ControlError> {
        let default = self.config().memory_mode;
        let runs_several = self.runs_several();
        let touches =
            |tag: &str| set.contains_key(tag) || removed.iter().any(|removed_key| removed_key == tag);
        let (touches_memory, touches_egress) = (touches(MEMORY_TAG), touches(EGRESS_TAG));
        let step = move |_: &Account, function: &Function| {
            let mut tags = function.shared.tags.clone();
            tags.retain(|key, _| !removed.contains(key));
            tags.extend(set);
            check_tags(&tags)?;
            check_own(&tags, runs_several)?;
            let before = memory_mode(&function.shared.tags, default)?;
            let after = memory_mode(&tags, default)?;
            let network_changes = egress(&function.shared.tags)? != egress(&tags)?;
            let mut next = ops::with_shared(function, |shared| shared.tags = tags);
            if touches_memory && before != after || touches_egress && network_changes {
                next = ops::redeploy_all(&next);
            }
            let version = Arc::clone(&next.latest);
            Ok((next, version))
        };
        self.change_and_deploy(name, step).await.map(drop)
    }

    /// Whether an instance takes several calls at once here. Every runtime's bootstrap asks for one event and answers it
    /// before it asks for the next.
    fn runs_several(&self) -> bool {
        !self.0.node.needs_runtimes()
    }

    fn check_running(&self) -> Result<(), ControlError> {
        if self.is_stopping() {
            Err(ControlError::Stopping)
        } else {
            Ok(())
        }
    }

    pub(crate) async fn change_function<T: Send + 'static>(
        &self,
        name: &FunctionName,
        step: impl FnOnce(&Function) -> Result<(Next, T), ControlError> + Send + 'static,
    ) -> Result<T, ControlError> {
        let place = self.config().place.clone();
        let target = Target::unqualified(name.clone());
        let (_, value) = self
            .change(name, move |account| step(account.function(&place, &target)?))
            .await?;
        Ok(value)
    }

    /// Changes a function and deploys what the change asks to be laid out anew. A published version can be called at
    /// once: the node boots it at the first call if that comes first.
    async fn change_and_deploy(
        &self,
        name: &FunctionName,
        step: impl FnOnce(&Account, &Function) -> Result<(Function, Arc<Version>), ControlError> + Send + 'static,
    ) -> Result<(Arc<Function>, Arc<Version>), ControlError> {
        let place = self.config().place.clone();
        let target = Target::unqualified(name.clone());
        let change = self.change(name, move |account| {
            let before = Arc::clone(account.function(&place, &target)?);
            let (next, version) = step(account, &before)?;
            Ok((Next::Put(next), (before, version)))
        });
        let (function, (before, version)) = change.await?;
        let function = function.expect("a changed function is there");
        for version in function.versions() {
            let known = before.version(version.number);
            if known.is_some_and(|known| known.deployment_id == version.deployment_id) {
                continue;
            }
            if known.is_none() && version.state == State::Active {
                self.register(&function, version);
            }
            self.spawn_deployment(name, version);
        }
        Ok((function, version))
    }
}

fn check_free(account: &Account, name: &FunctionName) -> Result<(), ControlError> {
    match account.get(name) {
        Some(_) => Err(ControlError::Exists {
            what: "Function",
            name: name.to_string(),
        }),
        None => Ok(()),
    }
}

fn check_storage(account: &Account, added_bytes: u64, bytes_max: u64) -> Result<(), ControlError> {
    if account.code_bytes().saturating_add(added_bytes) > bytes_max {
        return Err(ControlError::CodeStorageExceeded);
    }
    Ok(())
}

fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), ControlError> {
    if tags.len() > limits::TAGS_MAX {
        return Err(ControlError::InvalidParameter(
            "Number of tags exceeds resource tag limit.".to_owned(),
        ));
    }
    match tags.keys().find(|key| key.starts_with("aws:")) {
        Some(key) => Err(ControlError::InvalidParameter(format!(
            "Cannot set tag {key}: aws: prefixed tag key names are not allowed for external use."
        ))),
        None => Ok(()),
    }
}
