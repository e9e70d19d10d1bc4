//! Layers of a function laid over each other, as AWS Lambda unpacks them into `/opt` in their order: one image of several.
//!
//! A sandbox has one image at `/opt`, so that a name there is found in one place, whatever the number of layers.

use std::{io, path::Path};

use gust_image::{Attributes, ExtractError, Image, ImageFile, NodeIndex, NodeKind, Tree, TreeError};

/// Longest file of a layer: unpacked, function and layers together may have 250 MB.
const FILE_BYTES_MAX: u64 = 512 << 20;

/// Most nodes of all layers together.
const NODES_MAX: usize = 1 << 20;

/// Why layers cannot be laid over each other.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayersError {
    #[error(transparent)]
    Image(#[from] ExtractError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("writing the layers failed")]
    Write(#[from] gust_image::WriteError),
    #[error("setting contents aside failed")]
    Spool(#[source] io::Error),
    #[error("a layer's image is damaged at {0}")]
    Damaged(String),
    #[error("the layers have more than {NODES_MAX} files")]
    TooMany,
}

/// Names what [`merge`] makes of these images, lowest first.
pub(crate) fn merged_checksum(layers: &[[u8; 32]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"gust layers 1");
    for layer in layers {
        hasher.update(layer);
    }
    *hasher.finalize().as_bytes()
}

/// Writes one image of several, lowest first; what two have is the upper's. Contents are set aside in `spool_dir`
/// meanwhile.
pub(crate) fn merge(layers: &[ImageFile], spool_dir: &Path, output: &Path) -> Result<(), LayersError> {
    let mut tree = Tree::new(spool_dir).map_err(LayersError::Spool)?;
    let mut nodes = 0;
    for layer in layers {
        add(&mut tree, layer, &mut nodes)?;
    }
    gust_image::write(&tree, br#"{"kind":"layers"}"#, output)?;
    Ok(())
}

fn add(tree: &mut Tree, layer: &ImageFile, nodes: &mut usize) -> Result<(), LayersError> {
    let image: &Image = layer.tables();
    let mut pending = vec![(image.root(), Vec::new())];
    // Every directory before what is in it, so that nothing is placed through a link of a lower layer.
    while let Some((index, path)) = pending.pop() {
        *nodes += 1;
        if *nodes > NODES_MAX {
            return Err(LayersError::TooMany);
        }
        place(tree, layer, index, &path)?;
        for (name, child) in image.entries(index) {
            let mut below = path.clone();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(name);
            pending.push((child, below));
        }
    }
    Ok(())
}

fn place(tree: &mut Tree, layer: &ImageFile, index: NodeIndex, path: &[u8]) -> Result<(), LayersError> {
    let image = layer.tables();
    let damaged = || LayersError::Damaged(String::from_utf8_lossy(path).into_owned());
    let node = image.node(index).ok_or_else(damaged)?;
    let attributes = Attributes {
        mode: node.mode,
        uid: node.uid,
        gid: node.gid,
        mtime_s: node.mtime_s,
    };
    match node.kind {
        NodeKind::Directory => tree.directory(path, attributes)?,
        NodeKind::Symlink => tree.symlink(path, attributes, image.link(index).ok_or_else(damaged)?)?,
        NodeKind::File => {
            let content = layer.read(index, FILE_BYTES_MAX)?.ok_or_else(damaged)?;
            tree.file(path, attributes, &mut content.as_slice())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    enum Is {
        File(&'static str),
        Link(&'static str),
    }

    fn image(dir: &Path, name: &str, nodes: &[(&str, Is)]) -> ImageFile {
        let mut tree = Tree::new(dir).unwrap();
        for (path, is) in nodes {
            match is {
                Is::File(content) => drop(
                    tree.file(path.as_bytes(), Attributes::root(0o644), &mut content.as_bytes())
                        .unwrap(),
                ),
                Is::Link(target) => tree
                    .symlink(path.as_bytes(), Attributes::root(0o777), target.as_bytes())
                    .unwrap(),
            }
        }
        let path = dir.join(name);
        gust_image::write(&tree, b"", &path).unwrap();
        ImageFile::open(&path).unwrap()
    }

    #[test]
    fn upper_layers_win_whatever_lies_below() {
        let dir = tempfile::tempdir().unwrap();
        let layers = [
            image(
                dir.path(),
                "lower",
                &[
                    ("both", Is::File("lower")),
                    ("only/lower", Is::File("1")),
                    ("link", Is::Link("only")),
                    ("directory/x", Is::File("x")),
                ],
            ),
            image(
                dir.path(),
                "upper",
                &[
                    ("both", Is::File("upper")),
                    ("only/upper", Is::File("2")),
                    // A directory over a link, which must not be followed, and a file over a directory.
                    ("link/inside", Is::File("3")),
                    ("directory", Is::File("file")),
                ],
            ),
        ];
        let output = dir.path().join("merged");
        merge(&layers, dir.path(), &output).unwrap();
        let target: PathBuf = dir.path().join("out");
        ImageFile::open(&output).unwrap().extract(&target).unwrap();
        for (path, content) in [
            ("both", "upper"),
            ("only/lower", "1"),
            ("only/upper", "2"),
            ("link/inside", "3"),
            ("directory", "file"),
        ] {
            assert_eq!(
                std::fs::read_to_string(target.join(path)).unwrap(),
                content,
                "{path}"
            );
        }
        assert!(!target.join("only/inside").exists());
    }

    #[test]
    fn names_depend_on_the_order() {
        let (a, b) = ([1; 32], [2; 32]);
        assert_ne!(merged_checksum(&[a, b]), merged_checksum(&[b, a]));
        assert_ne!(merged_checksum(&[a]), a);
    }
}
