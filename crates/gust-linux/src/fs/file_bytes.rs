//! The bytes of files, wherever they lie: in an image, or in memory.

use gust_image::{Image, NodeIndex};

use crate::{
    abi::PAGE,
    errno::{EROFS, Errno},
    fs::{Vfs, Vnode},
};

/// The contents of a file in an image, which they keep alive.
#[derive(Debug, Clone)]
pub(crate) struct ImageFile {
    image: Image,
    node: NodeIndex,
}

impl ImageFile {
    pub(crate) fn len(&self) -> usize {
        self.as_ref().len()
    }
}

impl AsRef<[u8]> for ImageFile {
    fn as_ref(&self) -> &[u8] {
        self.image.file(self.node).unwrap_or_default()
    }
}

impl Vfs {
    /// Hands out the contents of a file from `offset` on, at most `bytes`, piece by piece with each piece's offset.
    pub(crate) fn with_contents(
        &self,
        vnode: Vnode,
        offset: u64,
        bytes: u64,
        mut take: impl FnMut(u64, &[u8]),
    ) {
        match vnode {
            Vnode::Image { image, node } => {
                let Some(data) = self
                    .images
                    .get(image as usize)
                    .and_then(|image| image.file(NodeIndex(node)))
                else {
                    return;
                };
                let start = (offset as usize).min(data.len());
                let end = start.saturating_add(bytes as usize).min(data.len());
                take(offset, &data[start..end]);
            }
            Vnode::Memory(number) => {
                let Some(contents) = self.memory.contents(number) else {
                    return;
                };
                let mut buffer = [0; PAGE as usize];
                let mut at = offset;
                let end = offset.saturating_add(bytes);
                while at < end {
                    let piece = (end - at).min(PAGE) as usize;
                    let read = contents.read(at, &mut buffer[..piece]);
                    if read == 0 {
                        return;
                    }
                    take(at, &buffer[..read]);
                    at += read as u64;
                }
            }
            Vnode::Synthetic(_) | Vnode::Descriptor(_) | Vnode::DescriptorInfo(_) | Vnode::Task(_) => {}
        }
    }

    /// The bytes of a file in an image. They belong to the image, so they can be used while the tree changes.
    pub(crate) fn image_contents(&self, vnode: Vnode) -> Option<ImageFile> {
        let Vnode::Image { image, node } = vnode else {
            return None;
        };
        let image = self.images.get(image as usize)?;
        image.file(NodeIndex(node))?;
        Some(ImageFile {
            image: image.clone(),
            node: NodeIndex(node),
        })
    }

    /// Reads from a file in memory.
    pub(crate) fn read_memory(&self, vnode: Vnode, offset: u64, out: &mut [u8]) -> usize {
        match vnode {
            Vnode::Memory(number) => self
                .memory
                .contents(number)
                .map_or(0, |contents| contents.read(offset, out)),
            Vnode::Image { .. }
            | Vnode::Synthetic(_)
            | Vnode::Descriptor(_)
            | Vnode::DescriptorInfo(_)
            | Vnode::Task(_) => 0,
        }
    }

    /// Reads from a regular file of either kind.
    pub(crate) fn read_any(&self, vnode: Vnode, offset: u64, out: &mut [u8]) -> usize {
        let Some(file) = self.image_contents(vnode) else {
            return self.read_memory(vnode, offset, out);
        };
        let data = file.as_ref();
        let start = (offset as usize).min(data.len());
        let bytes = out.len().min(data.len() - start);
        out[..bytes].copy_from_slice(&data[start..start + bytes]);
        bytes
    }

    /// Writes to a file in memory.
    pub(crate) fn write_memory(&mut self, vnode: Vnode, offset: u64, data: &[u8]) -> Result<(), Errno> {
        match vnode {
            Vnode::Memory(number) => self.memory.write(number, offset, data),
            Vnode::Image { .. }
            | Vnode::Synthetic(_)
            | Vnode::Descriptor(_)
            | Vnode::DescriptorInfo(_)
            | Vnode::Task(_) => Err(EROFS),
        }
    }

    /// Memory that files take, in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory.used_bytes()
    }
}
