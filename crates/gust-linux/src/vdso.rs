//! The vDSO: an ELF shared object in the guest's memory whose functions read the clocks without leaving the guest.
//!
//! It is made here, since it has a handful of symbols and one page. Programs look its functions up by name and the
//! version `LINUX_2.6`, so there is a hash table and a version definition.

use gust_vmm::{
    CLOCK_CODE_OFFSET, CLOCK_MONOTONIC, CLOCK_MULTIPLIER, CLOCK_REALTIME, CLOCK_SEQUENCE, CLOCK_TSC,
    PageRange, Prot, clock_code,
};

use crate::{
    abi::{PAGE, Writer},
    errno::{ENOMEM, Errno},
    kernel::{Cx, Kernel},
    mm::{Name, NewArea},
};

const SONAME: &str = "linux-vdso.so.1";
const VERSION: &str = "LINUX_2.6";
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const SYMBOL_BYTES: usize = 24;

/// The functions and their offsets in the page.
fn functions() -> Vec<(&'static str, u64)> {
    let code = clock_code();
    [
        ("__vdso_clock_gettime", code.clock_gettime),
        ("__vdso_gettimeofday", code.gettimeofday),
        ("__vdso_time", code.time),
        ("__vdso_clock_getres", code.clock_getres),
        ("__vdso_getcpu", code.getcpu),
    ]
    .map(|(name, offset)| (name, CLOCK_CODE_OFFSET + offset))
    .to_vec()
}

/// The SysV hash of a symbol name (System V ABI, "Hash Table").
fn sysv_hash(name: &str) -> u32 {
    name.bytes().fold(0u32, |hash, byte| {
        let hash = (hash << 4).wrapping_add(u32::from(byte));
        let high = hash & 0xf000_0000;
        (hash ^ (high >> 24)) & !high
    })
}

/// Names, each once, and where they are.
struct Strings(Vec<u8>);

impl Strings {
    fn add(&mut self, name: &str) -> u32 {
        let at = self.0.len() as u32;
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        at
    }
}

/// The page: headers and tables, then the code at [`CLOCK_CODE_OFFSET`].
pub(crate) fn image() -> Vec<u8> {
    const TABLES_AT: usize = HEADER_BYTES + 2 * PROGRAM_HEADER_BYTES;
    let functions = functions();
    let mut strings = Strings(vec![0]);
    let soname = strings.add(SONAME);
    let version = strings.add(VERSION);
    let names: Vec<u32> = functions.iter().map(|(name, _)| strings.add(name)).collect();
    let symbols = symbols(&functions, &names);
    let hash = hash_table(&functions);
    // The first symbol has no version, the others the second definition: the first defines the file itself.
    let versions: Vec<u8> = std::iter::once(0u16)
        .chain(functions.iter().map(|_| 2))
        .flat_map(u16::to_le_bytes)
        .collect();
    let definitions = definitions(soname, version);
    let mut page = Vec::with_capacity(PAGE as usize);
    page.resize(TABLES_AT, 0);
    let place = |page: &mut Vec<u8>, table: &[u8]| {
        page.resize(page.len().next_multiple_of(8), 0);
        let at = page.len() as u64;
        page.extend_from_slice(table);
        at
    };
    let symbols_at = place(&mut page, &symbols);
    let strings_at = place(&mut page, &strings.0);
    let hash_at = place(&mut page, &hash);
    let versions_at = place(&mut page, &versions);
    let definitions_at = place(&mut page, &definitions);
    let dynamic = [
        (4, hash_at),
        (5, strings_at),
        (6, symbols_at),
        (10, strings.0.len() as u64),
        (11, SYMBOL_BYTES as u64),
        (14, u64::from(soname)),
        (0x6fff_fff0, versions_at),
        (0x6fff_fffc, definitions_at),
        (0x6fff_fffd, 2),
        (0, 0u64),
    ]
    .iter()
    .fold(Writer::default(), |out, (tag, value)| out.u64(*tag).u64(*value))
    .done();
    let dynamic_at = place(&mut page, &dynamic);
    debug_assert!(page.len() as u64 <= CLOCK_CODE_OFFSET);
    page[..TABLES_AT].copy_from_slice(&headers(dynamic_at, dynamic.len() as u64));
    page.resize(CLOCK_CODE_OFFSET as usize, 0);
    page.extend_from_slice(clock_code().bytes);
    page
}

fn symbols(functions: &[(&str, u64)], names: &[u32]) -> Vec<u8> {
    /// A function, visible everywhere; defined in some section.
    const GLOBAL_FUNCTION: u8 = 0x12;
    const SECTION: u16 = 1;
    const SIZE: u64 = 16;
    let empty = Writer::default().pad_to(SYMBOL_BYTES);
    functions
        .iter()
        .zip(names)
        .fold(empty, |out, ((_, value), name)| {
            out.u32(*name)
                .u8(GLOBAL_FUNCTION)
                .u8(0)
                .u16(SECTION)
                .u64(*value)
                .u64(SIZE)
        })
        .done()
}

/// One bucket: the chain runs through every symbol.
fn hash_table(functions: &[(&str, u64)]) -> Vec<u8> {
    let symbols = functions.len() as u32 + 1;
    debug_assert!(functions.iter().all(|(name, _)| sysv_hash(name) != 0));
    let out = Writer::default().u32(1).u32(symbols).u32(1).u32(0);
    (1..symbols)
        .fold(out, |out, symbol| {
            out.u32(if symbol + 1 < symbols { symbol + 1 } else { 0 })
        })
        .done()
}

fn definitions(soname: u32, version: u32) -> Vec<u8> {
    const DEFINITION_BYTES: u32 = 20;
    const AUXILIARY_BYTES: u32 = 8;
    const BASE: u16 = 1;
    let entry = |out: Writer, flags: u16, index: u16, name: &str, at: u32, next: u32| {
        out.u16(1)
            .u16(flags)
            .u16(index)
            .u16(1)
            .u32(sysv_hash(name))
            .u32(DEFINITION_BYTES)
            .u32(next)
            .u32(at)
            .u32(0)
    };
    let out = entry(
        Writer::default(),
        BASE,
        1,
        SONAME,
        soname,
        DEFINITION_BYTES + AUXILIARY_BYTES,
    );
    entry(out, 0, 2, VERSION, version, 0).done()
}

fn headers(dynamic_at: u64, dynamic_bytes: u64) -> Vec<u8> {
    const SHARED_OBJECT: u16 = 3;
    const X86_64: u16 = 62;
    const READ_EXECUTE: u32 = 5;
    const READ: u32 = 4;
    let program = |out: Writer, kind: u32, flags: u32, at: u64, bytes: u64, align: u64| {
        out.u32(kind)
            .u32(flags)
            .u64(at)
            .u64(at)
            .u64(at)
            .u64(bytes)
            .u64(bytes)
            .u64(align)
    };
    let out = Writer::default()
        .bytes(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0])
        .u64(0)
        .u16(SHARED_OBJECT)
        .u16(X86_64)
        .u32(1)
        .u64(0)
        .u64(HEADER_BYTES as u64)
        .u64(0)
        .u32(0)
        .u16(HEADER_BYTES as u16)
        .u16(PROGRAM_HEADER_BYTES as u16)
        .u16(2)
        .u16(64)
        .u16(0)
        .u16(0);
    let out = program(out, 1, READ_EXECUTE, 0, PAGE, PAGE);
    program(out, 2, READ, dynamic_at, dynamic_bytes, 8).done()
}

impl Kernel {
    /// Maps the clock page and the vDSO behind it; gives the vDSO's address.
    pub(crate) fn map_vdso(&mut self, cx: &mut Cx<'_>) -> Result<u64, Errno> {
        let start = self.mm.find_room(2 * PAGE, false).ok_or(ENOMEM)?;
        let data = PageRange::new(start, start + PAGE);
        let text = PageRange::new(start + PAGE, start + 2 * PAGE);
        self.mm.add(
            cx.vm,
            data,
            NewArea {
                name: Name::Vvar,
                ..NewArea::anonymous(Prot::READ)
            },
        )?;
        self.mm.add(
            cx.vm,
            text,
            NewArea {
                name: Name::Vdso,
                ..NewArea::anonymous(Prot::READ_EXECUTE)
            },
        )?;
        cx.vm
            .space_mut()
            .write_backed(text.start, &image())
            .map_err(|_| ENOMEM)?;
        self.clock.page = start;
        self.write_clock_page(cx);
        Ok(text.start)
    }

    /// Tells the guest the time: after the clocks have moved, and now and then, so that drift between the counter and
    /// the host's clock stays small.
    pub(crate) fn write_clock_page(&mut self, cx: &mut Cx<'_>) {
        let page = self.clock.page;
        if page == 0 {
            return;
        }
        // A detached machine has no counter of its own to tell; its tests read clocks by system calls.
        let khz = cx.vm.tsc_khz().unwrap_or(1_000_000).max(1);
        let multiplier = (1_000_000u128 << 32) / u128::from(khz);
        let monotonic = self.clock.monotonic_ns(cx.host);
        let (tsc, realtime) = (cx.vm.tsc(), self.clock.realtime_ns(cx.host));
        let mut sequence = [0; 8];
        let _ = cx.vm.space().read(page + CLOCK_SEQUENCE, &mut sequence);
        let sequence = u64::from_le_bytes(sequence) & !1;
        let fields = [
            (CLOCK_SEQUENCE, sequence + 1),
            (CLOCK_TSC, tsc),
            (CLOCK_MULTIPLIER, multiplier as u64),
            (CLOCK_MONOTONIC, monotonic),
            (CLOCK_REALTIME, realtime),
            (CLOCK_SEQUENCE, sequence + 2),
        ];
        for (offset, value) in fields {
            // A guest that has unmapped the page reads its clocks by system calls.
            let _ = cx
                .vm
                .space_mut()
                .write_backed(page + offset, &value.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{u16_at, u32_at, u64_at};

    #[test]
    fn the_hash_is_the_abis() {
        assert_eq!(sysv_hash("LINUX_2.6"), 0x03ae_75f6);
    }

    #[test]
    fn every_function_is_found_by_name_as_a_loader_does() {
        let page = image();
        assert_eq!(u16_at(&page, 16), 3);
        let dynamic_at = u64_at(&page, HEADER_BYTES + PROGRAM_HEADER_BYTES + 16) as usize;
        let entry = |tag: u64| {
            (0..)
                .map(|n| dynamic_at + n * 16)
                .find(|at| u64_at(&page, *at) == tag)
                .map(|at| u64_at(&page, at + 8))
        };
        let (hash, strings, symbols) = (entry(4).unwrap(), entry(5).unwrap(), entry(6).unwrap());
        for (name, value) in functions() {
            let mut symbol = u32_at(&page, hash as usize + 8);
            let found = loop {
                assert_ne!(symbol, 0, "{name} is not in the table");
                let at = symbols as usize + symbol as usize * SYMBOL_BYTES;
                let name_at = strings as usize + u32_at(&page, at) as usize;
                if page[name_at..].starts_with(name.as_bytes()) {
                    break u64_at(&page, at + 8);
                }
                symbol = u32_at(&page, hash as usize + 12 + symbol as usize * 4);
            };
            assert_eq!(found, value, "{name}");
        }
    }
}
