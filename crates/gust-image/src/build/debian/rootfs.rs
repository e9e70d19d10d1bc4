//! What stands around the packages: the directories and the `/etc` that their installation scripts would have made.

use crate::{
    build::package::UNZIPPED_BYTES_MAX,
    tree::{Attributes, Found, Tree, TreeError},
};

use super::RuntimeBuildError;

/// User and group that functions run as, with AWS Lambda's names and numbers.
const USER: &str = "sbx_user1051";
const UID: u32 = 993;
const GID: u32 = 990;

/// Documentation, translations, tests, data of the package manager, and hooks into a desktop's crash reporter.
const PRUNED: [&str; 28] = [
    "usr/share/doc",
    "usr/share/doc-base",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/share/menu",
    "usr/share/pixmaps",
    "usr/share/applications",
    "usr/share/bash-completion",
    "usr/share/debconf",
    "usr/share/debianutils",
    "usr/share/base-files",
    "var/lib/dpkg",
    "etc/cron.d",
    "etc/ca-certificates",
    "etc/python3.11",
    "usr/lib/binfmt.d",
    "usr/lib/python3.11/sitecustomize.py",
    "usr/lib/python3.11/test",
    "usr/lib/python3/dist-packages/simplejson/tests",
    "usr/lib/valgrind",
    "usr/lib/jvm/java-17-openjdk-amd64/legal",
    "usr/lib/jvm/java-17-openjdk-amd64/man",
    "usr/share/binfmts",
    "usr/share/gdb",
    "usr/share/python3",
];

/// Certificate bundle that OpenSSL, curl and botocore look for.
const BUNDLE: &[u8] = b"etc/ssl/certs/ca-certificates.crt";

/// The directory layout that packages expect, before the first is unpacked.
pub(super) fn skeleton(tree: &mut Tree) -> Result<(), TreeError> {
    for directory in [
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "etc",
        "home",
        "mnt",
        "run",
        "var/tmp",
    ] {
        tree.directory(directory.as_bytes(), Attributes::root(0o755))?;
    }
    // Places where a sandbox puts file systems of its own.
    for directory in ["dev", "opt", "proc", "sys", "var/task", "var/runtime", ".gust"] {
        tree.directory(directory.as_bytes(), Attributes::root(0o755))?;
    }
    tree.directory(b"tmp", Attributes::root(0o1777))?;
    for link in ["bin", "sbin", "lib", "lib64"] {
        tree.symlink(
            link.as_bytes(),
            Attributes::root(0o777),
            format!("usr/{link}").as_bytes(),
        )?;
    }
    Ok(())
}

/// Takes away what a function has no use for.
pub(super) fn prune(tree: &mut Tree) {
    for path in PRUNED {
        tree.remove(path.as_bytes());
    }
}

/// Writes `/etc` and what else installation scripts would have made.
pub(super) fn configure(tree: &mut Tree) -> Result<(), RuntimeBuildError> {
    let files = [
        (
            "etc/passwd",
            format!(
                "root:x:0:0:root:/root:/sbin/nologin\n{USER}:x:{UID}:{GID}::/home/{USER}:/sbin/nologin\n\
                 nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n"
            ),
        ),
        (
            "etc/group",
            format!("root:x:0:\ntty:x:5:\n{USER}:x:{GID}:\nnogroup:x:65534:\n"),
        ),
        ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n".to_owned()),
        ("etc/hostname", "localhost\n".to_owned()),
        // Nothing answers there; a name that cannot be resolved fails at once instead of after a time-out.
        (
            "etc/resolv.conf",
            "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n".to_owned(),
        ),
        (
            "etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\n".to_owned(),
        ),
        ("etc/ld.so.conf", "include /etc/ld.so.conf.d/*.conf\n".to_owned()),
        ("etc/timezone", "Etc/UTC\n".to_owned()),
    ];
    for (path, content) in files {
        tree.file(path.as_bytes(), Attributes::root(0o644), &mut content.as_bytes())?;
    }
    tree.symlink(
        b"etc/localtime",
        Attributes::root(0o777),
        b"/usr/share/zoneinfo/Etc/UTC",
    )?;
    tree.symlink(b"etc/mtab", Attributes::root(0o777), b"/proc/self/mounts")?;
    if tree.get(b"usr/bin/bash").is_some() && tree.get(b"usr/bin/sh").is_none() {
        tree.symlink(b"usr/bin/sh", Attributes::root(0o777), b"bash")?;
    }
    certificates(tree)
}

/// One file with every certificate of the `ca-certificates` package, and OpenSSL's own name for it.
fn certificates(tree: &mut Tree) -> Result<(), RuntimeBuildError> {
    const SOURCE: &[u8] = b"usr/share/ca-certificates/mozilla";
    let names: Vec<Vec<u8>> = tree.names(SOURCE).map(<[u8]>::to_vec).collect();
    let mut bundle = Vec::new();
    for name in names.iter().filter(|name| name.ends_with(b".crt")) {
        let path = [SOURCE, b"/", name].concat();
        let content = tree
            .read(&path, UNZIPPED_BYTES_MAX)
            .map_err(RuntimeBuildError::Spool)?;
        bundle.extend(content.unwrap_or_default());
        if !bundle.ends_with(b"\n") {
            bundle.push(b'\n');
        }
    }
    if bundle.len() <= 1 {
        return Err(RuntimeBuildError::NoCertificates);
    }
    tree.file(BUNDLE, Attributes::root(0o644), &mut bundle.as_slice())?;
    tree.remove(SOURCE);
    for (path, target) in [
        (
            b"usr/lib/ssl/cert.pem".as_slice(),
            b"/etc/ssl/certs/ca-certificates.crt".as_slice(),
        ),
        (b"usr/lib/ssl/certs", b"/etc/ssl/certs"),
        (
            b"etc/pki/tls/certs/ca-bundle.crt",
            b"/etc/ssl/certs/ca-certificates.crt",
        ),
    ] {
        if !matches!(tree.get(path), Some(Found::File(_) | Found::Directory)) {
            tree.symlink(path, Attributes::root(0o777), target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_land_behind_the_links_of_the_skeleton() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = Tree::new(dir.path()).unwrap();
        skeleton(&mut tree).unwrap();
        tree.file(
            b"lib/x86_64-linux-gnu/libc.so.6",
            Attributes::root(0o755),
            &mut b"libc".as_slice(),
        )
        .unwrap();
        assert_eq!(
            tree.get(b"usr/lib/x86_64-linux-gnu/libc.so.6"),
            Some(Found::File(4))
        );
    }

    #[test]
    fn certificates_become_one_bundle_and_their_absence_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = Tree::new(dir.path()).unwrap();
        skeleton(&mut tree).unwrap();
        assert!(matches!(
            configure(&mut tree),
            Err(RuntimeBuildError::NoCertificates)
        ));
        for (name, content) in [("b.crt", "two"), ("a.crt", "one\n"), ("readme", "no")] {
            let path = format!("usr/share/ca-certificates/mozilla/{name}");
            tree.file(path.as_bytes(), Attributes::root(0o644), &mut content.as_bytes())
                .unwrap();
        }
        configure(&mut tree).unwrap();
        assert_eq!(tree.read(BUNDLE, 100).unwrap().unwrap(), b"one\ntwo\n");
    }
}
