//! Records in memory, for tests and for servers that keep nothing. What is written can be cut off after any step.

use std::{
    collections::BTreeMap,
    future::ready,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    StoreError,
    records::{Changes, Feed, Records, Releasing, Revision, Step, Stored, Visit, Writing},
};

#[derive(Debug, Default)]
struct Kept {
    records: BTreeMap<(&'static str, Vec<u8>), Stored>,
    revision: u64,
    is_released: bool,
    retaken: u64,
    /// Steps that are still done before writes fail.
    steps_left: Option<usize>,
}

/// Records in memory.
#[derive(Debug)]
pub struct Memory {
    kept: Mutex<Kept>,
    feed: Feed,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            feed: Feed::new(),
        }
    }
}

impl Memory {
    /// Does `steps` more steps, and fails what comes after them with [`StoreError::Closed`]: as if the process or the
    /// way to the store ended there. `None` ends that.
    pub fn cut_after(&self, steps: Option<usize>) {
        self.lock().steps_left = steps;
    }

    /// Everything that is there, in order: table, key, value.
    pub fn contents(&self) -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
        let kept = self.lock();
        let records = kept.records.iter();
        records
            .map(|((table, key), stored)| (*table, key.clone(), stored.value.clone()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened(&self) -> Result<MutexGuard<'_, Kept>, StoreError> {
        let kept = self.lock();
        if kept.is_released {
            return Err(StoreError::Closed);
        }
        Ok(kept)
    }

    fn write_now(&self, steps: Vec<Step>) -> Result<Vec<Revision>, StoreError> {
        let mut kept = self.opened()?;
        steps.iter().try_for_each(Step::check)?;
        steps
            .into_iter()
            .map(|step| self.write_step(&mut kept, step))
            .collect()
    }

    fn write_step(&self, kept: &mut Kept, step: Step) -> Result<Revision, StoreError> {
        match &mut kept.steps_left {
            Some(0) => return Err(StoreError::Closed),
            Some(left) => *left -= 1,
            None => {}
        }
        let at = (step.table, step.key.clone());
        let found = kept.records.get(&at).map(|stored| stored.revision);
        if !step.when.holds(found) {
            return Err(step.conflict());
        }
        kept.revision += 1;
        let revision = Revision(kept.revision);
        match &step.value {
            Some(value) => {
                let value = value.clone();
                kept.records.insert(at, Stored { value, revision });
            }
            None => {
                kept.records.remove(&at);
            }
        }
        self.feed.tell(step, revision);
        Ok(revision)
    }
}

impl Records for Memory {
    fn get(&self, table: &'static str, key: &[u8]) -> Result<Option<Stored>, StoreError> {
        Ok(self.opened()?.records.get(&(table, key.to_vec())).cloned())
    }

    fn list(&self, table: &'static str, prefix: &[u8], each: &mut Visit<'_>) -> Result<(), StoreError> {
        let found: Vec<(Vec<u8>, Stored)> = {
            let kept = self.opened()?;
            let from = kept.records.range((table, prefix.to_vec())..);
            from.take_while(|((of, key), _)| *of == table && key.starts_with(prefix))
                .map(|((_, key), stored)| (key.clone(), stored.clone()))
                .collect()
        };
        found
            .iter()
            .try_for_each(|(key, stored)| each(key, &stored.value, stored.revision))
    }

    fn count(&self, table: &'static str) -> Result<u64, StoreError> {
        let kept = self.opened()?;
        Ok(kept.records.keys().filter(|(of, _)| *of == table).count() as u64)
    }

    fn write(&self, steps: Vec<Step>) -> Writing {
        Box::pin(ready(self.write_now(steps)))
    }

    fn watch(&self) -> Changes {
        self.feed.watch()
    }

    fn release(&self) -> Releasing {
        self.lock().is_released = true;
        Box::pin(ready(Ok(())))
    }

    fn retake(&self) -> Result<(), StoreError> {
        let mut kept = self.lock();
        kept.is_released = false;
        kept.retaken += 1;
        Ok(())
    }

    fn retaken(&self) -> u64 {
        self.lock().retaken
    }
}
