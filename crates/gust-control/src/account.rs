//! All functions of the account, as the store has them.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use gust_store::{Batch, BlobId, Meta, Precondition, Record, Revision, StoreError};

use crate::{
    error::{ControlError, Missing},
    ids::{FunctionName, Place, Qualifier, Target, VersionNumber},
    model::{Function, Scaling, Shared, Version},
    routing,
};

/// All functions, in the order of their names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Account {
    functions: BTreeMap<FunctionName, Arc<Function>>,
}

/// A target with everything that its name led to.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    pub(crate) function: Arc<Function>,
    pub(crate) version: Arc<Version>,
}

impl Account {
    /// Reads all functions, and the revisions of their records. A version whose function is gone is what a deletion left
    /// that was cut short; it is not shown, and goes when a function of that name is made.
    pub(crate) fn load(meta: &Meta) -> Result<(Self, Revisions), StoreError> {
        let mut revisions = Revisions {
            retaken: meta.retaken(),
            ..Revisions::default()
        };
        let mut versions: BTreeMap<Vec<u8>, Published> = BTreeMap::new();
        meta.each(&[], |key, version: Version, revision| {
            revisions.note::<Version>(key, revision);
            let name = key.split(|byte| *byte == b'/').next().unwrap_or_default();
            let published = versions.entry(name.to_vec()).or_default();
            published.insert(version.number, Arc::new(version));
        })?;
        let mut scalings: BTreeMap<Vec<u8>, Scaling> = BTreeMap::new();
        meta.each(&[], |key, scaling: Scaling, revision| {
            revisions.note::<Scaling>(key, revision);
            scalings.insert(key.to_vec(), scaling);
        })?;
        let mut functions = BTreeMap::new();
        meta.each(&[], |key, shared: Shared, revision| {
            revisions.note::<Shared>(key, revision);
            let versions = versions.remove(key).unwrap_or_default();
            let scaling = scalings.remove(key).unwrap_or_default();
            if let Some(function) = assemble(shared, versions, scaling) {
                functions.insert(function.shared.name.clone(), Arc::new(function));
            }
        })?;
        Ok((Self { functions }, revisions))
    }

    pub(crate) fn functions(&self) -> impl Iterator<Item = &Arc<Function>> {
        self.functions.values()
    }

    pub(crate) fn get(&self, name: &FunctionName) -> Option<&Arc<Function>> {
        self.functions.get(name)
    }

    /// Puts a function, or removes it.
    pub(crate) fn set(&mut self, name: &FunctionName, function: Option<Arc<Function>>) {
        match function {
            Some(function) => self.functions.insert(name.clone(), function),
            None => self.functions.remove(name),
        };
    }

    /// The function of a target.
    pub(crate) fn function(&self, place: &Place, target: &Target) -> Result<&Arc<Function>, ControlError> {
        self.get(&target.name).ok_or_else(|| not_found(place, target))
    }

    /// The function and the version that a target names. `draw`, from 0 to 1, decides between the two versions of a
    /// weighted alias.
    pub(crate) fn resolve(
        &self,
        place: &Place,
        target: &Target,
        draw: f64,
    ) -> Result<Resolved, ControlError> {
        let function = self.function(place, target)?;
        let number = match target.qualifier_or_latest() {
            Qualifier::Version(number) => *number,
            Qualifier::Alias(name) => {
                let alias = function
                    .shared
                    .aliases
                    .get(name)
                    .ok_or_else(|| not_found(place, target))?;
                routing::choose(alias, draw)
            }
        };
        let version = function.version(number).ok_or_else(|| not_found(place, target))?;
        Ok(Resolved {
            function: Arc::clone(function),
            version: Arc::clone(version),
        })
    }

    /// Size of all packages of all versions, in bytes; a package counts once for each version that has it.
    pub(crate) fn code_bytes(&self) -> u64 {
        let versions = self.functions().flat_map(|function| function.versions());
        versions.map(|version| version.code.zipped_bytes).sum()
    }

    /// Packages that some version has.
    pub(crate) fn code_blobs(&self) -> HashSet<BlobId> {
        let versions = self.functions().flat_map(|function| function.versions());
        versions.map(|version| version.code.blob()).collect()
    }
}

fn not_found(place: &Place, target: &Target) -> ControlError {
    ControlError::NotFound {
        kind: Missing::Function,
        arn: place.target_arn(target),
    }
}

/// A function's versions, as they are read.
type Published = BTreeMap<VersionNumber, Arc<Version>>;

/// A function from its records; `None` when it has no code.
fn assemble(mut shared: Shared, mut versions: Published, scaling: Scaling) -> Option<Function> {
    let Some(latest) = versions.remove(&VersionNumber::Latest) else {
        tracing::error!(function = %shared.name, "a function has no $LATEST and is not shown");
        return None;
    };
    let numbered = versions.into_values().filter_map(|version| match version.number {
        VersionNumber::Published(number) => Some((number, version)),
        VersionNumber::Latest => None,
    });
    let published: BTreeMap<u64, Arc<Version>> = numbered.collect();
    if let Some(last) = published.keys().next_back() {
        // A publication that was cut short has written its version, and not yet that its number is taken.
        shared.next_version = shared.next_version.max(last + 1);
    }
    Some(Function {
        shared: Arc::new(shared),
        latest,
        published,
        scaling: Arc::new(scaling),
    })
}

/// Revisions of the records that functions are kept as: what this control plane has read or written last. A change
/// depends on them, so that one that was made on old grounds fails instead of undoing another.
#[derive(Debug, Default)]
pub(crate) struct Revisions {
    of: BTreeMap<(&'static str, Vec<u8>), Revision>,
    /// How often the store had been taken again when they were read.
    retaken: u64,
}

impl Revisions {
    fn note<R: Record>(&mut self, key: &[u8], revision: Revision) {
        self.of.insert((R::TABLE, key.to_vec()), revision);
    }

    /// Whether they are of what the store has now, as far as this process has changed it.
    pub(crate) fn are_of(&self, meta: &Meta) -> bool {
        self.retaken == meta.retaken()
    }

    fn when<R: Record>(&self, key: &[u8]) -> Precondition {
        match self.of.get(&(R::TABLE, key.to_vec())) {
            Some(revision) => Precondition::Is(*revision),
            None => Precondition::Absent,
        }
    }

    fn put<R: Record>(&self, batch: &mut Batch, key: &[u8], record: &R) {
        batch.put_if(self.when::<R>(key), key, record);
    }

    fn delete<R: Record>(&self, batch: &mut Batch, key: &[u8]) {
        match self.when::<R>(key) {
            Precondition::Absent | Precondition::None => {}
            when @ Precondition::Is(_) => batch.delete_if::<R>(when, key),
        }
    }

    /// Writes a batch of [`Revisions::batch`]'s.
    pub(crate) async fn commit(&mut self, meta: &Meta, batch: Batch) -> Result<(), StoreError> {
        let steps = batch.steps().iter();
        let written: Vec<_> = steps
            .map(|step| ((step.table, step.key.clone()), step.value.is_some()))
            .collect();
        let revisions = meta.commit(batch).await?;
        for ((key, is_there), revision) in written.into_iter().zip(revisions) {
            match is_there {
                true => self.of.insert(key, revision),
                false => self.of.remove(&key),
            };
        }
        Ok(())
    }

    /// Reads a function again, after a write that failed in a way that may have changed some of its records.
    pub(crate) fn reload(
        &mut self,
        meta: &Meta,
        name: &FunctionName,
    ) -> Result<Option<Arc<Function>>, StoreError> {
        let key = name.as_str().as_bytes();
        let prefix = versions_prefix(name);
        self.of
            .retain(|(_, kept), _| kept != key && !kept.starts_with(&prefix));
        let mut versions = Published::new();
        meta.each(&prefix, |key, version: Version, revision| {
            self.note::<Version>(key, revision);
            versions.insert(version.number, Arc::new(version));
        })?;
        let mut scaling = Scaling::default();
        if let Some((found, revision)) = meta.get::<Scaling>(key)? {
            self.note::<Scaling>(key, revision);
            scaling = found;
        }
        let Some((shared, revision)) = meta.get::<Shared>(key)? else {
            return Ok(None);
        };
        self.note::<Shared>(key, revision);
        Ok(assemble(shared, versions, scaling).map(Arc::new))
    }

    /// The changes of the store that turn one state of a function into another, in an order in which what is there after
    /// any of them is a function as it was, as it is to be, or on a way that its caller may see: [`Shared`] says that a
    /// function is there, so it is written last and deleted first; what it names is written before it and deleted
    /// after it.
    pub(crate) fn batch(&self, name: &FunctionName, old: Option<&Function>, new: Option<&Function>) -> Batch {
        let mut batch = Batch::new();
        let function_key = name.as_str().as_bytes();
        match new {
            None => {
                self.delete::<Shared>(&mut batch, function_key);
                self.delete_versions(&mut batch, name, None);
                self.delete::<Scaling>(&mut batch, function_key);
            }
            Some(new) => {
                if old.is_none() {
                    // What a deletion left that was cut short is not to belong to another function of that name.
                    self.delete_versions(&mut batch, name, Some(new));
                    if new.scaling.provisioned.is_empty() {
                        self.delete::<Scaling>(&mut batch, function_key);
                    }
                }
                self.put_function(&mut batch, name, old, new);
            }
        }
        batch
    }

    fn put_function(&self, batch: &mut Batch, name: &FunctionName, old: Option<&Function>, new: &Function) {
        let function_key = name.as_str().as_bytes();
        for version in new.versions() {
            let before = old.and_then(|old| old.version(version.number));
            if !before.is_some_and(|before| Arc::ptr_eq(before, version)) {
                self.put(batch, &version_key(name, version.number), &**version);
            }
        }
        let is_scaling_new = old.is_none_or(|old| !Arc::ptr_eq(&old.scaling, &new.scaling));
        if is_scaling_new && !new.scaling.provisioned.is_empty() {
            self.put(batch, function_key, &*new.scaling);
        }
        if old.is_none_or(|old| !Arc::ptr_eq(&old.shared, &new.shared)) {
            self.put(batch, function_key, &*new.shared);
        }
        if old.is_some() {
            self.delete_versions(batch, name, Some(new));
            if is_scaling_new && new.scaling.provisioned.is_empty() {
                self.delete::<Scaling>(batch, function_key);
            }
        }
    }

    /// Deletes the versions under a name that `kept` has not.
    fn delete_versions(&self, batch: &mut Batch, name: &FunctionName, kept: Option<&Function>) {
        let prefix = versions_prefix(name);
        let from = self.of.range((Version::TABLE, prefix.clone())..);
        for ((_, key), _) in
            from.take_while(|((table, key), _)| *table == Version::TABLE && key.starts_with(&prefix))
        {
            let is_kept = kept.is_some_and(|kept| {
                let mut keys = kept.versions().map(|version| version_key(name, version.number));
                keys.any(|kept| kept == *key)
            });
            if !is_kept {
                self.delete::<Version>(batch, key);
            }
        }
    }
}

/// What the keys of a function's versions begin with. No name has a slash.
fn versions_prefix(name: &FunctionName) -> Vec<u8> {
    format!("{name}/").into_bytes()
}

/// The prefix and the number in big-endian bytes, `$LATEST` as zero.
fn version_key(name: &FunctionName, number: VersionNumber) -> Vec<u8> {
    let number = match number {
        VersionNumber::Latest => 0,
        VersionNumber::Published(number) => number,
    };
    let mut key = versions_prefix(name);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

#[cfg(test)]
mod tests;
