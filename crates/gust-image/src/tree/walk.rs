//! Finding the way through a tree: paths, `..` and symbolic links.

use crate::format::NAME_BYTES_MAX;

use super::{Slot, Tree, TreeError, TreeKind};

/// Symbolic links that are followed within one path (Linux's limit).
const LINKS_FOLLOWED_MAX: usize = 40;

/// Deepest directory.
const DEPTH_MAX: usize = 256;

/// Why a walk ended early.
pub(super) enum WalkError {
    /// This name of the path is missing in this directory.
    Missing(Slot, Vec<u8>),
    /// Something on the way is a file.
    NotADirectory,
    /// A symbolic link's target is missing, or links lead in a circle.
    BrokenLink,
}

impl Tree {
    /// The directory at the end of these names, symbolic links followed.
    pub(super) fn walk(&self, names: &[Vec<u8>]) -> Result<Slot, WalkError> {
        self.walk_from(0, names.to_vec(), &mut false)
    }

    /// Whether the symbolic link at this path leads out of the tree: by an absolute target or a `..` in the root, its
    /// own or that of a link on the way. A link that ends nowhere inside does not.
    pub fn link_leads_out(&self, path: &[u8]) -> bool {
        let Some((parent, _, slot)) = self.find(path) else {
            return false;
        };
        let TreeKind::Symlink(target) = &self.nodes[slot].kind else {
            return false;
        };
        let mut left = target.first() == Some(&b'/');
        // Where it ends, and whether it ends at all, is not asked.
        let _ = self.walk_from(parent, names(target).collect(), &mut left);
        left
    }

    /// Follows names from a directory on. `left` is set when the way leads out of the tree, where it stays in the
    /// root as a changed root's does.
    fn walk_from(&self, start: Slot, mut names: Vec<Vec<u8>>, left: &mut bool) -> Result<Slot, WalkError> {
        names.reverse();
        let mut pending = names;
        let mut at = start;
        let mut followed = 0;
        // How many of the pending names, from the next on, come from links.
        let mut of_links = 0_usize;
        while let Some(name) = pending.pop() {
            let of_link = of_links > 0;
            of_links = of_links.saturating_sub(1);
            let TreeKind::Directory { parent, children } = &self.nodes[at].kind else {
                return Err(WalkError::NotADirectory);
            };
            if name == b".." {
                *left |= at == 0;
                at = *parent;
                continue;
            }
            let child = match (children.get(&name), of_link) {
                (Some(&child), _) => child,
                (None, false) => return Err(WalkError::Missing(at, name)),
                (None, true) => return Err(WalkError::BrokenLink),
            };
            match &self.nodes[child].kind {
                TreeKind::Directory { .. } => at = child,
                TreeKind::File(_) => return Err(WalkError::NotADirectory),
                TreeKind::Symlink(_) if followed == LINKS_FOLLOWED_MAX => return Err(WalkError::BrokenLink),
                TreeKind::Symlink(target) => {
                    followed += 1;
                    if target.first() == Some(&b'/') {
                        *left = true;
                        at = 0;
                    }
                    let before = pending.len();
                    pending.extend(self::names(target).rev());
                    of_links += pending.len() - before;
                }
            }
        }
        Ok(at)
    }
}

/// The names of a path that is to be placed or found, without empty ones and `.`.
pub(super) fn components(path: &[u8]) -> Result<Vec<Vec<u8>>, TreeError> {
    let names: Vec<Vec<u8>> = names(path).collect();
    if names.iter().any(|name| name == b"..") {
        return Err(TreeError::DotDot(printable(path)));
    }
    if names.len() > DEPTH_MAX || names.iter().any(|name| name.len() > NAME_BYTES_MAX) || path.contains(&0) {
        return Err(TreeError::Unrepresentable(printable(path)));
    }
    Ok(names)
}

fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    path.split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(<[u8]>::to_vec)
}

/// A path for an error's text.
pub(super) fn printable(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
