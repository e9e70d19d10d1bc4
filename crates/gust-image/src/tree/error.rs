//! Why a node could not be placed in a tree.

use std::io;

use crate::format::NODES_MAX;

/// Why a node could not be placed in a tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The path has a `..`.
    #[error("path {0:?} has a component \"..\"")]
    DotDot(String),
    /// The path has no component.
    #[error("path {0:?} names nothing")]
    EmptyPath(String),
    /// The path, a name in it, or a link's target is too long or holds a zero byte.
    #[error("path {0:?} is longer or deeper than an image can hold, or has a zero byte")]
    Unrepresentable(String),
    /// Something in the middle of the path is not a directory.
    #[error("path {0:?} leads through something that is not a directory")]
    NotADirectory(String),
    /// Links in the path lead in a circle or nowhere.
    #[error("path {0:?} leads through a symbolic link that ends nowhere")]
    BrokenLink(String),
    /// The target of a hard link is missing or is a directory.
    #[error("hard link to {0:?}, which is no file of the tree")]
    BadHardLink(String),
    /// More nodes than an image can hold.
    #[error("more than {NODES_MAX} files")]
    TooManyNodes,
    /// The content could not be read or set aside.
    #[error("reading the content of {path:?} failed")]
    Content {
        /// Of which file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}
