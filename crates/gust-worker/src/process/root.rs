//! The file system that a guest process sees.
//!
//! ```text
//! /            the runtime's tree          read-only
//! /var/task    the function's code         read-only
//! /opt         its layers                  read-only, upper layers over lower ones
//! /tmp         in memory, bounded          the only place to write
//! /dev         null, zero, full, random, urandom, and the links into /proc
//! /proc        of the guest's own processes
//! ```
//!
//! Trees come as mounts that are attached nowhere, where the node may make any, or else as descriptors of directories. A
//! directory is found again by its path in this mount namespace, which is a copy of the one in which it was opened, and
//! compared with its descriptor: there, every directory above it must let anyone pass.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, fstat, open, openat, openat2, symlinkat},
    mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
};

use crate::{
    jail::filesystem::{PLAIN, enter_root, make_private, new_filesystem, tmpfs},
    sys,
};

/// Devices of the host that a guest may use.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

/// Links in `/dev` that programs expect.
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Most layers of a function (Lambda's quota is 5).
const LAYERS_MAX: usize = 16;

/// Bytes of `/tmp` for one file or directory at least: what bounds their number.
const TMP_BYTES_PER_INODE: u64 = 4096;

/// What a guest's root is put together from.
pub(super) struct Root<'a> {
    /// Directory with the runtime's tree.
    pub tree: BorrowedFd<'a>,
    /// Directory with the function's code.
    pub code: BorrowedFd<'a>,
    /// Directories with layers, lowest first.
    pub layers: &'a [OwnedFd],
    /// Where the code goes.
    pub task_root: &'a str,
    /// Where the layers go.
    pub layers_at: &'a str,
    /// Size of `/tmp`.
    pub tmp_bytes: u64,
}

/// Puts the root together and makes it this mount namespace's, with nothing of the host left in it.
pub(super) fn enter(root: &Root<'_>) -> io::Result<()> {
    let named = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
    };
    make_private().map_err(named("making mounts private"))?;
    // All of them before the root is covered, because they may have to be found by their paths.
    let top = tree(root.tree).map_err(named("finding the runtime's tree"))?;
    let code = tree(root.code).map_err(named("finding the function's code"))?;
    let layers = layers(root.layers).map_err(named("stacking the layers"))?;
    move_mount(&top, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|error| named("mounting the runtime's tree")(error.into()))?;
    // Whatever is mounted from here on goes to places inside the tree, whatever links it may have.
    let place = |mount: &OwnedFd, at: &str| place(&top, mount, at).map_err(named(&format!("mounting {at}")));
    place(&code, root.task_root)?;
    if let Some(layers) = layers {
        place(&layers, root.layers_at)?;
    }
    let size = root.tmp_bytes.to_string();
    let inodes = (root.tmp_bytes / TMP_BYTES_PER_INODE).max(64).to_string();
    let tmp = tmpfs(
        &[("size", &size), ("nr_inodes", &inodes), ("mode", "1777")],
        PLAIN,
    )?;
    place(&tmp, "/tmp")?;
    place_devices(&top).map_err(named("making /dev"))?;
    let processes = PLAIN.union(MountAttrFlags::MOUNT_ATTR_NOEXEC);
    place(
        &new_filesystem("proc", &[], processes).map_err(named("making /proc"))?,
        "/proc",
    )?;
    enter_root(top.as_fd()).map_err(named("changing the root"))
}

/// A tree as a read-only mount that is attached nowhere.
fn tree(descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attributes = u64::from((PLAIN | MountAttrFlags::MOUNT_ATTR_RDONLY).bits());
    // The kernel lets this be done to mounts of this namespace and to those that are attached nowhere. What the node has
    // opened is of its own namespace, so this succeeds for such a mount only.
    if sys::set_mount_attributes(descriptor, attributes).is_ok() {
        return descriptor.try_clone_to_owned();
    }
    let path = path_of(descriptor)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(CWD, &path, flags)?;
    expect_same(mount.as_fd(), descriptor, &path)?;
    sys::set_mount_attributes(&mount, attributes)?;
    Ok(mount)
}

/// Where a directory is found in this mount namespace.
fn path_of(descriptor: BorrowedFd<'_>) -> io::Result<PathBuf> {
    let path = fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))?;
    let found = open(
        &path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    expect_same(found.as_fd(), descriptor, &path)?;
    Ok(path)
}

fn expect_same(found: BorrowedFd<'_>, expected: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let (found, expected) = (fstat(found)?, fstat(expected)?);
    match (found.st_dev, found.st_ino) == (expected.st_dev, expected.st_ino) {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "{} is another directory than was handed in",
            path.display()
        ))),
    }
}

/// A path as an element of a list that colons divide.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:")
}

/// One read-only mount of all layers; `None` when there are none.
fn layers(layers: &[OwnedFd]) -> io::Result<Option<OwnedFd>> {
    match layers {
        [] => Ok(None),
        [only] => tree(only.as_fd()).map(Some),
        layers if layers.len() > LAYERS_MAX => Err(io::Error::other("too many layers")),
        layers => {
            // The first directory named lies on top.
            let lower: io::Result<Vec<String>> = layers
                .iter()
                .rev()
                .map(|layer| Ok(escaped(&path_of(layer.as_fd())?)))
                .collect();
            let attributes = PLAIN | MountAttrFlags::MOUNT_ATTR_RDONLY;
            new_filesystem("overlay", &[("lowerdir", &lower?.join(":"))], attributes).map(Some)
        }
    }
}

/// A small file system at `/dev` with the devices of [`DEVICES`], read-only once it is filled.
fn place_devices(top: &OwnedFd) -> io::Result<()> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = tmpfs(
        &[("size", "64k"), ("nr_inodes", "32"), ("mode", "0755")],
        attributes,
    )?;
    place(top, &mount, "/dev")?;
    for (name, target) in DEVICE_LINKS {
        symlinkat(target, &mount, name)?;
    }
    for name in DEVICES {
        // Devices cannot be made in a user namespace; the host's are mounted over empty files.
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&mount, name, flags, Mode::RUSR | Mode::WUSR)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let device = open_tree(CWD, Path::new("/dev").join(name), flags)?;
        move_mount(&device, "", &mount, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    sys::set_mount_attributes(&mount, u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()))
}

/// Attaches a mount at a path inside the tree, whatever links the tree has.
fn place(top: &OwnedFd, mount: &OwnedFd, at: &str) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let target = openat2(top, at, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", &target, "", flags)?)
}
