//! Extended attributes: those of users, on files and directories in memory.

use crate::{
    errno::{E2BIG, EEXIST, EINVAL, ENAMETOOLONG, ENODATA, EOPNOTSUPP, EPERM, ERANGE, EROFS, Errno},
    fs::{Entry, NodeType, Vnode, path::Last},
    kernel::{Cx, Flow, Kernel, SysResult},
};

/// Longest name (`XATTR_NAME_MAX`).
const NAME_BYTES_MAX: usize = 255;
/// Largest value (`XATTR_SIZE_MAX`).
const VALUE_BYTES_MAX: u64 = 64 << 10;
/// Largest list of names (`XATTR_LIST_MAX`).
const LIST_BYTES_MAX: u64 = 64 << 10;

/// How a call names its node.
#[derive(Debug, Clone, Copy)]
enum By {
    /// A path, whose last link is followed.
    Path,
    /// A path, whose last link is meant itself.
    Link,
    /// A descriptor.
    Descriptor,
}

impl Kernel {
    fn attribute_entry(&mut self, cx: &mut Cx<'_>, by: By, argument: u64) -> Result<Entry, Errno> {
        let last = match by {
            By::Path => Last::Follow,
            By::Link => Last::Keep,
            By::Descriptor => {
                self.files.usable(argument)?.kind.vnode().ok_or(EOPNOTSUPP)?;
                return self.file_entry(argument);
            }
        };
        let path = self.copy_in_path(cx, argument)?;
        self.resolve_at(cx, libc::AT_FDCWD as u64, &path, last)?.entry()
    }

    fn attribute_node(&mut self, cx: &mut Cx<'_>, by: By, argument: u64) -> Result<Vnode, Errno> {
        self.attribute_entry(cx, by, argument).map(|entry| entry.node)
    }

    fn attribute_name(&mut self, cx: &mut Cx<'_>, at: u64) -> Result<Vec<u8>, Errno> {
        let name = self
            .copy_in_string(cx, at, NAME_BYTES_MAX + 1)
            .map_err(|errno| if errno == ENAMETOOLONG { ERANGE } else { errno })?;
        if name.is_empty() { Err(ERANGE) } else { Ok(name) }
    }

    /// Whether a name may be looked at or changed on a node.
    fn check_attribute(&self, vnode: Vnode, name: &[u8], writes: bool) -> Result<(), Errno> {
        let privileged = [b"trusted.".as_slice(), b"security."];
        if privileged.iter().any(|prefix| name.starts_with(prefix)) {
            return Err(if writes { EPERM } else { ENODATA });
        }
        let Some(rest) = name.strip_prefix(b"user.") else {
            return Err(EOPNOTSUPP);
        };
        if rest.is_empty() {
            return Err(EINVAL);
        }
        match self.vfs.node_type(vnode)? {
            NodeType::Regular | NodeType::Directory => {}
            NodeType::Symlink
            | NodeType::Character
            | NodeType::Fifo
            | NodeType::Socket
            | NodeType::Anonymous => return Err(if writes { EPERM } else { ENODATA }),
        }
        self.check_access(vnode, if writes { libc::W_OK } else { libc::R_OK })
    }

    fn set_attribute(&mut self, cx: &mut Cx<'_>, by: By, args: &[u64; 6]) -> SysResult {
        let [node, name, value, bytes, flags, _] = *args;
        let flags = flags as i32;
        if flags & !(libc::XATTR_CREATE | libc::XATTR_REPLACE) != 0 {
            return Err(EINVAL);
        }
        let name = self.attribute_name(cx, name)?;
        if bytes > VALUE_BYTES_MAX {
            return Err(E2BIG);
        }
        let value = self.copy_in_vec(cx, value, bytes as usize)?;
        let entry = self.attribute_entry(cx, by, node)?;
        self.check_attribute(entry.node, &name, true)?;
        let Vnode::Memory(number) = entry.node else {
            return Err(EROFS);
        };
        let exists = self.vfs.memory.get(number)?.attributes.contains_key(&name);
        if exists && flags & libc::XATTR_CREATE != 0 {
            return Err(EEXIST);
        }
        if !exists && flags & libc::XATTR_REPLACE != 0 {
            return Err(ENODATA);
        }
        let now = self.now_ns(cx);
        self.vfs.memory.set_attribute(number, name, Some(value), now)?;
        self.tell_entry(&entry, libc::IN_ATTRIB);
        Ok(Flow::Done(0))
    }

    fn get_attribute(&mut self, cx: &mut Cx<'_>, by: By, args: &[u64; 6]) -> SysResult {
        let [node, name, value, bytes, ..] = *args;
        let name = self.attribute_name(cx, name)?;
        let vnode = self.attribute_node(cx, by, node)?;
        self.check_attribute(vnode, &name, false)?;
        let Vnode::Memory(number) = vnode else {
            return Err(ENODATA);
        };
        let found = self.vfs.memory.get(number)?.attributes.get(&name);
        let found = found.ok_or(ENODATA)?.clone();
        self.give_attribute(cx, &found, value, bytes)
    }

    /// Tells how long something is to who has no room at all, and gives it to who has enough.
    fn give_attribute(&mut self, cx: &mut Cx<'_>, found: &[u8], at: u64, room: u64) -> SysResult {
        let bytes = found.len() as u64;
        if room > 0 {
            if bytes > room {
                return Err(ERANGE);
            }
            self.copy_out(cx, at, found)?;
        }
        Ok(Flow::Done(bytes))
    }

    fn list_attributes(&mut self, cx: &mut Cx<'_>, by: By, args: &[u64; 6]) -> SysResult {
        let [node, list, bytes, ..] = *args;
        let vnode = self.attribute_node(cx, by, node)?;
        let Vnode::Memory(number) = vnode else {
            return Ok(Flow::Done(0));
        };
        let names = self.vfs.memory.get(number)?.attributes.keys();
        let listed = names.fold(Vec::new(), |mut listed, name| {
            listed.extend_from_slice(name);
            listed.push(0);
            listed
        });
        if listed.len() as u64 > LIST_BYTES_MAX {
            return Err(E2BIG);
        }
        self.give_attribute(cx, &listed, list, bytes)
    }

    fn remove_attribute(&mut self, cx: &mut Cx<'_>, by: By, args: &[u64; 6]) -> SysResult {
        let name = self.attribute_name(cx, args[1])?;
        let entry = self.attribute_entry(cx, by, args[0])?;
        self.check_attribute(entry.node, &name, true)?;
        let Vnode::Memory(number) = entry.node else {
            return Err(EROFS);
        };
        if !self.vfs.memory.get(number)?.attributes.contains_key(&name) {
            return Err(ENODATA);
        }
        let now = self.now_ns(cx);
        self.vfs.memory.set_attribute(number, name, None, now)?;
        self.tell_entry(&entry, libc::IN_ATTRIB);
        Ok(Flow::Done(0))
    }
}

pub(crate) fn sys_setxattr(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.set_attribute(cx, By::Path, args)
}

pub(crate) fn sys_lsetxattr(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.set_attribute(cx, By::Link, args)
}

pub(crate) fn sys_fsetxattr(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.set_attribute(cx, By::Descriptor, args)
}

pub(crate) fn sys_getxattr(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.get_attribute(cx, By::Path, args)
}

pub(crate) fn sys_lgetxattr(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.get_attribute(cx, By::Link, args)
}

pub(crate) fn sys_fgetxattr(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.get_attribute(cx, By::Descriptor, args)
}

pub(crate) fn sys_listxattr(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.list_attributes(cx, By::Path, args)
}

pub(crate) fn sys_llistxattr(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.list_attributes(cx, By::Link, args)
}

pub(crate) fn sys_flistxattr(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.list_attributes(cx, By::Descriptor, args)
}

pub(crate) fn sys_removexattr(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.remove_attribute(cx, By::Path, args)
}

pub(crate) fn sys_lremovexattr(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.remove_attribute(cx, By::Link, args)
}

pub(crate) fn sys_fremovexattr(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.remove_attribute(cx, By::Descriptor, args)
}
