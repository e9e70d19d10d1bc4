//! What `stat` tells of a node.

use serde::{Deserialize, Serialize};

use crate::abi::Writer;

/// Type bits of a mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NodeType {
    /// Directory.
    Directory,
    /// Regular file.
    Regular,
    /// Symbolic link.
    Symlink,
    /// Character device.
    Character,
    /// Pipe.
    Fifo,
    /// Socket.
    Socket,
    /// None: an object without a node, such as an epoll instance.
    Anonymous,
}

impl NodeType {
    pub(crate) fn mode_bits(self) -> u32 {
        match self {
            Self::Directory => libc::S_IFDIR,
            Self::Regular => libc::S_IFREG,
            Self::Symlink => libc::S_IFLNK,
            Self::Character => libc::S_IFCHR,
            Self::Fifo => libc::S_IFIFO,
            Self::Socket => libc::S_IFSOCK,
            Self::Anonymous => 0,
        }
    }

    /// `d_type` of a directory entry.
    pub(crate) fn entry_type(self) -> u8 {
        match self {
            Self::Directory => libc::DT_DIR,
            Self::Regular => libc::DT_REG,
            Self::Symlink => libc::DT_LNK,
            Self::Character => libc::DT_CHR,
            Self::Fifo => libc::DT_FIFO,
            Self::Socket => libc::DT_SOCK,
            Self::Anonymous => libc::DT_UNKNOWN,
        }
    }
}

/// Attributes of a node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes {
    /// Device number of the file system, minor only.
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) node_type: NodeType,
    /// Permission bits.
    pub(crate) mode: u32,
    pub(crate) links: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Device number of a character device, as `makedev` packs it.
    pub(crate) special: u64,
    pub(crate) size: u64,
    /// Entries of a directory in an image.
    pub(crate) entries: u64,
    /// Times of the last access, content change and attribute change, nanoseconds of the Unix epoch.
    pub(crate) accessed_ns: i64,
    pub(crate) modified_ns: i64,
    pub(crate) changed_ns: i64,
}

const NS: i64 = 1_000_000_000;

impl Attributes {
    /// `struct stat`, 144 bytes.
    pub(crate) fn to_stat(self) -> Vec<u8> {
        let mut out = Writer::with_capacity(144)
            .u64(self.device)
            .u64(self.inode)
            .u64(u64::from(self.links))
            .u32(self.node_type.mode_bits() | self.mode)
            .u32(self.uid)
            .u32(self.gid)
            .u32(0)
            .u64(self.special)
            .u64(self.size)
            .u64(4096)
            .u64(self.size.div_ceil(512));
        for time in [self.accessed_ns, self.modified_ns, self.changed_ns] {
            out = out.i64(time.div_euclid(NS)).i64(time.rem_euclid(NS));
        }
        out.pad_to(144).done()
    }

    /// `struct statx`, 256 bytes; the basic fields, which is what every mask asks for.
    pub(crate) fn to_statx(self) -> Vec<u8> {
        const STATX_BASIC_STATS: u32 = 0x7ff;
        let time = |out: Writer, ns: i64| out.i64(ns.div_euclid(NS)).u32(ns.rem_euclid(NS) as u32).u32(0);
        let (major, minor) = (libc::major(self.special), libc::minor(self.special));
        let out = Writer::with_capacity(256)
            .u32(STATX_BASIC_STATS)
            .u32(4096)
            .u64(0)
            .u32(self.links)
            .u32(self.uid)
            .u32(self.gid)
            .u16((self.node_type.mode_bits() | self.mode) as u16)
            .u16(0)
            .u64(self.inode)
            .u64(self.size)
            .u64(self.size.div_ceil(512))
            .u64(0);
        let out = time(
            time(time(time(out, self.accessed_ns), 0), self.changed_ns),
            self.modified_ns,
        );
        out.u32(major)
            .u32(minor)
            .u32(0)
            .u32(self.device as u32)
            .pad_to(256)
            .done()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{i64_at, u16_at, u32_at, u64_at};

    fn example() -> Attributes {
        Attributes {
            device: 3,
            inode: 77,
            node_type: NodeType::Regular,
            mode: 0o644,
            links: 2,
            uid: 993,
            gid: 990,
            special: 0,
            size: 1025,
            entries: 0,
            accessed_ns: 5_000_000_001,
            modified_ns: -1,
            changed_ns: 7_000_000_000,
        }
    }

    #[test]
    fn stat_has_linuxs_layout() {
        let raw = example().to_stat();
        assert_eq!(raw.len(), size_of::<libc::stat>());
        assert_eq!(u64_at(&raw, std::mem::offset_of!(libc::stat, st_ino)), 77);
        assert_eq!(u32_at(&raw, std::mem::offset_of!(libc::stat, st_mode)), 0o100_644);
        assert_eq!(u64_at(&raw, std::mem::offset_of!(libc::stat, st_size)), 1025);
        assert_eq!(i64_at(&raw, std::mem::offset_of!(libc::stat, st_mtime)), -1);
        assert_eq!(
            i64_at(&raw, std::mem::offset_of!(libc::stat, st_mtime_nsec)),
            999_999_999
        );
    }

    #[test]
    fn statx_has_linuxs_layout() {
        let raw = example().to_statx();
        assert_eq!(raw.len(), size_of::<libc::statx>());
        assert_eq!(u64_at(&raw, std::mem::offset_of!(libc::statx, stx_ino)), 77);
        assert_eq!(
            u16_at(&raw, std::mem::offset_of!(libc::statx, stx_mode)),
            0o100_644
        );
        assert_eq!(u64_at(&raw, std::mem::offset_of!(libc::statx, stx_size)), 1025);
        assert_eq!(i64_at(&raw, std::mem::offset_of!(libc::statx, stx_ctime)), 7);
        assert_eq!(u32_at(&raw, std::mem::offset_of!(libc::statx, stx_dev_minor)), 3);
    }
}
