//! Read-only images: the file systems that functions run on.
//!
//! One image is one file. It is made on the host by a builder, mapped read-only into a jailed worker, and read there
//! in place by the guest's file system. A runtime, a function's code and each layer are images of their own.
//!
//! This crate knows files, not functions: what an image is used for, how images are stacked and who may read what is
//! decided elsewhere.

#![forbid(unsafe_code)]

pub mod build;
mod extract;
mod format;
mod reader;
pub mod runtime;
mod spool;
mod tree;
mod writer;

pub use extract::{ExtractError, ImageFile};
pub use format::{LINK_BYTES_MAX, NAME_BYTES_MAX, NODES_MAX, PAGE_BYTES};
pub use reader::{
    Entries, HEADER_LENGTH, Image, ImageBytes, ImageError, Node, NodeIndex, NodeKind, tables_bytes,
};
pub use tree::{Attributes, Found, Tree, TreeError};
pub use writer::{WriteError, Written, write};
