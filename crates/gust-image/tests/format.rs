//! The format as a whole: what is written is read back, damage is noticed, and the bytes stay what they are.

use std::{fs, path::Path, sync::Arc};

use gust_image::{
    Attributes, HEADER_LENGTH, Image, ImageError, NodeIndex, NodeKind, PAGE_BYTES, Tree, tables_bytes, write,
};
use proptest::prelude::*;

fn attributes(mode: u16) -> Attributes {
    Attributes {
        mode,
        uid: 993,
        gid: 990,
        mtime_s: 1_700_000_000,
    }
}

/// A tree with every kind of node, a shared content, a hard link, and files on both sides of a page.
fn sample(spool: &Path) -> Tree {
    let mut tree = Tree::new(spool).unwrap();
    let large: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
    tree.directory(b"usr", attributes(0o755)).unwrap();
    tree.symlink(b"lib", attributes(0o777), b"usr/lib").unwrap();
    tree.file(b"usr/lib/large.so", attributes(0o755), &mut large.as_slice())
        .unwrap();
    tree.file(b"lib/copy.so", attributes(0o644), &mut large.as_slice())
        .unwrap();
    tree.file(b"etc/empty", attributes(0o600), &mut [].as_slice())
        .unwrap();
    tree.file(
        b"etc/page",
        attributes(0o644),
        &mut [7; PAGE_BYTES as usize].as_slice(),
    )
    .unwrap();
    tree.file(b"etc/hello", attributes(0o4755), &mut b"hello".as_slice())
        .unwrap();
    tree.hard_link(b"etc/hello-too", b"etc/hello").unwrap();
    for n in 0..100 {
        let name = format!("many/{n:03}");
        tree.file(name.as_bytes(), attributes(0o644), &mut name.as_bytes())
            .unwrap();
    }
    tree
}

fn sample_bytes() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sample.img");
    write(&sample(dir.path()), br#"{"kind":"sample"}"#, &path).unwrap();
    fs::read(path).unwrap()
}

fn open(bytes: Vec<u8>) -> Result<Image, ImageError> {
    Image::open(Arc::new(bytes))
}

#[test]
fn what_is_written_is_read_back() {
    let image = open(sample_bytes()).unwrap();
    image.verify().unwrap();
    assert_eq!(image.metadata(), br#"{"kind":"sample"}"#);

    let root = image.root();
    let names: Vec<_> = image
        .entries(root)
        .map(|(name, _)| String::from_utf8_lossy(name).into_owned())
        .collect();
    assert_eq!(names, ["etc", "lib", "many", "usr"]);
    assert_eq!(image.parent(root), Some(root));
    // The root's three directories and its own two names.
    assert_eq!(image.node(root).unwrap().links, 5);

    let lib = image.lookup(root, b"lib").unwrap();
    assert_eq!(image.link(lib), Some(b"usr/lib".as_slice()));
    assert_eq!(image.node(lib).unwrap().kind, NodeKind::Symlink);

    let etc = image.lookup(root, b"etc").unwrap();
    let hello = image.lookup(etc, b"hello").unwrap();
    let node = image.node(hello).unwrap();
    assert_eq!(
        (node.mode, node.uid, node.gid, node.size, node.links),
        (0o4755, 993, 990, 5, 2)
    );
    assert_eq!(node.mtime_s, 1_700_000_000);
    assert_eq!(image.file(hello), Some(b"hello".as_slice()));
    assert_eq!(image.lookup(etc, b"hello-too"), Some(hello));
    assert_eq!(
        image.file(image.lookup(etc, b"empty").unwrap()),
        Some([].as_slice())
    );
    assert_eq!(image.lookup(etc, b"hell"), None);
    assert_eq!(image.lookup(hello, b"x"), None);
    assert_eq!(image.file(etc), None);
    assert_eq!(image.link(hello), None);
    assert_eq!(image.parent(etc), Some(root));
    assert_eq!(image.parent(hello), None);
}

#[test]
fn directories_are_read_from_any_position() {
    let image = open(sample_bytes()).unwrap();
    let many = image.lookup(image.root(), b"many").unwrap();
    let all: Vec<_> = image.entries(many).collect();
    assert_eq!(all.len(), 100);
    for (position, entry) in all.iter().enumerate() {
        assert_eq!(image.entries(many).nth(position).as_ref(), Some(entry));
        assert_eq!(image.entry(many, position as u64).as_ref(), Some(entry));
        assert_eq!(image.lookup(many, entry.0), Some(entry.1));
    }
    assert_eq!(image.entry(many, 100), None);
    assert_eq!(image.entry(many, u64::MAX), None);
}

#[test]
fn large_contents_are_on_pages_of_their_own_and_shared() {
    let bytes = sample_bytes();
    let image = open(bytes.clone()).unwrap();
    let large = image.find(b"/usr/lib/large.so").unwrap();
    let copy = image.find(b"/usr/lib/copy.so").unwrap();
    assert_ne!(large, copy);
    let range = image.file_range(large).unwrap();
    assert_eq!(image.file_range(copy), Some(range.clone()));
    assert!(range.start.is_multiple_of(PAGE_BYTES));
    let page_end = range.end.next_multiple_of(PAGE_BYTES) as usize;
    assert!(bytes[range.end as usize..page_end].iter().all(|&byte| byte == 0));

    let many = image.find(b"many").unwrap();
    for (_, node) in image.entries(many) {
        let range = image.file_range(node).unwrap();
        assert_eq!(range.start / PAGE_BYTES, (range.end - 1) / PAGE_BYTES);
    }
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    assert_eq!(sample_bytes(), sample_bytes());
}

#[test]
fn tables_alone_answer_everything_but_contents() {
    let bytes = sample_bytes();
    let tables = tables_bytes(&bytes[..HEADER_LENGTH]).unwrap() as usize;
    let image = Image::open_tables(Arc::new(bytes[..tables].to_vec())).unwrap();
    let hello = image.find(b"etc/hello").unwrap();
    let range = image.file_range(hello).unwrap();
    assert_eq!(&bytes[range.start as usize..range.end as usize], b"hello");
    assert_eq!(image.file(hello), None);
    assert!(Image::open_tables(Arc::new(bytes[..tables - 1].to_vec())).is_err());
}

/// The golden file was written by the first version of the writer. A change of format needs a new version number and
/// a new golden file beside it; `GUST_WRITE_GOLDEN=1` writes the file anew.
#[test]
fn the_format_is_pinned() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/version-1.img");
    let written = sample_bytes();
    if std::env::var_os("GUST_WRITE_GOLDEN").is_some() {
        fs::write(&golden, &written).unwrap();
    }
    assert!(
        written == fs::read(&golden).unwrap(),
        "the writer no longer writes version 1 of the format"
    );
}

#[test]
fn what_is_no_image_is_refused_with_the_reason() {
    let bytes = sample_bytes();
    let check = |change: &dyn Fn(&mut Vec<u8>), expected: &dyn Fn(&ImageError) -> bool| {
        let mut changed = bytes.clone();
        change(&mut changed);
        let error = open(changed).unwrap_err();
        assert!(expected(&error), "{error:?}");
    };
    check(&|bytes| bytes.clear(), &|error| {
        matches!(error, ImageError::NotAnImage)
    });
    check(&|bytes| bytes[0] = b'X', &|error| {
        matches!(error, ImageError::NotAnImage)
    });
    check(&|bytes| bytes.truncate(12), &|error| {
        matches!(error, ImageError::DamagedHeader)
    });
    check(&|bytes| bytes[8] = 2, &|error| {
        matches!(error, ImageError::UnsupportedVersion(2))
    });
    check(&|bytes| bytes.truncate(bytes.len() - 1), &|error| {
        matches!(error, ImageError::WrongLength { .. })
    });
    check(&|bytes| bytes.push(0), &|error| {
        matches!(error, ImageError::WrongLength { .. })
    });
    check(&|bytes| bytes[87] = 0xff, &|error| {
        matches!(error, ImageError::DamagedHeader)
    });
}

#[test]
fn any_changed_byte_fails_verification() {
    let bytes = sample_bytes();
    for at in (0..bytes.len()).step_by(61) {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        // A changed header may already fail to open; what opens must not verify. Magic, version and the flags
        // between them and the checksum are compared or unused.
        let unused = (12..16).contains(&at);
        assert!(
            unused || open(changed).and_then(|image| image.verify()).is_err(),
            "byte {at}"
        );
    }
}

/// Reads everything that an image offers, at most `steps` entries deep.
fn read_all(image: &Image) {
    let indexes = (0..image.node_count().min(2000))
        .chain([u32::MAX, u32::MAX - 1])
        .map(NodeIndex);
    for index in indexes {
        let _ = (
            image.node(index),
            image.file(index),
            image.link(index),
            image.parent(index),
        );
        let _ = (
            image.lookup(index, b"hello"),
            image.lookup(index, b""),
            image.entry(index, 3),
        );
        for (name, node) in image.entries(index).take(2000) {
            let _ = (name.len(), image.node(node), image.lookup(index, name));
        }
    }
    let _ = (
        image.metadata(),
        image.checksum(),
        image.verify(),
        image.find(b"usr/lib/large.so"),
    );
}

proptest! {
    #[test]
    fn damaged_bytes_never_panic(
        changes in prop::collection::vec((0_usize..1 << 14, any::<u8>()), 1..24),
        header_changes in prop::collection::vec((48_usize..128, any::<u8>()), 0..3),
        cut in prop::option::of(0_usize..40_000),
    ) {
        static SAMPLE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(sample_bytes);
        let mut bytes = SAMPLE.clone();
        for (at, value) in changes.into_iter().chain(header_changes) {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut);
        }
        if let Ok(image) = open(bytes.clone()) {
            read_all(&image);
        }
        if let Ok(image) = Image::open_tables(Arc::new(bytes)) {
            read_all(&image);
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let mut bytes = bytes;
        let head = b"GUSTIMG\0\x01\0\0\0";
        if bytes.len() >= head.len() {
            bytes[..head.len()].copy_from_slice(head);
        }
        if let Ok(image) = Image::open_tables(Arc::new(bytes)) {
            read_all(&image);
        }
    }
}
