//! Directories and image layouts into trees, and images back into directories.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use flate2::{Compression, write::GzEncoder};
use gust_image::{
    Attributes, Found, ImageFile, Tree,
    build::{
        directory::{self, DirectoryError, Ownership},
        oci::{self, OciError},
    },
    runtime::{DescriptionError, RuntimeDescription, RuntimeInterface},
    write,
};
use sha2::{Digest, Sha256};

/// A tar stream of `(path, kind, content or target)`.
fn tarball(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(if *kind == tar::EntryType::Directory {
            0o755
        } else {
            0o644
        });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        let is_link = matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link);
        header.set_size(if is_link { 0 } else { content.len() as u64 });
        match is_link {
            true => builder.append_link(&mut header, path, content).unwrap(),
            false => builder
                .append_data(&mut header, path, content.as_bytes())
                .unwrap(),
        }
    }
    builder.into_inner().unwrap()
}

fn blob(layout: &Path, bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    fs::write(layout.join("blobs/sha256").join(&hex), bytes).unwrap();
    format!("sha256:{hex}")
}

/// A layout with these layers, under an index that also lists an image for another machine.
fn layout(dir: &Path, layers: &[(&str, Vec<u8>)]) {
    let config = br#"{"config":{"Entrypoint":["/entry"],"Cmd":["app.handler"],"Env":["A=1","B=x=y"]}}"#;
    let config = blob(dir, config);
    let layers: Vec<_> = layers
        .iter()
        .map(|(kind, bytes)| serde_json::json!({ "mediaType": kind, "digest": blob(dir, bytes), "size": bytes.len() }))
        .collect();
    let manifest = serde_json::json!({ "config": { "digest": config }, "layers": layers }).to_string();
    let manifest = blob(dir, manifest.as_bytes());
    let index = serde_json::json!({ "manifests": [
        { "digest": format!("sha256:{}", "0".repeat(64)), "platform": { "architecture": "arm64", "os": "linux" } },
        { "digest": manifest, "platform": { "architecture": "amd64", "os": "linux" } },
    ] });
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
}

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

#[test]
fn layers_are_laid_over_each_other() {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let dir = tempfile::tempdir().unwrap();
    let lower = tarball(&[
        ("etc/", Directory, ""),
        ("etc/kept", Regular, "kept"),
        ("etc/gone", Regular, "gone"),
        ("opaque/old", Regular, "old"),
        ("opaque/sub/old", Regular, "old"),
        ("link", Symlink, "etc"),
        ("usr/bin/a", Regular, "program"),
        ("usr/bin/b", Link, "usr/bin/a"),
    ]);
    // The opaque marker stands behind the entry that it must not remove.
    let upper = tarball(&[
        ("opaque/new", Regular, "new"),
        ("opaque/.wh..wh..opq", Regular, ""),
        ("etc/.wh.gone", Regular, ""),
        ("link/", Directory, ""),
        ("link/own", Regular, "own"),
    ]);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&upper).unwrap();
    layout(dir.path(), &[(TAR, lower), (TAR_GZIP, gzip.finish().unwrap())]);

    let spool = tempfile::tempdir().unwrap();
    let mut tree = Tree::new(spool.path()).unwrap();
    let config = oci::add(&mut tree, dir.path(), &mut |_| {}).unwrap();
    assert_eq!(config.argv, ["/entry", "app.handler"]);
    assert_eq!(config.environment["B"], "x=y");
    let description = config.description("custom").unwrap();
    assert_eq!(description.interface, RuntimeInterface::RuntimeApi);
    assert_eq!(
        RuntimeDescription::parse(&description.to_json()).unwrap(),
        description
    );

    assert_eq!(tree.get(b"etc/kept"), Some(Found::File(4)));
    assert_eq!(tree.get(b"etc/gone"), None);
    assert_eq!(tree.names(b"opaque").collect::<Vec<_>>(), [b"new"]);
    assert_eq!(tree.get(b"link"), Some(Found::Directory));
    assert_eq!(tree.get(b"etc/own"), None);
    assert_eq!(tree.read(b"usr/bin/b", 100).unwrap().unwrap(), b"program");
}

#[test]
fn bad_layouts_are_refused() {
    let check = |prepare: &dyn Fn(&Path), expected: &dyn Fn(&OciError) -> bool| {
        let dir = tempfile::tempdir().unwrap();
        layout(
            dir.path(),
            &[(TAR, tarball(&[("a", tar::EntryType::Regular, "a")]))],
        );
        prepare(dir.path());
        let mut tree = Tree::new(dir.path()).unwrap();
        let error = oci::add(&mut tree, dir.path(), &mut |_| {}).unwrap_err();
        assert!(expected(&error), "{error:?}");
    };
    check(
        &|dir| fs::remove_file(dir.join("index.json")).unwrap(),
        &|error| matches!(error, OciError::Read { .. }),
    );
    check(&|dir| fs::write(dir.join("index.json"), "{").unwrap(), &|error| {
        matches!(error, OciError::Document { .. })
    });
    check(
        &|dir| {
            for entry in fs::read_dir(dir.join("blobs/sha256")).unwrap() {
                let file = fs::OpenOptions::new()
                    .write(true)
                    .open(entry.unwrap().path())
                    .unwrap();
                file.write_all_at(b"!", 0).unwrap();
            }
        },
        &|error| matches!(error, OciError::Altered(_)),
    );
    check(&|dir| layout(dir, &[("tar+zstd", vec![0; 10])]), &|error| {
        matches!(error, OciError::LayerType(_))
    });
    check(&|dir| layout(dir, &[(TAR, vec![1; 1024])]), &|error| {
        matches!(error, OciError::Layer { .. })
    });
    check(&|dir| layout(dir, &[(TAR_GZIP, vec![1; 1024])]), &|error| {
        matches!(error, OciError::Layer { .. })
    });
    let escape = |target: &str| tarball(&[("x", tar::EntryType::Link, target)]);
    check(&|dir| layout(dir, &[(TAR, escape("/etc/passwd"))]), &|error| {
        matches!(error, OciError::Layer { .. })
    });
    let path = |digest: &str| serde_json::json!({ "manifests": [{ "digest": digest }] }).to_string();
    for digest in ["sha256:../../../etc/passwd", "md5:00", "sha256:ABCD"] {
        check(
            &|dir| fs::write(dir.join("index.json"), path(digest)).unwrap(),
            &|error| matches!(error, OciError::Digest(_)),
        );
    }
}

#[test]
fn a_directory_becomes_an_image_and_a_directory_again() {
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::write(at("a/b/data"), vec![3; 9000]).unwrap();
    fs::write(at("a/private"), "secret").unwrap();
    fs::set_permissions(at("a/private"), fs::Permissions::from_mode(0o4700)).unwrap();
    symlink("../nowhere", at("a/link")).unwrap();

    let work = tempfile::tempdir().unwrap();
    let mut tree = Tree::new(work.path()).unwrap();
    directory::add(&mut tree, source.path(), b"", Ownership::Root).unwrap();
    tree.hard_link(b"a/again", b"a/b/data").unwrap();
    tree.file(
        b"old",
        Attributes {
            mtime_s: -5,
            ..Attributes::root(0o644)
        },
        &mut io::empty(),
    )
    .unwrap();
    let image = work.path().join("dir.img");
    write(&tree, b"", &image).unwrap();

    let target = work.path().join("out");
    let file = ImageFile::open(&image).unwrap();
    file.verify().unwrap();
    file.extract(&target).unwrap();
    assert_eq!(fs::read(target.join("a/b/data")).unwrap(), vec![3; 9000]);
    assert_eq!(fs::metadata(target.join("a/b/data")).unwrap().nlink(), 2);
    assert_eq!(
        fs::read_link(target.join("a/link")).unwrap(),
        Path::new("../nowhere")
    );
    assert_eq!(fs::metadata(target.join("old")).unwrap().mtime(), -5);
    assert_eq!(
        fs::metadata(target.join("a/b/data")).unwrap().mtime(),
        fs::metadata(at("a/b/data")).unwrap().mtime()
    );
    // Shared with everyone, and no longer set-id.
    assert_eq!(
        fs::metadata(target.join("a/private")).unwrap().mode() & 0o7777,
        0o755
    );
    let private = file.tables().find(b"a/private").unwrap();
    assert_eq!(file.tables().node(private).unwrap().mode, 0o4700);
    assert_eq!(file.read(private, 6).unwrap().unwrap(), b"secret");
    assert_eq!(file.read(private, 5).unwrap(), None);

    file.extract(&target).unwrap_err();
    let left = |name: &str| {
        fs::read_dir(work.path())
            .unwrap()
            .any(|entry| entry.unwrap().file_name() == name)
    };
    assert!(left("out") && left("dir.img"));
    assert_eq!(
        fs::read_dir(work.path()).unwrap().count(),
        2,
        "a failed extraction left something behind"
    );
}

#[test]
fn what_an_image_cannot_hold_is_refused() {
    let source = tempfile::tempdir().unwrap();
    let made = Command::new("mkfifo").arg(source.path().join("pipe")).status();
    assert!(made.unwrap().success());
    let mut tree = Tree::new(source.path()).unwrap();
    let error = directory::add(&mut tree, source.path(), b"", Ownership::Root).unwrap_err();
    assert!(matches!(error, DirectoryError::UnsupportedKind(_)), "{error}");
}

#[test]
fn damaged_images_are_not_extracted() {
    let work = tempfile::tempdir().unwrap();
    let mut tree = Tree::new(work.path()).unwrap();
    for name in ["a/one", "b/two", "three"] {
        tree.file(name.as_bytes(), Attributes::root(0o644), &mut name.as_bytes())
            .unwrap();
    }
    let image = work.path().join("x.img");
    write(&tree, b"", &image).unwrap();
    let whole = fs::read(&image).unwrap();
    for at in (48..whole.len()).step_by(7) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x5a;
        fs::write(&image, &damaged).unwrap();
        let target = work.path().join("out");
        match ImageFile::open(&image) {
            Ok(file) => {
                assert!(file.verify().is_err(), "byte {at}");
                // Without the check, damage may change contents, but leads nowhere else and never panics.
                let _ = file.extract(&target);
                let _ = fs::remove_dir_all(&target);
            }
            Err(_) => continue,
        }
        assert_eq!(fs::read_dir(work.path()).unwrap().count(), 1, "byte {at}");
    }
}

#[test]
fn an_image_that_the_disk_has_no_room_for_leaves_nothing() {
    let work = tempfile::tempdir().unwrap();
    let small = work.path().join("small");
    fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "none"])
        .arg(&small)
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: mounting a small tmpfs needs root");
        return;
    }
    let mut tree = Tree::new(work.path()).unwrap();
    tree.file(b"large", Attributes::root(0o644), &mut [1; 100_000].as_slice())
        .unwrap();
    let written = write(&tree, b"", &small.join("x.img"));
    let left = fs::read_dir(&small).unwrap().count();
    let unmounted = Command::new("umount").arg(&small).status().unwrap();
    assert!(unmounted.success());
    let error = written.unwrap_err();
    assert_eq!(error.source.kind(), io::ErrorKind::StorageFull, "{error}");
    assert_eq!(left, 0);
}

#[test]
fn descriptions_are_checked() {
    let good = r#"{"name":"x","interface":"device","commands":[["/a","b"]],"directory":"/"}"#;
    RuntimeDescription::parse(good.as_bytes()).unwrap();
    for (bad, malformed) in [
        ("", true),
        (
            r#"{"name":"x","interface":"http","commands":[["/a"]],"directory":"/"}"#,
            true,
        ),
        (
            r#"{"name":"x","interface":"device","commands":[["/a"]],"directory":"/","extra":1}"#,
            true,
        ),
        (
            r#"{"name":"x","interface":"device","commands":[],"directory":"/"}"#,
            false,
        ),
        (
            r#"{"name":"x","interface":"device","commands":[[]],"directory":"/"}"#,
            false,
        ),
        (
            r#"{"name":"x","interface":"device","commands":[["a"]],"directory":"/"}"#,
            false,
        ),
        (
            r#"{"name":"x","interface":"device","commands":[["/a"]],"directory":"tmp"}"#,
            false,
        ),
    ] {
        let error = RuntimeDescription::parse(bad.as_bytes()).unwrap_err();
        assert_eq!(
            matches!(error, DescriptionError::Malformed(_)),
            malformed,
            "{bad}: {error}"
        );
    }
}
