//! All functions of the account, as the store has them.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use gust_store::{Batch, BlobId, Meta, StoreError};

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
    /// Reads all functions. A version whose function is gone is what a crash in an older program left; it is not
    /// shown.
    pub(crate) fn load(meta: &Meta) -> Result<Self, StoreError> {
        let mut versions: BTreeMap<Vec<u8>, BTreeMap<VersionNumber, Arc<Version>>> = BTreeMap::new();
        for (key, version) in meta.scan::<Version>()? {
            let name = key
                .split(|byte| *byte == b'/')
                .next()
                .unwrap_or_default()
                .to_vec();
            versions
                .entry(name)
                .or_default()
                .insert(version.number, Arc::new(version));
        }
        let mut scalings: BTreeMap<Vec<u8>, Scaling> = meta.scan::<Scaling>()?.into_iter().collect();
        let mut functions = BTreeMap::new();
        for (key, shared) in meta.scan::<Shared>()? {
            let mut published = versions.remove(&key).unwrap_or_default();
            let Some(latest) = published.remove(&VersionNumber::Latest) else {
                tracing::error!(function = %shared.name, "a function has no $LATEST and is not shown");
                continue;
            };
            let published = published
                .into_values()
                .filter_map(|version| match version.number {
                    VersionNumber::Published(number) => Some((number, version)),
                    VersionNumber::Latest => None,
                });
            let name = shared.name.clone();
            let function = Function {
                shared: Arc::new(shared),
                latest,
                published: published.collect(),
                scaling: Arc::new(scalings.remove(&key).unwrap_or_default()),
            };
            functions.insert(name, Arc::new(function));
        }
        Ok(Self { functions })
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

/// The changes of the store that turn one state of a function into another.
pub(crate) fn batch(name: &FunctionName, old: Option<&Function>, new: Option<&Function>) -> Batch {
    let mut batch = Batch::new();
    let function_key = name.as_str().as_bytes();
    match (old, new) {
        (Some(old), Some(new)) if Arc::ptr_eq(&old.shared, &new.shared) => {}
        (_, Some(new)) => batch.put(function_key, &*new.shared),
        (Some(_), None) => batch.delete::<Shared>(function_key),
        (None, None) => {}
    }
    match (old, new) {
        (Some(old), Some(new)) if Arc::ptr_eq(&old.scaling, &new.scaling) => {}
        (_, Some(new)) if !new.scaling.provisioned.is_empty() => batch.put(function_key, &*new.scaling),
        (Some(_), _) => batch.delete::<Scaling>(function_key),
        (None, _) => {}
    }
    for version in new.into_iter().flat_map(Function::versions) {
        let before = old.and_then(|old| old.version(version.number));
        if !before.is_some_and(|before| Arc::ptr_eq(before, version)) {
            batch.put(&version_key(name, version.number), &**version);
        }
    }
    for version in old.into_iter().flat_map(Function::versions) {
        if new.and_then(|new| new.version(version.number)).is_none() {
            batch.delete::<Version>(&version_key(name, version.number));
        }
    }
    batch
}

/// `name/` and the number in big-endian bytes, `$LATEST` as zero. No name has a slash.
fn version_key(name: &FunctionName, number: VersionNumber) -> Vec<u8> {
    let number = match number {
        VersionNumber::Latest => 0,
        VersionNumber::Published(number) => number,
    };
    let mut key = format!("{name}/").into_bytes();
    key.extend_from_slice(&number.to_be_bytes());
    key
}
