//! What an image says of the runtime in it: `/.gust/runtime.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{ExtractError, ImageFile};

/// Where the description lies in an image.
pub const DESCRIPTION_PATH: &str = "/.gust/runtime.json";

/// Longest description, in bytes.
pub const DESCRIPTION_BYTES_MAX: usize = 64 << 10;

/// How a runtime's program takes events and gives answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuntimeInterface {
    /// The runtime device of `docs/runtime-device.md`.
    Device,
    /// The AWS Lambda Runtime API over HTTP.
    RuntimeApi,
}

/// A runtime as its image describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeDescription {
    /// Name as functions state it (`python3.11`).
    pub name: String,
    /// How its program is spoken to.
    pub interface: RuntimeInterface,
    /// Programs to start with their arguments (`{handler}` and `{memory_mib}` are the function's), in order of preference: the first whose path exists in the runtime, the
    /// function's code or a layer is taken.
    pub commands: Vec<Vec<String>>,
    /// Environment of the program, beneath the function's own.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Working directory.
    pub directory: String,
}

/// Why an image does not describe a usable runtime.
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    /// The image cannot be read.
    #[error("read the image's description")]
    Unreadable(#[source] ExtractError),
    /// There is no description.
    #[error("the image has no {DESCRIPTION_PATH}: it is no runtime's")]
    Missing,
    /// It is not what it should be.
    #[error("the image's {DESCRIPTION_PATH} is not a runtime's description")]
    Malformed(#[source] serde_json::Error),
    /// A rule is broken.
    #[error("the image's {DESCRIPTION_PATH}: {0}")]
    Invalid(&'static str),
}

impl RuntimeDescription {
    /// Reads and checks the description in an image.
    ///
    /// # Errors
    /// When the image cannot be read or has none, and as [`Self::parse`].
    pub fn of(image: &ImageFile) -> Result<Self, DescriptionError> {
        let index = image
            .tables()
            .find(DESCRIPTION_PATH.as_bytes())
            .ok_or(DescriptionError::Missing)?;
        let content = image
            .read(index, DESCRIPTION_BYTES_MAX as u64)
            .map_err(DescriptionError::Unreadable)?;
        Self::parse(&content.ok_or(DescriptionError::Missing)?)
    }

    /// Reads and checks a description.
    ///
    /// # Errors
    /// When it is not JSON of this shape, names no program, or a path is not absolute.
    pub fn parse(bytes: &[u8]) -> Result<Self, DescriptionError> {
        if bytes.len() > DESCRIPTION_BYTES_MAX {
            return Err(DescriptionError::Invalid("it is too long"));
        }
        let description: Self = serde_json::from_slice(bytes).map_err(DescriptionError::Malformed)?;
        let absolute = |path: &str| path.starts_with('/');
        if description.commands.is_empty() {
            return Err(DescriptionError::Invalid("it names no program"));
        }
        if !description
            .commands
            .iter()
            .all(|command| command.first().is_some_and(|path| absolute(path)))
        {
            return Err(DescriptionError::Invalid("a program's path is not absolute"));
        }
        if !absolute(&description.directory) {
            return Err(DescriptionError::Invalid("its directory is not absolute"));
        }
        Ok(description)
    }

    /// The description as it is stored.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a description has no keys that JSON cannot hold")
    }
}
