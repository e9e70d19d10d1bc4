//! Loading ELF programs.

use gust_vmm::{CHUNK_BYTES, PAGE_BYTES, PageRange, Prot, USER_END, USER_START};

use crate::{
    abi::{PAGE, page_down, page_up, u16_at, u32_at, u64_at},
    errno::{EACCES, EINVAL, ENOEXEC, ENOMEM, Errno},
    fs::Vnode,
    kernel::{Cx, Kernel},
    mm::{Access, Backing, Name, NewArea},
};

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// Most program headers.
const PROGRAM_HEADERS_MAX: usize = 128;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_GNU_STACK: u32 = 0x6474_e551;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;

/// Where position-independent programs are loaded: a chunk of its own, so that a snapshot's read-only chunks stay
/// whole.
const PROGRAM_BASE: u64 = 0x5555_5540_0000;

#[derive(Debug, Clone, Copy)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

impl Segment {
    fn prot(&self) -> Prot {
        let bit = |from: u32, to: u8| if self.flags & from != 0 { to } else { 0 };
        Prot::from_bits(bit(4, 1) | bit(2, 2) | bit(1, 4))
    }
}

/// A parsed file.
#[derive(Debug)]
struct Elf {
    fixed: bool,
    entry: u64,
    headers_offset: u64,
    header_count: u16,
    segments: Vec<Segment>,
}

/// A loaded file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loaded {
    /// Address of the first instruction.
    pub(crate) entry: u64,
    /// What was added to the file's addresses.
    pub(crate) base: u64,
    /// Address of the program headers, and their number.
    pub(crate) headers: u64,
    pub(crate) header_count: u64,
    /// First byte past the highest segment.
    pub(crate) end: u64,
}

fn parse(header: &[u8], table: &[u8]) -> Result<Elf, Errno> {
    let kind = u16_at(header, 16);
    if kind != ET_EXEC && kind != ET_DYN {
        return Err(ENOEXEC);
    }
    let segments = table
        .chunks_exact(PROGRAM_HEADER_BYTES)
        .map(|raw| Segment {
            kind: u32_at(raw, 0),
            flags: u32_at(raw, 4),
            offset: u64_at(raw, 8),
            address: u64_at(raw, 16),
            file_bytes: u64_at(raw, 32),
            memory_bytes: u64_at(raw, 40),
        })
        .collect();
    Ok(Elf {
        fixed: kind == ET_EXEC,
        entry: u64_at(header, 24),
        headers_offset: u64_at(header, 32),
        header_count: u16_at(header, 56),
        segments,
    })
}

impl Elf {
    fn loads(&self) -> impl Iterator<Item = &Segment> {
        self.segments
            .iter()
            .filter(|segment| segment.kind == PT_LOAD && segment.memory_bytes > 0)
    }

    /// First and last page address of all segments, checked.
    fn extent(&self) -> Result<(u64, u64), Errno> {
        let mut low = u64::MAX;
        let mut high = 0;
        for segment in self.loads() {
            if segment.file_bytes > segment.memory_bytes || segment.offset % PAGE != segment.address % PAGE {
                return Err(ENOEXEC);
            }
            let end = segment
                .address
                .checked_add(segment.memory_bytes)
                .and_then(page_up)
                .ok_or(ENOEXEC)?;
            segment.offset.checked_add(segment.file_bytes).ok_or(ENOEXEC)?;
            low = low.min(page_down(segment.address));
            high = high.max(end);
        }
        if low >= high || high - low > USER_END {
            Err(ENOEXEC)
        } else {
            Ok((low, high))
        }
    }
}

impl Kernel {
    fn read_elf(&self, file: Vnode) -> Result<Elf, Errno> {
        let mut header = [0; HEADER_BYTES];
        let read = self.vfs.read_any(file, 0, &mut header);
        let right = read == HEADER_BYTES
            && header[..5] == [0x7f, b'E', b'L', b'F', 2]
            && header[5] == 1
            && u16_at(&header, 18) == EM_X86_64
            && usize::from(u16_at(&header, 54)) == PROGRAM_HEADER_BYTES;
        let count = usize::from(u16_at(&header, 56));
        if !right || count == 0 || count > PROGRAM_HEADERS_MAX {
            return Err(ENOEXEC);
        }
        let mut table = vec![0; count * PROGRAM_HEADER_BYTES];
        if self.vfs.read_any(file, u64_at(&header, 32), &mut table) != table.len() {
            return Err(ENOEXEC);
        }
        parse(&header, &table)
    }

    /// Whether a file is a program that can be loaded, as far as it says itself, and that may be run.
    pub(crate) fn check_elf(&self, file: Vnode) -> Result<(), Errno> {
        self.check_access(file, libc::X_OK)?;
        self.read_elf(file)?.extent().map(drop)
    }

    /// Path of the interpreter that a program asks for.
    pub(crate) fn elf_interpreter(&self, file: Vnode) -> Result<Option<Vec<u8>>, Errno> {
        const PATH_BYTES_MAX: u64 = 4096;
        let elf = self.read_elf(file)?;
        let Some(segment) = elf.segments.iter().find(|segment| segment.kind == PT_INTERP) else {
            return Ok(None);
        };
        if segment.file_bytes < 2 || segment.file_bytes > PATH_BYTES_MAX {
            return Err(ENOEXEC);
        }
        let mut path = vec![0; segment.file_bytes as usize];
        if self.vfs.read_any(file, segment.offset, &mut path) != path.len() || path.pop() != Some(0) {
            return Err(ENOEXEC);
        }
        Ok(Some(path))
    }

    /// Whether a program asks for a stack that code can run from.
    pub(crate) fn elf_executable_stack(&self, file: Vnode) -> Result<bool, Errno> {
        let elf = self.read_elf(file)?;
        let stack = elf.segments.iter().find(|segment| segment.kind == PT_GNU_STACK);
        Ok(stack.is_some_and(|segment| segment.flags & 1 != 0))
    }

    /// Maps a program or an interpreter.
    pub(crate) fn load_elf(
        &mut self,
        cx: &mut Cx<'_>,
        file: Vnode,
        interpreter: bool,
    ) -> Result<Loaded, Errno> {
        self.check_access(file, libc::X_OK).map_err(|_| EACCES)?;
        let elf = self.read_elf(file)?;
        let (low, high) = elf.extent()?;
        let base = if elf.fixed {
            0
        } else if interpreter {
            self.mm
                .find_room((high - low).next_multiple_of(CHUNK_BYTES), false)
                .ok_or(ENOMEM)?
                & !(CHUNK_BYTES - 1)
        } else {
            PROGRAM_BASE
        }
        .wrapping_sub(if elf.fixed { 0 } else { low });
        let start = base.wrapping_add(low);
        let end = base.checked_add(high).ok_or(ENOEXEC)?;
        if start < USER_START || end > USER_END || !self.mm.is_free(PageRange::new(start, end)) {
            return Err(ENOMEM);
        }
        let segments: Vec<Segment> = elf.loads().copied().collect();
        for segment in &segments {
            self.map_segment(cx, file, base, segment)?;
        }
        let headers = segments
            .iter()
            .find(|segment| {
                (segment.offset..segment.offset + segment.file_bytes).contains(&elf.headers_offset)
            })
            .map_or(0, |segment| {
                base.wrapping_add(segment.address + (elf.headers_offset - segment.offset))
            });
        Ok(Loaded {
            entry: base.wrapping_add(elf.entry),
            base,
            headers,
            header_count: u64::from(elf.header_count),
            end,
        })
    }

    fn map_segment(
        &mut self,
        cx: &mut Cx<'_>,
        file: Vnode,
        base: u64,
        segment: &Segment,
    ) -> Result<(), Errno> {
        let address = base.wrapping_add(segment.address);
        let start = page_down(address);
        let file_end = address.checked_add(segment.file_bytes).ok_or(EINVAL)?;
        let memory_end = page_up(address + segment.memory_bytes).ok_or(EINVAL)?;
        let mapped_end = if segment.file_bytes == 0 {
            start
        } else {
            page_up(file_end).ok_or(EINVAL)?
        };
        let prot = segment.prot();
        if mapped_end > start {
            let backing = Backing::Private {
                file,
                offset: page_down(segment.offset),
            };
            let area = NewArea {
                prot,
                backing,
                name: Name::None,
                shared: false,
            };
            self.replace(cx, PageRange::new(start, mapped_end), area)?;
            if file_end < mapped_end && segment.memory_bytes > segment.file_bytes {
                self.zero_tail(cx, file_end, mapped_end, prot)?;
            }
        }
        if memory_end > mapped_end {
            self.replace(
                cx,
                PageRange::new(mapped_end, memory_end),
                NewArea::anonymous(prot),
            )?;
        }
        Ok(())
    }

    /// Segments of one file can share a page: the later one has it.
    fn replace(&mut self, cx: &mut Cx<'_>, range: PageRange, area: NewArea) -> Result<(), Errno> {
        if !self.mm.is_free(range) {
            self.unmap(cx, range);
        }
        self.mm.add(cx.vm, range, area)?;
        self.hold_mapped(area.backing);
        Ok(())
    }

    /// What follows a segment's file contents in their last page is zero.
    fn zero_tail(&mut self, cx: &mut Cx<'_>, from: u64, to: u64, prot: Prot) -> Result<(), Errno> {
        let access = if prot.writable() {
            Access::Write
        } else {
            Access::Read
        };
        self.fault_in(cx, page_down(from), access)?;
        let zeros = [0; PAGE_BYTES as usize];
        cx.vm
            .space_mut()
            .write_backed(from, &zeros[..(to - from) as usize])
            .map_err(|_| ENOMEM)
    }
}
