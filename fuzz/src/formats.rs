//! Files that a guest's owner, or a damaged disk, can make anything of: programs and images.

use std::sync::{Arc, LazyLock};

use gust_image::{Image, NodeIndex, NodeKind};
use gust_vmm::Exit;

use crate::{bytes::patch, guest, guest::Guest};

/// Length of the program that is patched: more than a page, so that it lies where it can be mapped.
const PROGRAM_BYTES: usize = 12 << 10;
/// Most nodes and entries that are looked at; a damaged image may promise millions.
const LOOKS_MAX: usize = 2_000;

/// Loads a program of which parts have been overwritten, and touches what was mapped for it.
pub fn elf(data: &[u8]) {
    static TEMPLATE: LazyLock<(Vec<u8>, usize)> = LazyLock::new(template);
    let (template, at) = &*TEMPLATE;
    let mut bytes = template.clone();
    patch(&mut bytes[*at..*at + PROGRAM_BYTES], data);
    let image = Image::open(Arc::new(bytes)).expect("the image around the program is whole");
    let Ok(mut guest) = Guest::boot(image) else { return };
    let areas = guest.kernel.mapped_areas();
    assert!(areas.iter().all(|area| area.range.start < area.range.end));
    for area in areas.iter().take(16) {
        for address in [area.range.start, area.range.end - 1] {
            let exit = Exit::Exception {
                vector: 14,
                error_code: 4,
                address,
            };
            let main = guest.main;
            guest.kernel.on_exit(&mut guest.vm, &mut guest.world, main, exit);
            let _ = guest.turn_of(main);
            let mut byte = [0];
            let _ = guest.vm.space().read(address, &mut byte);
        }
    }
}

/// An image with a program of six program headers, interpreter included, and where the program lies in it.
fn template() -> (Vec<u8>, usize) {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u16 = 6;
    let mut program = guest::program();
    program.resize(PROGRAM_BYTES, 0x90);
    program[56..58].copy_from_slice(&HEADERS.to_le_bytes());
    // Type, flags, offset, address, bytes in the file, bytes in memory.
    let headers: [[u64; 6]; HEADERS as usize] = [
        [1, 5, 0, BASE, 0x1000, 0x1000],
        [1, 6, 0x1000, BASE + 0x1000, 0x1800, 0x3000],
        [3, 4, 0x300, BASE + 0x300, 9, 9],
        [0x6474_e551, 6, 0, 0, 0, 0],
        [7, 4, 0x2000, BASE + 0x2000, 0x10, 0x40],
        [2, 6, 0x2100, BASE + 0x2100, 0x100, 0x100],
    ];
    for (n, [kind, flags, offset, address, in_file, in_memory]) in headers.into_iter().enumerate() {
        let header = &mut program[64 + n * 56..64 + (n + 1) * 56];
        header[..4].copy_from_slice(&(kind as u32).to_le_bytes());
        header[4..8].copy_from_slice(&(flags as u32).to_le_bytes());
        for (field, value) in [
            (8, offset),
            (16, address),
            (24, address),
            (32, in_file),
            (40, in_memory),
            (48, 0x1000),
        ] {
            header[field..field + 8].copy_from_slice(&value.to_le_bytes());
        }
    }
    // What interprets it is itself: then its own headers are read twice, and loaded at another place.
    program[0x300..0x309].copy_from_slice(b"/program\0");
    let (bytes, image) = image_bytes(&program);
    let node = image.find(b"/program").expect("the program is there");
    let range = image.file_range(node).expect("the program is a file");
    (bytes, range.start as usize)
}

/// The tree of the tests' guests, as bytes.
fn image_bytes(program: &[u8]) -> (Vec<u8>, Image) {
    let image = guest::image(program);
    // The image's bytes are its owner's alone; they are put together again from what it says of itself.
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    let mut tree = gust_image::Tree::new(directory.path()).expect("a tree");
    for name in ["dev", "etc", "proc", "tmp"] {
        let made = tree.directory(name.as_bytes(), gust_image::Attributes::root(0o755));
        made.expect("a directory");
    }
    for (name, mode) in [("program", 0o755), ("etc/hostname", 0o644)] {
        let node = image.find(name.as_bytes()).expect("a file of the tests' tree");
        let mut content = image.file(node).expect("its content");
        let added = tree.file(name.as_bytes(), gust_image::Attributes::root(mode), &mut content);
        added.expect("a file");
    }
    tree.symlink(b"etc/link", gust_image::Attributes::root(0o777), b"../program")
        .expect("a link");
    gust_image::write(&tree, b"{\"a\":1}", &path).expect("an image");
    let bytes = std::fs::read(&path).expect("the image's bytes");
    let image = Image::open(Arc::new(bytes.clone())).expect("an image");
    (bytes, image)
}

/// Reads all of an image of which parts have been overwritten.
pub fn image(data: &[u8]) {
    static TEMPLATE: LazyLock<Vec<u8>> = LazyLock::new(|| image_bytes(&guest::program()).0);
    let mut bytes = TEMPLATE.clone();
    patch(&mut bytes, data);
    let _ = gust_image::tables_bytes(&bytes);
    let _ =
        gust_image::tables_bytes(&bytes[..bytes.len().min(usize::from(data.first().copied().unwrap_or(0)))]);
    for image in [
        Image::open(Arc::new(bytes.clone())),
        Image::open_tables(Arc::new(bytes.clone())),
    ] {
        let Ok(image) = image else { continue };
        let _ = (
            image.verify(),
            image.checksum(),
            image.metadata().len(),
            image.file_bytes(),
        );
        let nodes = image.node_count().saturating_add(1).min(LOOKS_MAX as u32);
        for node in (0..nodes).map(NodeIndex) {
            look_at(&image, node, bytes.len());
        }
        let _ = image.find(b"/etc/hostname");
        let _ = image.find(b"/etc/link/../..//x");
    }
}

fn look_at(image: &Image, node: NodeIndex, length: usize) {
    let Some(known) = image.node(node) else { return };
    assert!(known.mode <= 0o7777);
    let _ = (image.parent(node), image.link(node).map(<[u8]>::len));
    if let Some(content) = image.file(node) {
        assert!(content.len() <= length && known.kind == NodeKind::File);
    }
    for (name, entry) in image.entries(node).take(LOOKS_MAX) {
        assert!(entry.0 < image.node_count() && name.len() <= length);
        let _ = image.lookup(node, name);
    }
    let _ = (image.entry(node, u64::MAX), image.entry(node, 1));
}
