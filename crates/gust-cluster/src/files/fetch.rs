//! Assembling a file here from chunks that lie here or that other members have.
//!
//! ```text
//!  manifest (here, or the first member that has it) ──> draft of the file's length
//!  each chunk: from a file or the cache here, otherwise from one member after the other, compared with its name
//!  all there ──> synced, named: the file exists from now on, whole
//!  one failed ──> the draft is gone; chunks that had come are offered to the cache
//! ```

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::task::JoinSet;

use super::{ChunkId, FileId, Library, Manifest, ManifestError, manifest::Part};
use crate::{
    link::{CallError, Link},
    message::{FileRequest, Reply, Request},
};

/// Chunks of one file that are fetched at a time: 4 MiB under way keep a link busy.
const FETCHED_AT_A_TIME: usize = 8;

/// Longest time for a member to give a manifest or a chunk.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// A member that chunks can be got from.
#[derive(Debug, Clone)]
pub struct Origin {
    /// For people.
    pub name: String,
    /// The way to it.
    pub link: Link,
}

impl Origin {
    async fn ask(&self, request: FileRequest) -> Result<(Reply, Bytes), CallError> {
        self.link
            .call(&Request::File(request), Bytes::new(), ANSWER_LIMIT)
            .await
    }
}

/// A file that is wanted, and where to ask for what is not here, the best first.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The file.
    pub id: FileId,
    /// Members that may have it.
    pub origins: Vec<Origin>,
}

/// Why a file is not here.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No member that was asked has its manifest.
    #[error("no member has the file {0}")]
    NoManifest(FileId),
    /// A member gave what is no manifest of it.
    #[error("the manifest of {0} cannot be used")]
    Manifest(FileId, #[source] ManifestError),
    /// No member that was asked has a chunk.
    #[error("no member has the chunk {0}")]
    NoChunk(ChunkId),
    /// The disk failed.
    #[error("assembling the file {0} failed")]
    Io(FileId, #[source] io::Error),
}

impl Library {
    /// The path of a file, which is fetched if it is not here. Of several that want one file, one fetches it.
    ///
    /// # Errors
    /// When a part of it can be got from no member, or the disk fails. Nothing of it stays then, except in the cache.
    pub async fn obtain(self: &Arc<Self>, wanted: &Wanted) -> Result<PathBuf, FetchError> {
        if let Some(path) = self.file(wanted.id) {
            return Ok(path);
        }
        let only_one = {
            let mut obtaining = self.obtaining.lock().unwrap_or_else(PoisonError::into_inner);
            obtaining.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(obtaining.entry(wanted.id).or_default())
        };
        let _only_one = only_one.lock().await;
        if let Some(path) = self.file(wanted.id) {
            return Ok(path);
        }
        let manifest = self.find_manifest(wanted).await?;
        let failed = |error| FetchError::Io(wanted.id, error);
        let draft = self.draft().map_err(failed)?;
        draft.as_file().set_len(manifest.bytes()).map_err(failed)?;
        let file = Arc::new(draft.reopen().map_err(failed)?);
        self.fill(wanted, &manifest, &file).await?;
        let (library, id) = (Arc::clone(self), wanted.id);
        blocking(move || library.take_in(draft, id, manifest))
            .await
            .map_err(failed)
    }

    async fn find_manifest(&self, wanted: &Wanted) -> Result<Arc<Manifest>, FetchError> {
        if let Some(manifest) = self.manifest(wanted.id) {
            return Ok(manifest);
        }
        let mut wrong = None;
        for origin in &wanted.origins {
            match origin.ask(FileRequest::Manifest(wanted.id)).await {
                Ok((Reply::Content, body)) => match Manifest::decode(&body, wanted.id) {
                    Ok(manifest) => return Ok(Arc::new(manifest)),
                    Err(error) => {
                        tracing::warn!(from = origin.name, %error, "a manifest is not used");
                        wrong = Some(error);
                    }
                },
                Ok(_) => {}
                Err(error) => tracing::debug!(from = origin.name, %error, "no manifest"),
            }
        }
        Err(wrong.map_or(FetchError::NoManifest(wanted.id), |error| {
            FetchError::Manifest(wanted.id, error)
        }))
    }

    /// Puts every chunk into its place.
    async fn fill(
        self: &Arc<Self>,
        wanted: &Wanted,
        manifest: &Manifest,
        file: &Arc<File>,
    ) -> Result<(), FetchError> {
        let next_origin = Arc::new(AtomicUsize::new(0));
        let mut tasks: JoinSet<Result<Part, FetchError>> = JoinSet::new();
        let mut filled: Vec<Part> = Vec::new();
        let mut parts = manifest.parts();
        loop {
            // No more tasks than chunks that are fetched at a time.
            while tasks.len() < FETCHED_AT_A_TIME
                && let Some(part) = parts.next()
            {
                let (library, wanted, file) = (Arc::clone(self), wanted.clone(), Arc::clone(file));
                let next_origin = Arc::clone(&next_origin);
                tasks.spawn(async move {
                    library.fill_part(&wanted, part, file, &next_origin).await?;
                    Ok(part)
                });
            }
            let Some(ended) = tasks.join_next().await else {
                return Ok(());
            };
            let ended = ended.unwrap_or_else(|panic| Err(FetchError::Io(wanted.id, io::Error::other(panic))));
            match ended {
                Ok(part) => filled.push(part),
                Err(error) => {
                    tasks.shutdown().await;
                    self.salvage(file, filled).await;
                    return Err(error);
                }
            }
        }
    }

    async fn fill_part(
        self: Arc<Self>,
        wanted: &Wanted,
        part: Part,
        file: Arc<File>,
        next_origin: &AtomicUsize,
    ) -> Result<(), FetchError> {
        let failed = |error| FetchError::Io(wanted.id, error);
        let (library, to) = (Arc::clone(&self), Arc::clone(&file));
        let is_here = blocking(move || match library.chunk(part.chunk) {
            Some(content) if content.len() == part.bytes => {
                to.write_all_at(&content, part.offset).map(|()| true)
            }
            Some(_) | None => Ok(false),
        });
        if is_here.await.map_err(failed)? {
            return Ok(());
        }
        // Those who have it share the work; one that fails is the last to be asked again.
        let count = wanted.origins.len();
        let first = next_origin.fetch_add(1, Ordering::Relaxed);
        for turn in 0..count {
            let origin = &wanted.origins[(first + turn) % count];
            let content = match origin.ask(FileRequest::Chunk(part.chunk)).await {
                Ok((Reply::Content, content)) => content,
                Ok(_) => continue,
                Err(error) => {
                    tracing::debug!(from = origin.name, %error, "no chunk");
                    continue;
                }
            };
            let to = Arc::clone(&file);
            let written = blocking(move || {
                if content.len() != part.bytes || ChunkId::of(&content) != part.chunk {
                    return Ok(false);
                }
                to.write_all_at(&content, part.offset).map(|()| true)
            });
            match written.await.map_err(failed)? {
                true => return Ok(()),
                false => {
                    tracing::warn!(from = origin.name, chunk = %part.chunk, "a chunk is not what its name says");
                }
            }
        }
        Err(FetchError::NoChunk(part.chunk))
    }

    /// Offers what had come of a file that will not be assembled to the cache: the next attempt needs it.
    async fn salvage(self: &Arc<Self>, file: &Arc<File>, filled: Vec<Part>) {
        let (library, file) = (Arc::clone(self), Arc::clone(file));
        let salvaged = blocking(move || {
            for part in filled {
                let mut content = vec![0; part.bytes];
                file.read_exact_at(&mut content, part.offset)?;
                library.offer(part.chunk, &content);
            }
            Ok(())
        });
        if let Err(error) = salvaged.await {
            tracing::debug!(%error, "fetched chunks are lost");
        }
    }
}

/// Answers another member's question for a file.
pub async fn answer(library: &Arc<Library>, request: FileRequest) -> (Reply, Bytes) {
    let library = Arc::clone(library);
    let found = match request {
        FileRequest::Manifest(id) => {
            blocking(move || Ok(library.manifest(id).map(|manifest| manifest.encode()))).await
        }
        FileRequest::Chunk(id) => blocking(move || Ok(library.chunk(id))).await,
    };
    match found {
        Ok(Some(content)) => (Reply::Content, content.into()),
        Ok(None) | Err(_) => (Reply::Missing, Bytes::new()),
    }
}

/// Work that blocks, on a thread for that.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => Err(io::Error::other(panic)),
    }
}

#[cfg(test)]
mod tests;
