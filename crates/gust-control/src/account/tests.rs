use std::sync::Arc;

use gust_store::{Memory, Meta, Precondition};

use super::*;
use crate::{
    ids::AliasName,
    model::{Alias, Provisioned, tests::version},
};

const NAME: &str = "hello";

fn name() -> FunctionName {
    FunctionName::new(NAME).unwrap()
}

/// A function with versions of these numbers, an alias for each, and something provisioned for each alias.
fn function(published: &[u64], description: &str) -> Function {
    let alias_name = |number: &u64| AliasName::new(&format!("v{number}")).unwrap();
    let alias = |number: &u64| Alias {
        version: VersionNumber::Published(*number),
        description: description.to_owned(),
        additional: None,
        revision_id: uuid::Uuid::from_u128(u128::from(*number)),
    };
    let provisioned = Provisioned {
        requested: 1,
        modified_unix_ms: 1,
    };
    let numbered = |number: VersionNumber| {
        let mut version = version(number);
        version.config.description = description.to_owned();
        Arc::new(version)
    };
    let shared = Shared {
        name: name(),
        next_version: published.last().map_or(1, |last| last + 1),
        aliases: published
            .iter()
            .map(|number| (alias_name(number), alias(number)))
            .collect(),
        tags: BTreeMap::new(),
        reserved_concurrency: None,
        event_configs: BTreeMap::new(),
    };
    let scaling = Scaling {
        provisioned: published
            .iter()
            .map(|number| (Qualifier::Alias(alias_name(number)), provisioned))
            .collect(),
    };
    Function {
        shared: Arc::new(shared),
        latest: numbered(VersionNumber::Latest),
        published: published
            .iter()
            .map(|number| (*number, numbered(VersionNumber::Published(*number))))
            .collect(),
        scaling: Arc::new(scaling),
    }
}

struct Kept {
    records: Arc<Memory>,
    meta: Meta,
}

impl Kept {
    async fn new(function: Option<&Function>) -> Self {
        let records = Arc::new(Memory::default());
        let meta = Meta::new(records.clone());
        let kept = Self { records, meta };
        kept.change(None, function).await.unwrap();
        kept
    }

    fn load(&self) -> (Option<Arc<Function>>, Revisions) {
        let (account, revisions) = Account::load(&self.meta).unwrap();
        (account.get(&name()).cloned(), revisions)
    }

    /// Changes what is there, as a control plane does that has just started.
    async fn change(&self, old: Option<&Function>, new: Option<&Function>) -> Result<(), StoreError> {
        let (_, mut revisions) = self.load();
        let batch = revisions.batch(&name(), old, new);
        revisions.commit(&self.meta, batch).await
    }
}

/// What any reader may rely on.
fn check_sound(function: &Function) {
    for alias in function.shared.aliases.values() {
        assert!(
            function.version(alias.version).is_some(),
            "an alias names a version that is there"
        );
    }
    let last = function.published.keys().next_back().copied().unwrap_or(0);
    assert!(function.shared.next_version > last, "the next number is free");
}

/// Every change that there is, cut after each of its steps: what is there is sound, and the change can be made again.
#[tokio::test]
async fn a_change_can_be_cut_after_each_step_and_made_again() {
    let [none, plain, published, other] = [
        None,
        Some(function(&[], "a")),
        Some(function(&[1, 2], "a")),
        Some(function(&[2, 3], "b")),
    ];
    let states = [&none, &plain, &published, &other];
    let mut cuts = 0;
    for old in states {
        for new in states {
            let (old, new) = (old.as_ref(), new.as_ref());
            let whole = Kept::new(old).await;
            whole.change(old, new).await.unwrap();
            let steps = {
                let kept = Kept::new(old).await;
                kept.load().1.batch(&name(), old, new).steps().len()
            };
            for cut in 0..steps {
                let kept = Kept::new(old).await;
                kept.records.cut_after(Some(cut));
                assert!(kept.change(old, new).await.is_err());
                kept.records.cut_after(None);
                let (found, _) = kept.load();
                if let Some(found) = &found {
                    check_sound(found);
                }
                // A function is there from the last step of its making to the first one of its end.
                let is_there = match (old, new) {
                    (Some(_), None) => cut == 0,
                    (old, _) => old.is_some(),
                };
                assert_eq!(
                    found.is_some(),
                    is_there,
                    "{old:?} to {new:?}, cut after {cut} of {steps}"
                );
                kept.change(found.as_deref(), new).await.unwrap();
                assert_eq!(kept.load().0.as_deref(), new);
                if new.is_some() {
                    assert_eq!(kept.records.contents(), whole.records.contents());
                }
                cuts += 1;
            }
        }
    }
    assert!(cuts > 30, "{cuts}");
}

#[tokio::test]
async fn what_a_cut_deletion_left_belongs_to_no_later_function() {
    let old = function(&[1, 2], "a");
    let kept = Kept::new(Some(&old)).await;
    kept.records.cut_after(Some(1));
    assert!(kept.change(Some(&old), None).await.is_err());
    kept.records.cut_after(None);
    assert_eq!(kept.load().0, None);
    let new = function(&[], "b");
    kept.change(None, Some(&new)).await.unwrap();
    let whole = Kept::new(Some(&new)).await;
    assert_eq!(kept.records.contents(), whole.records.contents());
}

#[tokio::test]
async fn a_control_plane_that_was_replaced_changes_nothing() {
    let old = function(&[1], "a");
    let kept = Kept::new(Some(&old)).await;
    let (_, mut replaced) = kept.load();
    let new = function(&[1], "b");
    kept.change(Some(&old), Some(&new)).await.unwrap();
    let stale = function(&[1], "c");
    let batch = replaced.batch(&name(), Some(&old), Some(&stale));
    assert!(batch.steps().iter().all(|step| step.when != Precondition::None));
    let error = replaced.commit(&kept.meta, batch).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict { .. }), "{error}");
    assert_eq!(kept.load().0.as_deref(), Some(&new));
    // It reads again and goes on.
    let found = replaced.reload(&kept.meta, &name()).unwrap();
    assert_eq!(found.as_deref(), Some(&new));
    let batch = replaced.batch(&name(), Some(&new), Some(&stale));
    replaced.commit(&kept.meta, batch).await.unwrap();
    assert_eq!(kept.load().0.as_deref(), Some(&stale));
}

#[tokio::test]
async fn what_was_read_before_the_store_was_let_go_of_is_read_again() {
    let old = function(&[1], "a");
    let kept = Kept::new(Some(&old)).await;
    let (_, before) = kept.load();
    assert!(before.are_of(&kept.meta));
    kept.meta.release().await.unwrap();
    assert!(matches!(Account::load(&kept.meta), Err(StoreError::Closed)));
    kept.meta.retake().unwrap();
    assert!(!before.are_of(&kept.meta));
    let (found, after) = kept.load();
    assert!(after.are_of(&kept.meta));
    assert_eq!(found.as_deref(), Some(&old));
}
