//! The files that versions run on: images as they are for micro-VMs, directories made from them for guest processes.
//!
//! A directory is made once for each distinct image, after the image has been compared with its checksum. Those of code
//! and layers are removed with the last version that uses them; runtimes' stay. Several layers are laid over each other
//! once, to an image of their own.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use gust_image::{
    ImageFile,
    runtime::{RuntimeDescription, RuntimeInterface},
};
use gust_worker::protocol::Interface;
use rustix::{
    fs::{Mode, OFlags, open},
    mount::{OpenTreeFlags, open_tree},
};

use crate::{
    api::{Isolation, NodeError, VersionSpec},
    layers::{LayersError, merge, merged_checksum},
    version::{TASK_ROOT, io_error},
};

/// Where layers are seen in a sandbox.
const LAYERS_ROOT: &str = "/opt";

/// Extension of an image that was made of several layers.
const LAYERS_SUFFIX: &str = "layers";

/// Prefix of what an extraction that was cut short has left.
const STAGING_PREFIX: &str = ".extract-";

/// One image, ready to be handed to a worker.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The image file, or the directory made from it.
    pub descriptor: File,
    /// Names the content.
    pub checksum: [u8; 32],
    /// An image of the node's own that goes with this tree.
    made_from: Mutex<Option<PathBuf>>,
}

impl Drop for Tree {
    fn drop(&mut self) {
        let made_from = self.made_from.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = made_from.take() {
            let _ = fs::remove_file(path);
        }
    }
}

/// A tree as a worker gets it.
#[derive(Debug)]
pub(crate) enum Handed<'a> {
    /// The file or directory.
    Itself(BorrowedFd<'a>),
    /// A mount of the directory that is attached nowhere yet: it needs no path that leads to it, and can be attached
    /// once.
    Mount(OwnedFd),
}

impl AsFd for Handed<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Itself(descriptor) => descriptor.as_fd(),
            Self::Mount(descriptor) => descriptor.as_fd(),
        }
    }
}

impl Tree {
    /// The directory of a guest process as a mount where this process may make any; otherwise its worker has to find it by
    /// its path.
    pub(crate) fn handed(&self) -> Handed<'_> {
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        match open_tree(&self.descriptor, "", flags) {
            Ok(mount) => Handed::Mount(mount),
            Err(_) => Handed::Itself(self.descriptor.as_fd()),
        }
    }
}

/// What one version runs on.
#[derive(Debug)]
pub(crate) struct Files {
    pub root: Arc<Tree>,
    pub code: Arc<Tree>,
    /// Of all layers.
    pub layers: Option<Arc<Tree>>,
    pub runtime: RuntimeDescription,
    /// The program to start; Lambda's error document when none of the runtime's exists.
    pub command: Result<Vec<String>, String>,
}

impl Files {
    /// How the runtime's program is spoken to.
    pub(crate) fn interface(&self) -> Interface {
        match self.runtime.interface {
            RuntimeInterface::Device => Interface::Device,
            RuntimeInterface::RuntimeApi => Interface::RuntimeApi,
        }
    }

    /// Names the base snapshot of the runtime.
    pub(crate) fn base_name(&self) -> String {
        let hex: String = self
            .root
            .checksum
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("runtime {hex}")
    }

    /// Checksums of every image, in order: what a snapshot was made from.
    pub(crate) fn checksums(&self) -> Vec<[u8; 32]> {
        let all = [&self.root, &self.code].into_iter().chain(&self.layers);
        all.map(|tree| tree.checksum).collect()
    }
}

/// What an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Runtime,
    Function,
}

/// The files of one node.
#[derive(Debug)]
pub(crate) struct FileStore {
    isolation: Isolation,
    directory: PathBuf,
    /// By checksum; also keeps two from being made at once.
    trees: Mutex<HashMap<[u8; 32], Weak<Tree>>>,
}

impl FileStore {
    /// Files of a node whose own directory is `data_dir`.
    pub(crate) fn new(data_dir: &Path, isolation: Isolation) -> io::Result<Self> {
        let directory = data_dir.join("trees");
        fs::create_dir_all(&directory)?;
        for entry in fs::read_dir(&directory)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(STAGING_PREFIX) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Self {
            isolation,
            directory,
            trees: Mutex::default(),
        })
    }

    /// Opens what a version runs on. Blocks, for long when directories have to be made.
    pub(crate) fn open(&self, spec: &VersionSpec) -> Result<Files, NodeError> {
        let (root, root_image) = self.tree(&spec.root_image, Use::Runtime)?;
        let (code, code_image) = self.tree(&spec.code_image, Use::Function)?;
        let layers = self.layers(&spec.layer_images)?;
        let runtime = RuntimeDescription::of(&root_image).map_err(|error| {
            io_error(
                format!("reading the runtime image {}", spec.root_image.display()),
                io::Error::other(error),
            )
        })?;
        let exists = |path: &str| {
            let within = |prefix: &str| path.strip_prefix(prefix).filter(|rest| rest.starts_with('/'));
            match (within(TASK_ROOT), within(LAYERS_ROOT)) {
                (Some(rest), _) => code_image.tables().find(rest.as_bytes()).is_some(),
                (_, Some(rest)) => layers
                    .as_ref()
                    .is_some_and(|(_, image)| image.tables().find(rest.as_bytes()).is_some()),
                // Of the runtime's own programs, the image's maker has said that they are there; links are not followed
                // here.
                (None, None) => true,
            }
        };
        let found = runtime
            .commands
            .iter()
            .find(|command| command.first().is_some_and(|path| exists(path)));
        let command = found.cloned().ok_or_else(|| no_program(&runtime));
        Ok(Files {
            root,
            code,
            layers: layers.map(|(tree, _)| tree),
            runtime,
            command,
        })
    }

    /// All layers as one tree; `None` when there are none.
    fn layers(&self, images: &[PathBuf]) -> Result<Option<(Arc<Tree>, ImageFile)>, NodeError> {
        let images = match images {
            [] => return Ok(None),
            [only] => return self.tree(only, Use::Function).map(Some),
            several => several,
        };
        let failed = |error: LayersError| io_error("laying layers over each other", io::Error::other(error));
        let opened: Result<Vec<ImageFile>, _> = images.iter().map(|path| ImageFile::open(path)).collect();
        let opened = opened.map_err(|error| failed(error.into()))?;
        let checksums: Vec<[u8; 32]> = opened.iter().map(|image| image.tables().checksum()).collect();
        let merged = self
            .path(&merged_checksum(&checksums), Use::Function)
            .with_extension(LAYERS_SUFFIX);
        if !merged.exists() {
            for image in &opened {
                image.verify().map_err(|error| failed(error.into()))?;
            }
            merge(&opened, &self.directory, &merged).map_err(failed)?;
        }
        match self.tree(&merged, Use::Function) {
            Ok((tree, image)) => {
                // The tree is named by its content; the image goes with it.
                *tree.made_from.lock().unwrap_or_else(PoisonError::into_inner) = Some(merged);
                Ok(Some((tree, image)))
            }
            Err(error) => {
                // The next attempt makes it anew.
                let _ = fs::remove_file(&merged);
                Err(error)
            }
        }
    }

    /// Removes the directories that no version uses any more. Blocks.
    pub(crate) fn prune(&self) {
        let mut trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<[u8; 32]> = trees
            .iter()
            .filter(|(_, tree)| tree.strong_count() == 0)
            .map(|(checksum, _)| *checksum)
            .collect();
        for checksum in gone {
            trees.remove(&checksum);
            let path = self.path(&checksum, Use::Function);
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "a directory that is no longer used stays");
                }
                Ok(()) | Err(_) => {}
            }
        }
    }

    fn tree(&self, image: &Path, purpose: Use) -> Result<(Arc<Tree>, ImageFile), NodeError> {
        let failed = |error: gust_image::ExtractError| {
            io_error(
                format!("opening the image {}", image.display()),
                io::Error::other(error),
            )
        };
        let file = ImageFile::open(image).map_err(failed)?;
        let checksum = file.tables().checksum();
        let mut trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tree) = trees.get(&checksum).and_then(Weak::upgrade) {
            return Ok((tree, file));
        }
        let descriptor = match self.isolation {
            Isolation::Kvm => {
                file.verify().map_err(failed)?;
                File::open(image)
            }
            Isolation::Process => {
                let path = self.path(&checksum, purpose);
                if !path.exists() {
                    file.verify().map_err(failed)?;
                    file.extract(&path).map_err(failed)?;
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                open(&path, flags, Mode::empty())
                    .map(File::from)
                    .map_err(io::Error::from)
            }
        };
        let descriptor =
            descriptor.map_err(|error| io_error(format!("opening the image {}", image.display()), error))?;
        let tree = Arc::new(Tree {
            descriptor,
            checksum,
            made_from: Mutex::default(),
        });
        trees.insert(checksum, Arc::downgrade(&tree));
        Ok((tree, file))
    }

    fn path(&self, checksum: &[u8; 32], purpose: Use) -> PathBuf {
        let hex: String = checksum.iter().map(|byte| format!("{byte:02x}")).collect();
        match purpose {
            Use::Runtime => self.directory.join(format!("runtime-{hex}")),
            Use::Function => self.directory.join(hex),
        }
    }
}

/// Lambda's error document for a runtime none of whose programs exists.
fn no_program(runtime: &RuntimeDescription) -> String {
    let paths: Vec<&str> = runtime
        .commands
        .iter()
        .filter_map(|command| command.first())
        .map(String::as_str)
        .collect();
    let message = format!("Error: Couldn't find valid bootstrap(s): [{}]", paths.join(" "));
    serde_json::json!({ "errorType": "Runtime.InvalidEntrypoint", "errorMessage": message }).to_string()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use gust_image::{Attributes, Tree as ImageTree, write};
    use gust_worker::protocol::MemoryMode;

    use super::*;
    use crate::api::VersionId;

    fn image(dir: &Path, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let mut tree = ImageTree::new(dir).unwrap();
        for (path, content) in files {
            tree.file(path.as_bytes(), Attributes::root(0o644), &mut content.as_bytes())
                .unwrap();
        }
        let path = dir.join(name);
        write(&tree, b"", &path).unwrap();
        path
    }

    const PROVIDED: &str = r#"{"name":"x","interface":"runtime-api","directory":"/",
        "commands":[["/var/task/bootstrap","a"],["/opt/bootstrap"]]}"#;

    fn spec(root: PathBuf, code: PathBuf, layers: Vec<PathBuf>) -> VersionSpec {
        VersionSpec {
            id: VersionId("v".to_owned()),
            root_image: root,
            code_image: code,
            layer_images: layers,
            handler: String::new(),
            environment: BTreeMap::new(),
            memory_mib: 128,
            tmp_mib: 512,
            init_timeout: Duration::from_secs(10),
            memory_mode: MemoryMode::Reuse,
            egress: Arc::default(),
        }
    }

    #[test]
    fn the_first_program_that_exists_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::new(dir.path(), Isolation::Process).unwrap();
        let root = image(dir.path(), "root.img", &[(".gust/runtime.json", PROVIDED)]);
        let with = image(dir.path(), "with.img", &[("bootstrap", "#!")]);
        let without = image(dir.path(), "without.img", &[("other", "")]);
        let command = |code: &PathBuf, layers: &[&PathBuf]| {
            let layers = layers.iter().map(|path| (*path).clone()).collect();
            store
                .open(&spec(root.clone(), code.clone(), layers))
                .unwrap()
                .command
        };
        assert_eq!(command(&with, &[]).unwrap(), ["/var/task/bootstrap", "a"]);
        assert_eq!(command(&without, &[&without, &with]).unwrap(), ["/opt/bootstrap"]);
        let document = command(&without, &[&without]).unwrap_err();
        assert!(document.contains("Runtime.InvalidEntrypoint") && document.contains("/opt/bootstrap]"));
    }

    #[test]
    fn directories_are_made_once_and_removed_with_their_last_user() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("trees/.extract-cut-short")).unwrap();
        let store = FileStore::new(dir.path(), Isolation::Process).unwrap();
        let names = || fs::read_dir(dir.path().join("trees")).unwrap().count();
        assert_eq!(names(), 0);
        let root = image(dir.path(), "root.img", &[(".gust/runtime.json", PROVIDED)]);
        let code = image(dir.path(), "code.img", &[("bootstrap", "#!")]);
        let one = store.open(&spec(root.clone(), code.clone(), Vec::new())).unwrap();
        let two = store.open(&spec(root, code, Vec::new())).unwrap();
        assert!(Arc::ptr_eq(&one.code, &two.code));
        assert_eq!(names(), 2);
        drop(one);
        store.prune();
        assert_eq!(names(), 2);
        drop(two);
        store.prune();
        // The runtime's stays.
        assert_eq!(names(), 1);
    }

    #[test]
    fn damaged_images_are_refused_with_their_name() {
        let dir = tempfile::tempdir().unwrap();
        for isolation in [Isolation::Process, Isolation::Kvm] {
            let store = FileStore::new(dir.path(), isolation).unwrap();
            let root = image(dir.path(), "root.img", &[(".gust/runtime.json", PROVIDED)]);
            let code = image(dir.path(), "code.img", &[("bootstrap", "#!")]);
            let check = |damage: &dyn Fn(&mut Vec<u8>), which: &PathBuf| {
                let whole = fs::read(which).unwrap();
                let mut damaged = whole.clone();
                damage(&mut damaged);
                fs::write(which, &damaged).unwrap();
                let error = store
                    .open(&spec(root.clone(), code.clone(), Vec::new()))
                    .unwrap_err();
                assert!(error.to_string().contains(which.to_str().unwrap()), "{error}");
                fs::write(which, &whole).unwrap();
            };
            check(&|bytes| bytes.truncate(100), &code);
            check(&|bytes| *bytes.last_mut().unwrap() ^= 1, &code);
            check(&|bytes| bytes[0] ^= 1, &root);
            check(&|bytes| bytes.clear(), &root);
            store.open(&spec(root, code, Vec::new())).unwrap();
        }
        let store = FileStore::new(dir.path(), Isolation::Process).unwrap();
        let code = image(dir.path(), "code.img", &[("bootstrap", "#!")]);
        let error = store.open(&spec(code.clone(), code, Vec::new())).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("it is no runtime's"), "{source}");
    }
}
