use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64},
};

use super::*;
use crate::{
    files::{CHUNK_BYTES, LibraryConfig},
    link,
};

/// A member with a library, asked by another over a link.
struct Member {
    library: Arc<Library>,
    asked: Arc<AtomicU64>,
    /// It gives other bytes than it should.
    lies: Arc<AtomicBool>,
}

fn library(dir: &Path, cache_bytes_max: u64) -> Arc<Library> {
    let config = LibraryConfig {
        directory: dir.to_path_buf(),
        cache_bytes_max,
    };
    Arc::new(Library::open(&config).unwrap())
}

impl Member {
    fn new(dir: &Path) -> Self {
        Self {
            library: library(dir, 64 << 20),
            asked: Arc::default(),
            lies: Arc::default(),
        }
    }

    fn origin(&self) -> Origin {
        let (one, two) = tokio::io::duplex(64 << 10);
        let (link, driver, _) = link::new(one);
        tokio::spawn(driver.run());
        let (_, driver, mut incoming) = link::new(two);
        tokio::spawn(driver.run());
        let (library, asked, lies) = (
            Arc::clone(&self.library),
            Arc::clone(&self.asked),
            Arc::clone(&self.lies),
        );
        tokio::spawn(async move {
            while let Some(incoming) = incoming.recv().await {
                let Request::File(request) = incoming.request else {
                    panic!("not for files")
                };
                asked.fetch_add(
                    u64::from(matches!(request, FileRequest::Chunk(_))),
                    Ordering::Relaxed,
                );
                let (reply, mut body) = answer(&library, request).await;
                if lies.load(Ordering::Relaxed) {
                    body = body.iter().map(|byte| byte ^ 1).collect();
                }
                incoming.replier.reply(&reply, body).await;
            }
        });
        Origin {
            name: "member".to_owned(),
            link,
        }
    }

    fn asked(&self) -> u64 {
        self.asked.swap(0, Ordering::Relaxed)
    }
}

/// A file of chunks, each filled with a number; 0 is a hole in effect.
fn file(dir: &Path, name: &str, chunks: &[u8], rest: usize) -> PathBuf {
    let mut content: Vec<u8> = chunks.iter().flat_map(|&fill| vec![fill; CHUNK_BYTES]).collect();
    content.extend(vec![9; rest]);
    let path = dir.join(name);
    fs::write(&path, content).unwrap();
    path
}

fn names(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[tokio::test]
async fn files_arrive_whole_and_chunks_once() {
    let dir = tempfile::tempdir().unwrap();
    let far = Member::new(&dir.path().join("far"));
    let near = library(&dir.path().join("near"), 64 << 20);
    let first = file(dir.path(), "first", &[1, 2, 0, 2, 3], 100);
    let second = file(dir.path(), "second", &[3, 4, 0], 0);
    let ids = [&first, &second].map(|path| far.library.publish(path).unwrap());
    let want = |id| Wanted {
        id,
        origins: vec![far.origin()],
    };

    let got = near.obtain(&want(ids[0])).await.unwrap();
    assert_eq!(fs::read(&got).unwrap(), fs::read(&first).unwrap());
    // Zeros are not sent. Two that are alike may both be under way.
    assert!((4..=5).contains(&far.asked()));
    let got = near.obtain(&want(ids[1])).await.unwrap();
    assert_eq!(fs::read(&got).unwrap(), fs::read(&second).unwrap());
    assert_eq!(far.asked(), 1, "one chunk is new");
    near.obtain(&want(ids[1])).await.unwrap();
    assert_eq!(far.asked(), 0);
    use std::os::unix::fs::MetadataExt;
    let on_disk = fs::metadata(&got).unwrap().blocks() * 512;
    assert!(on_disk < 3 * CHUNK_BYTES as u64, "zeros take no room: {on_disk}");

    // Empty, and nothing but zeros.
    for (name, chunks) in [("empty", &[][..]), ("zeros", &[0, 0])] {
        let path = file(dir.path(), name, chunks, 0);
        let id = far.library.publish(&path).unwrap();
        let got = near.obtain(&want(id)).await.unwrap();
        assert_eq!(fs::read(got).unwrap(), fs::read(path).unwrap());
    }
    assert_eq!(far.asked(), 0);

    // After a restart they are there; without its manifest one is not, and goes.
    let again = library(&dir.path().join("near"), 64 << 20);
    assert!(again.file(ids[0]).is_some() && again.file(ids[1]).is_some());
    fs::remove_file(dir.path().join(format!("near/files/{}.manifest", ids[1]))).unwrap();
    fs::write(dir.path().join("near/files/.fetch-cut-short"), "").unwrap();
    let again = library(&dir.path().join("near"), 64 << 20);
    assert!(again.file(ids[0]).is_some() && again.file(ids[1]).is_none());
    assert_eq!(names(&dir.path().join("near/files")), 6);
}

#[tokio::test]
async fn what_is_cut_short_leaves_nothing_but_what_helps_the_next_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let far = Member::new(&dir.path().join("far"));
    let near = library(&dir.path().join("near"), 64 << 20);
    let path = file(dir.path(), "file", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], 0);
    let id = far.library.publish(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    let want = || Wanted {
        id,
        origins: vec![far.origin()],
    };

    // The last chunk has changed since: what its name says is not there any more.
    let mut damaged = whole.clone();
    damaged[11 * CHUNK_BYTES] ^= 1;
    fs::write(&path, &damaged).unwrap();
    let failed = near.obtain(&want()).await.unwrap_err();
    assert!(matches!(failed, FetchError::NoChunk(_)), "{failed}");
    assert_eq!(names(&dir.path().join("near/files")), 0);
    fs::write(&path, &whole).unwrap();
    far.asked();
    assert_eq!(fs::read(near.obtain(&want()).await.unwrap()).unwrap(), whole);
    assert!(far.asked() <= 8, "the others were kept");
    assert_eq!(
        names(&dir.path().join("near/chunks")),
        0,
        "a chunk lies loose or in a file"
    );
    assert_eq!(names(&dir.path().join("near/files")), 2);

    // A fetch that nobody waits for any more.
    let other = library(&dir.path().join("other"), 0);
    let task = tokio::spawn({
        let (other, want) = (Arc::clone(&other), want());
        async move { other.obtain(&want).await }
    });
    while far.asked() == 0 {
        tokio::task::yield_now().await;
    }
    task.abort();
    let _ = task.await;
    assert_eq!(names(&dir.path().join("other/files")), 0);
}

#[tokio::test]
async fn members_that_lie_or_have_gone_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let members: Vec<Member> = ["lies", "gone", "good"]
        .map(|name| Member::new(&dir.path().join(name)))
        .into();
    let path = file(dir.path(), "file", &[1, 2, 3, 4], 5);
    let ids: Vec<FileId> = members
        .iter()
        .map(|member| member.library.publish(&path).unwrap())
        .collect();
    let near = library(&dir.path().join("near"), 64 << 20);
    members[0].lies.store(true, Ordering::Relaxed);
    let origins: Vec<Origin> = members.iter().map(Member::origin).collect();
    origins[1].link.close();
    let bad = Wanted {
        id: ids[0],
        origins: origins[..2].to_vec(),
    };
    assert!(matches!(
        near.obtain(&bad).await.unwrap_err(),
        FetchError::Manifest(_, ManifestError::Name(_))
    ));
    let none = Wanted {
        id: FileId([3; 32]),
        origins: origins.clone(),
    };
    assert!(near.obtain(&none).await.is_err());
    let wanted = Wanted { id: ids[0], origins };
    let got = near.obtain(&wanted).await.unwrap();
    assert_eq!(fs::read(got).unwrap(), fs::read(&path).unwrap());
}

#[tokio::test]
async fn chunks_of_files_that_go_are_kept_while_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let far = Member::new(&dir.path().join("far"));
    let near = library(&dir.path().join("near"), 2 * CHUNK_BYTES as u64);
    let shared = file(dir.path(), "shared", &[1, 2], 0);
    let other = file(dir.path(), "other", &[2, 3, 4, 5], 0);
    let ids = [&shared, &other].map(|path| far.library.publish(path).unwrap());
    let want = |id| Wanted {
        id,
        origins: vec![far.origin()],
    };
    for id in ids {
        near.obtain(&want(id)).await.unwrap();
    }
    near.drop_file(ids[1]);
    assert!(near.file(ids[1]).is_none());
    assert_eq!(names(&dir.path().join("near/files")), 2);
    assert_eq!(
        names(&dir.path().join("near/chunks")),
        2,
        "of three that no file has"
    );
    far.asked();
    near.obtain(&want(ids[1])).await.unwrap();
    assert_eq!(far.asked(), 1);
    assert_eq!(names(&dir.path().join("near/chunks")), 0);

    // One that is given away is known where it lies then.
    let to = dir.path().join("given");
    near.give_away(ids[1], &to).unwrap();
    assert_eq!(near.file(ids[1]), Some(to.clone()));
    assert_eq!(near.publish(&to).unwrap(), ids[1]);
    near.withdraw(&to);
    assert!(near.file(ids[1]).is_none() && to.exists());
}

#[test]
fn a_file_that_several_publish_is_never_away() {
    let dir = tempfile::tempdir().unwrap();
    let library = library(&dir.path().join("near"), 0);
    let path = file(dir.path(), "file", &[1, 2, 3], 0);
    let id = library.publish(&path).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            // Touched, it is read anew, and has the same name.
            File::options()
                .append(true)
                .open(&path)
                .unwrap()
                .set_modified(std::time::SystemTime::now())
                .unwrap();
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(library.publish(&path).unwrap(), id);
                    assert!(library.manifest(id).is_some());
                }
            });
        }
    });
}

#[tokio::test]
async fn one_of_several_that_want_a_file_fetches_it() {
    let dir = tempfile::tempdir().unwrap();
    let far = Member::new(&dir.path().join("far"));
    let near = library(&dir.path().join("near"), 0);
    let path = file(dir.path(), "file", &[1, 2, 3], 0);
    let id = far.library.publish(&path).unwrap();
    let wanted = Wanted {
        id,
        origins: vec![far.origin()],
    };
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (near, wanted) = (Arc::clone(&near), wanted.clone());
            tokio::spawn(async move { near.obtain(&wanted).await.unwrap() })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(far.asked(), 3);
}
