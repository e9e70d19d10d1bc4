//! Changing the root directory.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::CWD,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, unmount,
    },
};

/// Options of a file system in memory, as `(name, value)`.
pub(crate) type TmpfsOptions<'a> = &'a [(&'a str, &'a str)];

/// Nothing may be set-id, a device or a program there.
pub(crate) const PLAIN: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV);

/// Exchanges the root directory of this mount namespace for an empty one that cannot be written.
pub(crate) fn enter_empty_root() -> io::Result<()> {
    let attributes = PLAIN
        .union(MountAttrFlags::MOUNT_ATTR_NOEXEC)
        .union(MountAttrFlags::MOUNT_ATTR_RDONLY);
    let root = tmpfs(
        &[("size", "4k"), ("nr_inodes", "2"), ("mode", "0555")],
        attributes,
    )?;
    make_private()?;
    move_mount(
        root.as_fd(),
        "",
        CWD,
        "/",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    enter_root(root.as_fd())
}

/// A file system in memory, not mounted anywhere yet.
pub(crate) fn tmpfs(options: TmpfsOptions<'_>, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    new_filesystem("tmpfs", options, attributes)
}

/// A file system of a kind, not mounted anywhere yet.
pub(crate) fn new_filesystem(
    kind: &str,
    options: TmpfsOptions<'_>,
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        fsconfig_set_string(context.as_fd(), *name, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// Makes a mount of this namespace its root, and lets go of the old root with all in it.
pub(crate) fn enter_root(root: BorrowedFd<'_>) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    // With both paths the same, the old root ends on top of the new one, where it can be unmounted.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Keeps mounts of this namespace from others, and theirs from this one.
pub(crate) fn make_private() -> io::Result<()> {
    Ok(mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )?)
}
