//! Images as the node hands them in: files that are mapped and read where they lie.

#![expect(unsafe_code, reason = "maps files of the node's")]

use std::{os::fd::OwnedFd, sync::Arc};

use gust_image::Image;
use memmap2::{Mmap, MmapOptions};

use super::sandbox::SandboxError;

/// A mapped file. [`Mmap`] gives its bytes only by dereferencing.
struct Mapped(Mmap);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Opens an image. Costs one system call for each image, whatever its size. The file must never be changed while the image is
/// in use.
///
/// # Errors
/// When the file cannot be mapped, or is no image.
pub fn open_image(file: &OwnedFd) -> Result<Image, SandboxError> {
    let bytes = rustix::fs::fstat(file)
        .map_err(|error| SandboxError::io("measure an image", error.into()))?
        .st_size;
    // SAFETY: images are files of the node's that are never changed once they have their names, and that no worker can
    // write to: its descriptor is read-only.
    let map = unsafe { MmapOptions::new().len(bytes as usize).map(file) }
        .map_err(|source| SandboxError::io("map an image", source))?;
    Image::open(Arc::new(Mapped(map))).map_err(SandboxError::Image)
}
