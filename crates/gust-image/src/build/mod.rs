//! Builders: what an image can be made from.
//!
//! [`directory`] takes a directory of the host, [`package`] a Lambda code package (zip), [`oci`] an OCI image layout,
//! [`debian`] the packages of the host's distribution. Each fills a [`Tree`](crate::Tree); what came from outside is
//! refused where it is not understood, and never writes anywhere but into the tree.

pub mod debian;
pub mod directory;
pub mod oci;
pub mod package;
mod tarball;

/// What a builder is doing, for the one who waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A step has begun.
    Step(String),
    /// So much of the step is done, in the step's own units.
    Advance {
        /// Units done.
        done: u64,
        /// Units in all.
        total: u64,
    },
    /// Something that the reader should know and that does not stop the build.
    Note(String),
}

/// Receives what a builder reports.
pub type ProgressSink<'a> = &'a mut dyn FnMut(Progress);
