//! Code packages: what is taken in, and what a hostile client may send.

use std::io::{Cursor, Write};

use flate2::{Compression, Crc, write::DeflateEncoder};
use gust_image::{
    Found, Tree,
    build::package::{self, ENTRIES_MAX, EntryFault, PackageError, UNZIPPED_BYTES_MAX},
};

/// One entry of a hand-made archive; every field goes in as it is.
struct Entry {
    name: Vec<u8>,
    /// Unix mode with the type bits; 0 writes no Unix attributes.
    mode: u32,
    method: u16,
    flags: u16,
    /// Bytes as stored.
    stored: Vec<u8>,
    crc: u32,
    size: u32,
}

fn stored(name: &str, mode: u32, content: &[u8]) -> Entry {
    let mut crc = Crc::new();
    crc.update(content);
    Entry {
        name: name.into(),
        mode,
        method: 0,
        flags: 0,
        stored: content.to_vec(),
        crc: crc.sum(),
        size: content.len() as u32,
    }
}

fn deflated(name: &str, content: &[u8]) -> Entry {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content).unwrap();
    Entry {
        method: 8,
        stored: encoder.finish().unwrap(),
        ..stored(name, 0o100_644, content)
    }
}

/// Puts an archive together after PKWARE's application note, sections 4.3.7, 4.3.12 and 4.3.16.
fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut directory = Vec::new();
    for entry in entries {
        let offset = out.len() as u32;
        let mut common = Vec::new();
        for field in [20, entry.flags, entry.method, 0x6000, 0x5721] {
            common.extend_from_slice(&field.to_le_bytes());
        }
        for field in [entry.crc, entry.stored.len() as u32, entry.size] {
            common.extend_from_slice(&field.to_le_bytes());
        }
        common.extend_from_slice(&(entry.name.len() as u16).to_le_bytes());
        common.extend_from_slice(&0_u16.to_le_bytes());
        out.extend_from_slice(b"PK\x03\x04");
        out.extend_from_slice(&common);
        out.extend_from_slice(&entry.name);
        out.extend_from_slice(&entry.stored);
        let made_by: u16 = if entry.mode == 0 { 20 } else { 3 << 8 | 20 };
        directory.extend_from_slice(b"PK\x01\x02");
        directory.extend_from_slice(&made_by.to_le_bytes());
        directory.extend_from_slice(&common);
        directory.extend_from_slice(&[0; 6]);
        directory.extend_from_slice(&(entry.mode << 16).to_le_bytes());
        directory.extend_from_slice(&offset.to_le_bytes());
        directory.extend_from_slice(&entry.name);
    }
    let start = out.len() as u32;
    out.extend_from_slice(&directory);
    out.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    for _ in 0..2 {
        out.extend_from_slice(&(entries.len() as u16).to_le_bytes());
    }
    out.extend_from_slice(&(directory.len() as u32).to_le_bytes());
    out.extend_from_slice(&start.to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    out
}

fn unpack(zip: Vec<u8>, bytes_max: u64) -> Result<(Tree, u64), PackageError> {
    let spool = tempfile::tempdir().unwrap();
    let mut tree = Tree::new(spool.path()).unwrap();
    let bytes = package::add(&mut tree, Cursor::new(zip), bytes_max)?;
    Ok((tree, bytes))
}

#[test]
fn an_honest_package_is_taken_in_and_is_readable() {
    let (tree, bytes) = unpack(
        archive(&[
            stored("bootstrap", 0o100_755, b"#!"),
            deflated("pkg/deep/module.py", &[b'x'; 10_000]),
            stored("pkg/", 0o040_700, b""),
            stored("no-attributes.py", 0, b"1"),
            stored("no-permissions.py", 0o100_000, b"2"),
            stored("current", 0o120_777, b"pkg/deep/../deep/module.py"),
            stored("./dotted.txt", 0o100_600, b"3"),
        ]),
        UNZIPPED_BYTES_MAX,
    )
    .unwrap();
    assert_eq!(bytes, 10_005);
    assert_eq!(tree.attributes(b"bootstrap").unwrap().mode, 0o755);
    assert_eq!(tree.attributes(b"pkg").unwrap().mode, 0o755);
    assert_eq!(tree.attributes(b"no-attributes.py").unwrap().mode, 0o644);
    assert_eq!(tree.attributes(b"no-permissions.py").unwrap().mode, 0o644);
    assert_eq!(tree.attributes(b"dotted.txt").unwrap().mode, 0o644);
    assert_eq!(tree.get(b"pkg/deep/module.py"), Some(Found::File(10_000)));
    assert_eq!(
        tree.get(b"current"),
        Some(Found::Symlink(b"pkg/deep/../deep/module.py"))
    );
    // 2023-09-01 12:00:00 in the archive's own fields.
    assert_eq!(tree.attributes(b"bootstrap").unwrap().mtime_s, 1_693_569_600);
}

#[test]
fn bad_entries_are_refused_with_their_name_and_the_reason() {
    let check =
        |entries: &[Entry], expected_name: &str, expected: EntryFault| match unpack(archive(entries), 1000) {
            Err(PackageError::BadEntry { name, reason }) => {
                assert_eq!((name.as_str(), reason), (expected_name, expected));
            }
            other => panic!("{expected_name}: {:?}", other.map(|(_, bytes)| bytes)),
        };
    let file = |name: &str| stored(name, 0o100_644, b"x");
    let link = |name: &str, target: &str| stored(name, 0o120_777, target.as_bytes());

    check(&[file("/etc/passwd")], "/etc/passwd", EntryFault::AbsolutePath);
    check(&[file("../x")], "../x", EntryFault::LeadsOut);
    check(&[file("a/../../x")], "a/../../x", EntryFault::LeadsOut);
    check(&[file(&"n".repeat(256))], &"n".repeat(256), EntryFault::BadName);
    check(&[file(&"d/".repeat(300))], &"d/".repeat(300), EntryFault::BadName);
    check(&[file("a\0b")], "a\0b", EntryFault::BadName);
    check(&[file("a"), file("a")], "a", EntryFault::Duplicate);
    check(&[file("a"), file("./a")], "./a", EntryFault::Duplicate);
    check(&[file("a"), file("a/b")], "a/b", EntryFault::Duplicate);
    check(&[file("a/b"), file("a")], "a", EntryFault::Duplicate);
    check(&[link("l", "/etc/passwd")], "l", EntryFault::LinkLeadsOut);
    check(&[link("l", "../x")], "l", EntryFault::LinkLeadsOut);
    check(&[link("d/l", "../../x")], "d/l", EntryFault::LinkLeadsOut);
    check(&[link("l", "")], "l", EntryFault::BadLink);
    check(&[link("l", "a\0b")], "l", EntryFault::BadLink);
    check(
        &[stored("null", 0o020_666, b"")],
        "null",
        EntryFault::UnsupportedKind,
    );
    check(
        &[stored("pipe", 0o010_666, b"")],
        "pipe",
        EntryFault::UnsupportedKind,
    );
    check(
        &[Entry {
            flags: 1,
            ..file("secret")
        }],
        "secret",
        EntryFault::Unreadable,
    );
    check(
        &[Entry {
            method: 93,
            ..file("zstd")
        }],
        "zstd",
        EntryFault::Unreadable,
    );
    check(
        &[Entry {
            crc: 1,
            ..file("flipped")
        }],
        "flipped",
        EntryFault::Damaged,
    );
    check(
        &[Entry {
            method: 8,
            ..file("garbage")
        }],
        "garbage",
        EntryFault::Damaged,
    );

    // Each target is fine as it is written, and leads out only through the other link.
    let up = [link("a/b/up", "../.."), link("out", "a/b/up/../x"), file("a/b/x")];
    check(&up, "out", EntryFault::LinkLeadsOut);
}

#[test]
fn links_in_a_circle_or_to_nothing_stay_inside_and_are_kept() {
    let link = |name: &str, target: &str| stored(name, 0o120_777, target.as_bytes());
    let (tree, _) = unpack(
        archive(&[link("a", "b"), link("b", "a"), link("c", "missing/x")]),
        10,
    )
    .unwrap();
    assert_eq!(tree.get(b"a"), Some(Found::Symlink(b"b")));
}

#[test]
fn bytes_are_counted_while_they_are_inflated() {
    let check = |entries: &[Entry], bytes_max: u64, fits: bool| match unpack(archive(entries), bytes_max) {
        Ok(_) => assert!(fits, "{bytes_max}"),
        Err(PackageError::TooLarge { limit }) => assert!(!fits && limit == bytes_max, "{bytes_max}"),
        Err(other) => panic!("{other}"),
    };
    let zeros = vec![0; 1 << 20];
    check(&[deflated("a", &zeros)], 1 << 20, true);
    check(&[deflated("a", &zeros)], (1 << 20) - 1, false);
    check(
        &[deflated("a", &zeros), deflated("b", &zeros)],
        (2 << 20) - 1,
        false,
    );
    check(&[deflated("a", &[]), deflated("b", &[])], 0, true);
    // What the header promises does not count, and is found out.
    let bomb = archive(&[Entry {
        size: 1,
        ..deflated("bomb", &zeros)
    }]);
    assert!(matches!(
        unpack(bomb, 1000),
        Err(PackageError::BadEntry {
            reason: EntryFault::Damaged,
            ..
        } | PackageError::TooLarge { .. })
    ));
}

#[test]
fn what_is_no_zip_is_refused() {
    for bytes in [
        b"".to_vec(),
        b"not a zip".to_vec(),
        vec![0; 100_000],
        b"PK\x03\x04".to_vec(),
    ] {
        assert!(matches!(unpack(bytes, 1000), Err(PackageError::NotAZip(_))));
    }
    let whole = archive(&[deflated("a", &[7; 5000]), stored("b", 0o100_644, b"b")]);
    for cut in [30, whole.len() / 2, whole.len() - 10] {
        assert!(unpack(whole[..cut].to_vec(), 100_000).is_err(), "cut at {cut}");
    }
}

#[test]
fn too_many_entries_are_refused_before_they_are_read() {
    // ZIP64 fields of an archive that claims so many entries, whose directory is as large as they would need.
    let entries = ENTRIES_MAX as u64 + 1;
    let directory = vec![0_u8; (entries * 46) as usize];
    let mut zip = directory.clone();
    zip.extend_from_slice(b"PK\x06\x06");
    zip.extend_from_slice(&44_u64.to_le_bytes());
    zip.extend_from_slice(&[45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for field in [entries, entries, directory.len() as u64, 0] {
        zip.extend_from_slice(&field.to_le_bytes());
    }
    zip.extend_from_slice(b"PK\x06\x07\0\0\0\0");
    zip.extend_from_slice(&(directory.len() as u64).to_le_bytes());
    zip.extend_from_slice(&1_u32.to_le_bytes());
    zip.extend_from_slice(b"PK\x05\x06\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0");
    match unpack(zip, 1000) {
        Err(PackageError::TooManyEntries { entries: found }) => assert_eq!(found as u64, entries),
        other => panic!("{:?}", other.map(|(_, bytes)| bytes)),
    }
}

#[test]
fn a_refused_package_leaves_no_image() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("code.img");
    let bad = archive(&[stored("a", 0o100_644, b"1"), stored("../b", 0o100_644, b"2")]);
    package::build(Cursor::new(bad), dir.path(), &output).unwrap_err();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

    let good = archive(&[stored("a", 0o100_644, b"1")]);
    package::build(Cursor::new(good), dir.path(), &output).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
