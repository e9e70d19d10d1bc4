//! A tree from an OCI image layout: the directory form of a container image (`skopeo copy ... oci:DIR`).
//!
//! The image for this machine is chosen from the index, every blob is compared with its digest, and the layers are
//! laid over each other with their whiteouts. Nothing is fetched: what a layout refers to must lie in it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Seek},
    path::{Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{
    Progress, ProgressSink,
    tarball::{self, DirectoryLinks, TarError},
};
use crate::{
    runtime::{RuntimeDescription, RuntimeInterface},
    tree::Tree,
};

/// Longest index, manifest or configuration, in bytes (what registries accept).
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

/// Most layers of an image.
const LAYERS_MAX: usize = 128;

/// Deepest nesting of indexes.
const INDEX_DEPTH_MAX: usize = 4;

/// The machine that images must be for.
const ARCHITECTURE: &str = "amd64";

/// Why a layout could not be taken in.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A file of the layout could not be read.
    #[error("reading {path} of the image layout failed")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A document is not what it should be.
    #[error("{path} of the image layout is not a valid document")]
    Document {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A digest that is not SHA-256 in hex.
    #[error("the image layout names a blob by the unsupported digest {0:?}")]
    Digest(String),
    /// A blob is not what its name says.
    #[error("blob {0} of the image layout does not match its digest")]
    Altered(String),
    /// No image for this machine.
    #[error("the image layout holds no image for linux/{ARCHITECTURE}")]
    NoImage,
    /// A bound is exceeded.
    #[error("the image layout has {0}")]
    TooMuch(&'static str),
    /// A layer's compression is not supported.
    #[error("the image layout has a layer of the unsupported type {0:?}; tar and tar+gzip are supported")]
    LayerType(String),
    /// A layer's content could not be taken in.
    #[error("unpacking layer {digest} of the image layout failed")]
    Layer {
        /// Which.
        digest: String,
        /// Why.
        #[source]
        source: TarError,
    },
    /// The image names no program.
    #[error("the image names no program to start")]
    NoProgram,
}

/// What the image says of how it is started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OciConfig {
    /// Entry point and command.
    pub argv: Vec<String>,
    /// Environment.
    pub environment: BTreeMap<String, String>,
    /// Working directory; empty when the image states none.
    pub directory: String,
}

impl OciConfig {
    /// A description of this image as a runtime that speaks the Lambda Runtime API, as container images of Lambda do.
    ///
    /// # Errors
    /// When the image names no program, or names it by a path that is not absolute.
    pub fn description(&self, name: &str) -> Result<RuntimeDescription, OciError> {
        if !self.argv.first().is_some_and(|program| program.starts_with('/')) {
            return Err(OciError::NoProgram);
        }
        let directory = match self.directory.as_str() {
            "" => "/".to_owned(),
            directory => directory.to_owned(),
        };
        Ok(RuntimeDescription {
            name: name.to_owned(),
            interface: RuntimeInterface::RuntimeApi,
            commands: vec![self.argv.clone()],
            environment: self.environment.clone(),
            directory,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    /// Of an index.
    #[serde(default)]
    manifests: Vec<Descriptor>,
    /// Of a manifest.
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize, Clone)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    config: ConfigurationFields,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct ConfigurationFields {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
}

/// Lays the image of the layout in `layout` into `tree`.
///
/// # Errors
/// See [`OciError`]; the tree then holds a part.
pub fn add(tree: &mut Tree, layout: &Path, progress: ProgressSink<'_>) -> Result<OciConfig, OciError> {
    let index: Document = document(&layout.join("index.json"))?;
    let manifest = manifest(layout, index)?;
    if manifest.layers.len() > LAYERS_MAX {
        return Err(OciError::TooMuch("more than 128 layers"));
    }
    let total = manifest.layers.len() as u64;
    progress(Progress::Step(format!("unpacking {total} layers")));
    for (done, layer) in manifest.layers.iter().enumerate() {
        unpack(tree, layout, layer)?;
        progress(Progress::Advance {
            done: done as u64 + 1,
            total,
        });
    }
    let configuration: Configuration = match &manifest.config {
        Some(descriptor) => document(&blob(layout, &descriptor.digest)?)?,
        None => Configuration {
            config: ConfigurationFields::default(),
        },
    };
    Ok(config(configuration.config))
}

/// Follows indexes down to the manifest for this machine.
fn manifest(layout: &Path, index: Document) -> Result<Document, OciError> {
    let mut current = index;
    for _ in 0..INDEX_DEPTH_MAX {
        if current.manifests.is_empty() {
            return Ok(current);
        }
        let here = |descriptor: &&Descriptor| match &descriptor.platform {
            Some(platform) => platform.os == "linux" && platform.architecture == ARCHITECTURE,
            None => true,
        };
        let descriptor = current.manifests.iter().find(here).ok_or(OciError::NoImage)?;
        current = document(&blob(layout, &descriptor.digest)?)?;
    }
    Err(OciError::TooMuch("indexes nested too deep"))
}

fn unpack(tree: &mut Tree, layout: &Path, layer: &Descriptor) -> Result<(), OciError> {
    let path = blob(layout, &layer.digest)?;
    let failed = |source| OciError::Layer {
        digest: layer.digest.clone(),
        source,
    };
    let open = || -> Result<Box<dyn Read>, OciError> {
        let read = |source| OciError::Read {
            path: path.clone(),
            source,
        };
        let file = File::open(&path).map_err(read)?;
        match layer.media_type.as_str() {
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
                Ok(Box::new(io::BufReader::new(file)))
            }
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
                Ok(Box::new(MultiGzDecoder::new(io::BufReader::new(file))))
            }
            other => Err(OciError::LayerType(other.to_owned())),
        }
    };
    tarball::remove_whiteouts(tree, open()?).map_err(failed)?;
    tarball::add(tree, open()?, DirectoryLinks::Replaced).map_err(failed)
}

/// The path of a blob whose content matches its digest.
fn blob(layout: &Path, digest: &str) -> Result<PathBuf, OciError> {
    let hex = digest.strip_prefix("sha256:").filter(|hex| {
        hex.len() == 64
            && hex
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    });
    let hex = hex.ok_or_else(|| OciError::Digest(digest.to_owned()))?;
    let path = layout.join("blobs/sha256").join(hex);
    let read = |source| OciError::Read {
        path: path.clone(),
        source,
    };
    let mut file = File::open(&path).map_err(read)?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; 128 << 10];
    loop {
        match file.read(&mut chunk).map_err(read)? {
            0 => break,
            n => hasher.update(&chunk[..n]),
        }
    }
    let found: String = hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    match found == hex {
        true => Ok(path),
        false => Err(OciError::Altered(digest.to_owned())),
    }
}

fn document<T: DeserializeOwned>(path: &Path) -> Result<T, OciError> {
    let read = |source| OciError::Read {
        path: path.to_path_buf(),
        source,
    };
    let mut file = File::open(path).map_err(read)?;
    if file.seek(io::SeekFrom::End(0)).map_err(read)? > DOCUMENT_BYTES_MAX {
        return Err(OciError::TooMuch("a document that is too long"));
    }
    let bytes = fs::read(path).map_err(read)?;
    serde_json::from_slice(&bytes).map_err(|source| OciError::Document {
        path: path.to_path_buf(),
        source,
    })
}

fn config(fields: ConfigurationFields) -> OciConfig {
    let pair = |entry: String| {
        entry
            .split_once('=')
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    OciConfig {
        argv: [fields.entrypoint, fields.cmd]
            .into_iter()
            .flatten()
            .flatten()
            .collect(),
        environment: fields.env.into_iter().flatten().filter_map(pair).collect(),
        directory: fields.working_dir.unwrap_or_default(),
    }
}
