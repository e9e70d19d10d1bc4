//! What every place that keeps records must do, run over each that there is.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::{
    Batch, LeaseError, Memory, Meta, Precondition, Record, StoreError, Watched,
    embedded::Embedded,
    records::{RECORD_BYTES_MAX, Step},
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Note(String);

impl Record for Note {
    const TABLE: &'static str = "note";
    const KIND: u8 = 201;
    const VERSION: u8 = 1;
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Other(u8);

impl Record for Other {
    const TABLE: &'static str = "other";
    const KIND: u8 = 202;
    const VERSION: u8 = 1;
}

fn note(text: &str) -> Note {
    Note(text.to_owned())
}

/// A store, and what it lives in.
struct Place {
    meta: Meta,
    _dir: Option<TempDir>,
}

fn memory() -> Place {
    Place {
        meta: Meta::in_memory(),
        _dir: None,
    }
}

fn embedded() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let meta = Meta::embedded(&dir.path().join("meta.redb"), 1 << 20).unwrap();
    Place {
        meta,
        _dir: Some(dir),
    }
}

async fn put(meta: &Meta, when: Precondition, key: &[u8], text: &str) -> Result<crate::Revision, StoreError> {
    let mut batch = Batch::new();
    batch.put_if(when, key, &note(text));
    meta.commit(batch).await.map(|revisions| revisions[0])
}

fn is_conflict<T>(result: Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Conflict { .. }))
}

async fn records_are_read_and_listed_by_prefix_in_order(place: Place) {
    let meta = place.meta;
    assert_eq!(meta.scan::<Note>().unwrap(), []);
    assert_eq!(meta.get::<Note>(b"a").unwrap(), None);
    let mut batch = Batch::new();
    for key in ["b/2", "a", "b/1", "c"] {
        batch.put(key.as_bytes(), &note(key));
    }
    batch.put(b"b/3", &Other(7));
    let revisions = meta.commit(batch).await.unwrap();
    assert_eq!(revisions.len(), 5);
    let all: Vec<Note> = meta
        .scan::<Note>()
        .unwrap()
        .into_iter()
        .map(|(_, note)| note)
        .collect();
    assert_eq!(all, ["a", "b/1", "b/2", "c"].map(note));
    let keys = meta.keys::<Note>(b"b/").unwrap();
    assert_eq!(
        keys,
        [(b"b/1".to_vec(), revisions[2]), (b"b/2".to_vec(), revisions[0])]
    );
    assert_eq!(
        (meta.count::<Note>().unwrap(), meta.count::<Other>().unwrap()),
        (4, 1)
    );
    let mut batch = Batch::new();
    batch.delete::<Note>(b"a");
    batch.delete::<Note>(b"never there");
    meta.commit(batch).await.unwrap();
    assert_eq!(meta.get::<Note>(b"a").unwrap(), None);
    assert_eq!(
        meta.get::<Note>(b"b/1").unwrap(),
        Some((note("b/1"), revisions[2]))
    );
}

async fn of_two_writers_one_loses(place: Place) {
    let meta = place.meta;
    let created = put(&meta, Precondition::Absent, b"k", "one").await.unwrap();
    assert!(is_conflict(put(&meta, Precondition::Absent, b"k", "two").await));
    // Sixteen who have read the same.
    let writers: Vec<_> = (0..16)
        .map(|n| {
            let meta = meta.clone();
            tokio::spawn(async move { put(&meta, Precondition::Is(created), b"k", &n.to_string()).await })
        })
        .collect();
    let mut won = Vec::new();
    for (n, writer) in writers.into_iter().enumerate() {
        match writer.await.unwrap() {
            Ok(revision) => won.push((note(&n.to_string()), revision)),
            Err(error) => assert!(matches!(error, StoreError::Conflict { .. }), "{error}"),
        }
    }
    assert_eq!(won.len(), 1);
    assert_eq!(meta.get::<Note>(b"k").unwrap(), won.pop());
}

async fn a_record_that_was_made_again_is_another(place: Place) {
    let meta = place.meta;
    let first = put(&meta, Precondition::None, b"k", "same").await.unwrap();
    let mut batch = Batch::new();
    batch.delete_if::<Note>(Precondition::Is(first), b"k");
    meta.commit(batch).await.unwrap();
    let mut again = Batch::new();
    again.delete_if::<Note>(Precondition::Is(first), b"k");
    assert!(is_conflict(meta.commit(again).await), "it is gone");
    put(&meta, Precondition::Absent, b"k", "same").await.unwrap();
    assert!(is_conflict(
        put(&meta, Precondition::Is(first), b"k", "new").await
    ));
}

async fn nothing_after_a_conflict_is_done(place: Place) {
    let meta = place.meta;
    put(&meta, Precondition::None, b"there", "old").await.unwrap();
    let mut batch = Batch::new();
    batch.put(b"before", &note("x"));
    batch.put_if(Precondition::Absent, b"there", &note("new"));
    batch.put(b"after", &note("x"));
    assert!(is_conflict(meta.commit(batch).await));
    assert_eq!(meta.get::<Note>(b"there").unwrap().unwrap().0, note("old"));
    assert_eq!(meta.get::<Note>(b"after").unwrap(), None);
}

async fn a_record_that_is_too_long_is_refused(place: Place) {
    let meta = place.meta;
    let error = put(&meta, Precondition::None, b"k", &"x".repeat(RECORD_BYTES_MAX))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    assert_eq!(meta.get::<Note>(b"k").unwrap(), None);
}

async fn a_watch_sees_every_change_in_order(place: Place) {
    let meta = place.meta;
    put(&meta, Precondition::None, b"before", "x").await.unwrap();
    let mut watch = meta.watch::<Note>();
    let mut expected = Vec::new();
    for n in 0..20 {
        let record = note(&n.to_string());
        let mut batch = Batch::new();
        batch.put(b"k", &record);
        batch.put(b"k", &Other(n));
        batch.delete::<Note>(b"gone");
        let revision = meta.commit(batch).await.unwrap()[0];
        let key = b"k".to_vec();
        expected.push(Watched::Put {
            key,
            record,
            revision,
        });
        expected.push(Watched::Deleted {
            key: b"gone".to_vec(),
        });
    }
    for expected in expected {
        assert_eq!(watch.next().await.unwrap().unwrap(), expected);
    }
}

async fn a_watch_that_is_behind_is_told(place: Place) {
    let meta = place.meta;
    let mut watch = meta.watch::<Note>();
    let mut batch = Batch::new();
    for n in 0..3000u32 {
        batch.put(b"k", &note(&n.to_string()));
    }
    meta.commit(batch).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap(), Watched::Missed);
    let mut last = None;
    let end = put(&meta, Precondition::None, b"end", "x").await.unwrap();
    loop {
        match watch.next().await.unwrap().unwrap() {
            Watched::Put { revision, .. } if revision == end => break,
            Watched::Put { record, .. } => last = Some(record),
            // The end itself has pushed one out.
            Watched::Missed => {}
            Watched::Deleted { key } => panic!("{key:?}"),
        }
    }
    assert_eq!(last, Some(note("2999")));
}

async fn a_lease_has_one_holder_until_it_ends(place: Place) {
    let meta = place.meta;
    let first = meta.acquire_lease("server", "a", 1000, 100).await.unwrap();
    match meta.acquire_lease("server", "b", 1099, 100).await {
        Err(LeaseError::Taken {
            holder,
            until_unix_ms,
            ..
        }) => assert_eq!((holder.as_str(), until_unix_ms), ("a", 1100)),
        other => panic!("{other:?}"),
    }
    let mut first = first;
    meta.renew_lease(&mut first, 1090, 100).await.unwrap();
    assert!(meta.acquire_lease("server", "b", 1150, 100).await.is_err());
    let second = meta.acquire_lease("server", "b", 1190, 100).await.unwrap();
    assert!(second.term() > first.term());
    let lost = meta.renew_lease(&mut first, 1191, 100).await;
    assert!(matches!(lost, Err(LeaseError::Lost { .. })), "{lost:?}");
    meta.release_lease(second).await.unwrap();
    let third = meta.acquire_lease("server", "a", 1192, 100).await.unwrap();
    assert_eq!((third.term(), third.ends_unix_ms()), (3, 1292));
}

async fn of_many_who_take_a_lease_one_gets_it(place: Place) {
    let takers: Vec<_> = (0..8)
        .map(|n| {
            let meta = place.meta.clone();
            tokio::spawn(async move { meta.acquire_lease("l", &n.to_string(), 10, 100).await.is_ok() })
        })
        .collect();
    let mut holders = 0;
    for taker in takers {
        holders += usize::from(taker.await.unwrap());
    }
    assert_eq!(holders, 1);
}

async fn nothing_is_done_after_it_was_let_go_of(place: Place) {
    let meta = place.meta;
    put(&meta, Precondition::None, b"k", "kept").await.unwrap();
    meta.release().await.unwrap();
    assert!(matches!(meta.get::<Note>(b"k"), Err(StoreError::Closed)));
    assert!(put(&meta, Precondition::None, b"k", "lost").await.is_err());
    meta.retake().unwrap();
    assert_eq!(meta.get::<Note>(b"k").unwrap().unwrap().0, note("kept"));
    put(&meta, Precondition::None, b"k", "new").await.unwrap();
}

macro_rules! over_each {
    ($($case:ident),* $(,)?) => {
        mod in_memory {
            $(#[tokio::test] async fn $case() { super::$case(super::memory()).await })*
        }
        mod in_the_database {
            $(#[tokio::test] async fn $case() { super::$case(super::embedded()).await })*
        }
    };
}

over_each!(
    records_are_read_and_listed_by_prefix_in_order,
    of_two_writers_one_loses,
    a_record_that_was_made_again_is_another,
    nothing_after_a_conflict_is_done,
    a_record_that_is_too_long_is_refused,
    a_watch_sees_every_change_in_order,
    a_watch_that_is_behind_is_told,
    a_lease_has_one_holder_until_it_ends,
    of_many_who_take_a_lease_one_gets_it,
    nothing_is_done_after_it_was_let_go_of,
);

#[tokio::test]
async fn records_outlive_the_process_that_wrote_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    let meta = Meta::embedded(&path, 1 << 20).unwrap();
    let mut batch = Batch::new();
    batch.put(b"a", &note("one"));
    // A dropped future does not undo its write.
    drop(meta.commit(batch));
    drop(meta);
    let meta = Meta::embedded(&path, 1 << 20).unwrap();
    assert_eq!(meta.scan::<Note>().unwrap(), [(b"a".to_vec(), note("one"))]);
    // A record of an earlier process can be changed with its revision, by one.
    let (_, revision) = meta.get::<Note>(b"a").unwrap().unwrap();
    assert!(is_conflict(put(&meta, Precondition::Absent, b"a", "two").await));
    put(&meta, Precondition::Is(revision), b"a", "two").await.unwrap();
    assert!(is_conflict(
        put(&meta, Precondition::Is(revision), b"a", "three").await
    ));
}

#[tokio::test]
async fn what_another_process_may_have_changed_meanwhile_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    let meta = Meta::embedded(&path, 1 << 20).unwrap();
    let before = put(&meta, Precondition::None, b"k", "ours").await.unwrap();
    meta.release().await.unwrap();
    let theirs = Meta::embedded(&path, 1 << 20).unwrap();
    put(&theirs, Precondition::None, b"k", "theirs").await.unwrap();
    drop(theirs);
    meta.retake().unwrap();
    assert!(is_conflict(
        put(&meta, Precondition::Is(before), b"k", "ours").await
    ));
    assert_eq!(meta.get::<Note>(b"k").unwrap().unwrap().0, note("theirs"));
}

#[tokio::test]
async fn concurrent_writers_all_get_an_answer() {
    let place = embedded();
    let commits = (0..100u32).map(|n| {
        let mut batch = Batch::new();
        batch.put(&n.to_be_bytes(), &note(&n.to_string()));
        tokio::spawn(place.meta.commit(batch))
    });
    for commit in commits.collect::<Vec<_>>() {
        commit.await.unwrap().unwrap();
    }
    assert_eq!(place.meta.count::<Note>().unwrap(), 100);
}

#[tokio::test]
async fn a_write_in_memory_is_cut_where_it_was_asked_to_be() {
    let records = Arc::new(Memory::default());
    let meta = Meta::new(records.clone());
    records.cut_after(Some(1));
    let mut batch = Batch::new();
    batch.put(b"a", &note("a"));
    batch.put(b"b", &note("b"));
    assert_eq!(batch.steps().len(), 2);
    assert!(batch.steps().iter().all(|step: &Step| step.value.is_some()));
    assert!(matches!(meta.commit(batch).await, Err(StoreError::Closed)));
    assert_eq!(meta.keys::<Note>(&[]).unwrap().len(), 1);
    records.cut_after(None);
    put(&meta, Precondition::None, b"b", "b").await.unwrap();
    assert_eq!(records.contents().len(), 2);
}

#[test]
fn the_database_refuses_a_second_opening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    let first = Embedded::open(&path, 1 << 20).unwrap();
    assert!(Embedded::open(&path, 1 << 20).is_err());
    drop(first);
    Embedded::open(&path, 1 << 20).unwrap();
}
