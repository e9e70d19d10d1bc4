//! Files in memory, where snapshots lie while they are used.
//!
//! They are on a file system of their own that is mounted nowhere and has 2 MiB pages where the host gives any; where no
//! file system can be made, they are memfds. They have no names and are gone with their last descriptor. Workers that
//! only read a snapshot get a descriptor that can only be read.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use rustix::{
    fs::{MemfdFlags, Mode, OFlags, memfd_create, openat},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    },
};

/// When the file system uses 2 MiB pages, best first: for whole pages of a file, written or mapped; for mappings that ask.
const HUGE: [&str; 2] = ["within_size", "advise"];

/// Makes files in memory, as snapshots need them.
#[derive(Debug)]
pub struct Scratch {
    /// Root of the file system; `None` where there is none.
    root: Option<OwnedFd>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Scratch {
    /// On a file system of its own, in memory files where none can be made.
    pub fn new() -> Self {
        let made = HUGE
            .iter()
            .map(|huge| filesystem(Some(huge)))
            .chain([filesystem(None)]);
        let mut root = None;
        for result in made {
            match result {
                Ok(made) => {
                    root = Some(made);
                    break;
                }
                Err(error) => tracing::debug!(%error, "no file system for snapshots of this kind"),
            }
        }
        if root.is_none() {
            tracing::warn!(
                "snapshots lie in memory files of 4 KiB pages: a file system of their own cannot be made"
            );
        }
        Self { root }
    }

    /// A new, empty file.
    ///
    /// # Errors
    /// When the process may have no more descriptors.
    pub fn file(&self) -> io::Result<File> {
        let descriptor = match &self.root {
            Some(root) => {
                let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
                openat(root, ".", flags, Mode::RUSR | Mode::WUSR)?
            }
            None => memfd_create("gust-snapshot", MemfdFlags::CLOEXEC)?,
        };
        Ok(descriptor.into())
    }
}

/// The same file, open for reading only.
pub(crate) fn read_only(file: &File) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn filesystem(huge: Option<&str>) -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // The bound is the cache's: it counts what it keeps.
    fsconfig_set_string(context.as_fd(), "size", "100%")?;
    fsconfig_set_string(context.as_fd(), "mode", "0700")?;
    if let Some(huge) = huge {
        fsconfig_set_string(context.as_fd(), "huge", huge)?;
    }
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok(fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn files_can_be_handed_out_for_reading_only() {
        for scratch in [Scratch::new(), Scratch { root: None }] {
            let file = scratch.file().unwrap();
            file.set_len(4 << 20).unwrap();
            file.write_all_at(b"content", 1 << 20).unwrap();
            let shared = read_only(&file).unwrap();
            let mut content = [0; 7];
            shared.read_exact_at(&mut content, 1 << 20).unwrap();
            assert_eq!(&content, b"content");
            assert!(shared.write_all_at(b"x", 0).is_err());
            drop(file);
            shared.read_exact_at(&mut content, 1 << 20).unwrap();
        }
    }
}
