//! How a function is changed: computed from what is published, written durably, published.
//!
//! One change after the other. Its steps depend on what this control plane has read or written last of each record, so a
//! change that another writer was quicker than changes nothing; and since a write that fails may have been done in part,
//! the function is then read again.

use std::sync::Arc;

use gust_store::StoreError;

use crate::{
    account::{Account, Revisions},
    control::{Control, Runnable, log_scope},
    error::ControlError,
    ids::FunctionName,
    model::Function,
};

/// What a change makes of a function.
pub(crate) enum Next {
    /// It stays as it is.
    Same,
    /// It becomes this.
    Put(Function),
    /// It is no more.
    Gone,
}

impl Control {
    /// Computes a change from what is published, makes it durable, and publishes it. Carried out to its end even if
    /// the caller goes away. Answers the function after the change beside the step's own value.
    pub(crate) async fn change<T: Send + 'static>(
        &self,
        name: &FunctionName,
        step: impl FnOnce(&Account) -> Result<(Next, T), ControlError> + Send + 'static,
    ) -> Result<(Option<Arc<Function>>, T), ControlError> {
        let (control, name) = (self.clone(), name.clone());
        let work = async move { control.change_now(&name, step).await };
        match self.0.tasks.spawn(work).await {
            Ok(result) => result,
            Err(panic) => Err(ControlError::Service(format!("the change failed: {panic}"))),
        }
    }

    async fn change_now<T>(
        &self,
        name: &FunctionName,
        step: impl FnOnce(&Account) -> Result<(Next, T), ControlError>,
    ) -> Result<(Option<Arc<Function>>, T), ControlError> {
        let mut revisions = self.0.changing.lock().await;
        if !revisions.are_of(&self.0.store.meta) {
            self.read_all_again(&mut revisions)?;
        }
        let (old, next, value) = self.read(|published| {
            let (next, value) = step(&published.account)?;
            Ok::<_, ControlError>((published.account.get(name).cloned(), next, value))
        })?;
        let new = match next {
            Next::Same => return Ok((old, value)),
            Next::Put(function) => Some(Arc::new(function.pruned())),
            Next::Gone => None,
        };
        let batch = revisions.batch(name, old.as_deref(), new.as_deref());
        if let Err(error) = revisions.commit(&self.0.store.meta, batch).await {
            self.read_function_again(&mut revisions, name).await;
            return Err(error.into());
        }
        self.write(|published| published.account.set(name, new.clone()));
        self.tell_fleet_of(name);
        if let Some(old) = old {
            self.forget(name, &old, new.as_deref()).await;
        }
        Ok((new, value))
    }

    /// Publishes what the store has of a function, after a write that may have been done in part.
    async fn read_function_again(&self, revisions: &mut Revisions, name: &FunctionName) {
        let found = match revisions.reload(&self.0.store.meta, name) {
            Ok(found) => found,
            // The next change of it meets this again, and changes nothing.
            Err(error) => return tracing::error!(function = %name, %error, "a function was not read again"),
        };
        let old = self.read(|published| published.account.get(name).cloned());
        self.write(|published| published.account.set(name, found.clone()));
        self.tell_fleet_of(name);
        if let Some(old) = old {
            self.forget(name, &old, found.as_deref()).await;
        }
    }

    /// Lets go of what only the old state of a function needed.
    async fn forget(&self, name: &FunctionName, old: &Function, new: Option<&Function>) {
        let gone: Vec<Arc<Runnable>> = self.write(|published| {
            let Some(runnables) = published.runnables.get_mut(name) else {
                return Vec::new();
            };
            let gone = runnables.extract_if(|number, _| new.and_then(|new| new.version(*number)).is_none());
            let gone = gone.map(|(_, runnable)| runnable).collect();
            if new.is_none() {
                published.runnables.remove(name);
            }
            gone
        });
        for runnable in gone {
            self.0.fleet.remove_function(&runnable.id);
            self.remove_version(&runnable.id).await;
        }
        let needed = self.read(|published| published.account.code_blobs());
        for blob in old.versions().map(|version| version.code.blob()) {
            if !needed.contains(&blob) {
                self.remove_package(blob);
            }
        }
        if new.is_none() {
            self.0.recent.forget(name);
            if let Err(error) = self.0.store.logs.remove(&log_scope(name)).await {
                tracing::warn!(%error, "a log that nothing needs could not be removed");
            }
        }
    }

    /// Publishes what the store has, after it was let go of and taken again: another process may have changed it.
    fn read_all_again(&self, revisions: &mut Revisions) -> Result<(), StoreError> {
        let (account, read) = Account::load(&self.0.store.meta)?;
        *revisions = read;
        self.write(|published| published.account = account);
        Ok(())
    }
}
