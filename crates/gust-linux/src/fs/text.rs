//! Texts of synthetic files.

use std::fmt::Write as _;

use rand_chacha::rand_core::RngCore as _;

use crate::{
    fs::{synthetic::Text, vfs::Mount},
    kernel::{Cx, Kernel},
    mm::{Area, Backing, Name},
};

/// Clock ticks a second (`sysconf(_SC_CLK_TCK)`).
const TICK_NS: u64 = 10_000_000;

impl Kernel {
    /// The text of a file, as of now.
    pub(crate) fn text(&mut self, cx: &mut Cx<'_>, text: Text) -> Vec<u8> {
        match text {
            Text::Maps => self.maps_text(false).into_bytes(),
            Text::Smaps => self.maps_text(true).into_bytes(),
            Text::Cgroup => b"0::/\n".to_vec(),
            Text::Stat => self.stat_text(cx).into_bytes(),
            Text::Statm => {
                let (mapped, resident) = (self.mm.mapped_bytes / 4096, cx.vm.space().backed_bytes() / 4096);
                format!("{mapped} {resident} 0 1 0 {resident} 0\n").into_bytes()
            }
            Text::Status => self.status_text(cx).into_bytes(),
            Text::CommandLine => self.guest_strings(cx, self.mm.arguments),
            Text::Environment => self.guest_strings(cx, self.mm.environment),
            Text::Auxv => self.process.auxv.clone(),
            Text::Comm => [self.comm(cx.slot), b"\n".to_vec()].concat(),
            Text::Limits => LIMITS.as_bytes().to_vec(),
            Text::Mounts => self.mounts_text().into_bytes(),
            Text::MountInfo => self.mount_info_text().into_bytes(),
            Text::IdMap => b"         0          0 4294967295\n".to_vec(),
            Text::OomScoreAdj => b"0\n".to_vec(),
            Text::Io => b"rchar: 0\nwchar: 0\nsyscr: 0\nsyscw: 0\nread_bytes: 0\nwrite_bytes: 0\ncancelled_write_bytes: 0\n".to_vec(),
            Text::MemInfo => self.meminfo_text(cx).into_bytes(),
            Text::CpuInfo => self.cpuinfo_text().into_bytes(),
            Text::SystemStat => self.system_stat_text(cx).into_bytes(),
            Text::Uptime => {
                let hundredths = self.clock.monotonic_ns(cx.host) / TICK_NS;
                let seconds = format!("{}.{:02}", hundredths / 100, hundredths % 100);
                format!("{seconds} {seconds}\n").into_bytes()
            }
            Text::LoadAverage => format!("0.00 0.00 0.00 1/{} {}\n", self.threads.len(), self.process.pid).into_bytes(),
            Text::Version => b"Linux version 6.1.0-gust (gust) #1 SMP\n".to_vec(),
            Text::FileSystems => b"nodev\ttmpfs\nnodev\tproc\nnodev\tsysfs\n\terofs\n".to_vec(),
            Text::Uuid => format!("{}\n", self.random_uuid()).into_bytes(),
            Text::BootId => format!("{}\n", self.random_uuid()).into_bytes(),
            Text::CpuList => match self.process.cpus {
                0 | 1 => b"0\n".to_vec(),
                cpus => format!("0-{}\n", cpus - 1).into_bytes(),
            },
            Text::MemoryMax => format!("{}\n", self.mm.limit_bytes).into_bytes(),
            Text::MemoryCurrent => format!("{}\n", cx.vm.space().backed_bytes()).into_bytes(),
            Text::CpuMax => format!("{} 100000\n", u64::from(self.process.cpus) * 100_000).into_bytes(),
            Text::Igmp => self.igmp_text().into_bytes(),
            Text::Empty => Vec::new(),
            Text::Fixed(text) => text.as_bytes().to_vec(),
        }
    }

    fn random_uuid(&mut self) -> String {
        let mut raw = [0u8; 16];
        self.random.fill_bytes(&mut raw);
        raw[6] = raw[6] & 0x0f | 0x40;
        raw[8] = raw[8] & 0x3f | 0x80;
        let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
        format!(
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        )
    }

    /// `/proc/self/fdinfo/N`: position, flags and mount of an open file.
    pub(crate) fn descriptor_text(&self, fd: u32) -> Option<String> {
        let file = self.files.get(u64::from(fd))?;
        let on_exec = self.files.close_on_exec(u64::from(fd)).unwrap_or(false);
        let flags = file.flags | if on_exec { libc::O_CLOEXEC } else { 0 };
        let inode = self
            .file_attributes(u64::from(fd))
            .map_or(0, |attributes| attributes.inode);
        Some(format!(
            "pos:\t{}\nflags:\t0{flags:o}\nmnt_id:\t15\nino:\t{inode}\n",
            file.offset
        ))
    }

    /// Name of a thread, as `PR_SET_NAME` or the program gave it.
    pub(crate) fn comm(&self, slot: usize) -> Vec<u8> {
        let name = &self.thread(slot).name;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        name[..end].to_vec()
    }

    fn guest_strings(&self, cx: &Cx<'_>, (start, end): (u64, u64)) -> Vec<u8> {
        /// Linux shows at most this much of the environment, too.
        const BYTES_MAX: u64 = 1 << 20;
        let mut strings = vec![0; end.saturating_sub(start).min(BYTES_MAX) as usize];
        if cx.vm.space().read(start, &mut strings).is_err() {
            strings.clear();
        }
        strings
    }

    fn area_name(&self, area: &Area) -> String {
        let file = match area.backing {
            Backing::Anonymous => None,
            Backing::Private { file, .. } | Backing::Shared { file, .. } => Some(file),
        };
        if let Some(file) = file {
            let name = self.mm.file_names.get(&file);
            return name.map_or_else(String::new, |name| String::from_utf8_lossy(name).into_owned());
        }
        match area.name {
            Name::None => "",
            Name::Heap => "[heap]",
            Name::Stack => "[stack]",
            Name::Vdso => "[vdso]",
            Name::Vvar => "[vvar]",
        }
        .to_owned()
    }

    fn maps_text(&self, detailed: bool) -> String {
        let mut out = String::new();
        for (start, area) in self.mm.iter() {
            let right = |granted: bool, letter: char| if granted { letter } else { '-' };
            let (offset, device, inode) = match area.backing {
                Backing::Anonymous => (0, 0, 0),
                Backing::Private { file, offset } | Backing::Shared { file, offset } => {
                    let (device, inode) = self
                        .vfs
                        .attributes(file)
                        .map_or((0, 0), |attributes| (attributes.device, attributes.inode));
                    (offset, device, inode)
                }
            };
            let mut line = format!(
                "{start:08x}-{:08x} {}{}{}{} {offset:08x} 00:{device:02x} {inode}",
                area.end,
                right(area.prot.readable(), 'r'),
                right(area.prot.writable(), 'w'),
                right(area.prot.executable(), 'x'),
                if area.shared { 's' } else { 'p' },
            );
            let name = self.area_name(area);
            if !name.is_empty() {
                let column = line.len().max(72);
                let _ = write!(line, "{:pad$} {name}", "", pad = column - line.len());
            }
            out.push_str(&line);
            out.push('\n');
            if detailed {
                let kib = (area.end - start) / 1024;
                let _ = writeln!(
                    out,
                    "Size:           {kib:8} kB\nKernelPageSize:        4 kB\nMMUPageSize:           4 kB\nRss:            {kib:8} kB\nPss:            {kib:8} kB\nAnonymous:      {kib:8} kB\nVmFlags: rd"
                );
            }
        }
        out
    }

    fn stat_text(&self, cx: &mut Cx<'_>) -> String {
        let thread = self.thread(cx.slot);
        let comm = String::from_utf8_lossy(&self.comm(cx.slot)).into_owned();
        let ticks = self.cpu_ns() / TICK_NS;
        let (pid, threads, size) = (self.process.pid, self.threads.len(), self.mm.mapped_bytes);
        let pages = cx.vm.space().backed_bytes() / 4096;
        let started = self.process.started_ns / TICK_NS;
        let (stack, heap) = (thread.registers.rsp, self.mm.brk_start);
        format!(
            "{pid} ({comm}) R 1 {pid} {pid} 0 -1 4194304 0 0 0 0 {ticks} 0 0 0 20 0 {threads} 0 {started} {size} {pages} \
             18446744073709551615 0 0 {stack} {stack} 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 {heap} 0 0 0 0 0\n"
        )
    }

    fn status_text(&self, cx: &mut Cx<'_>) -> String {
        let comm = String::from_utf8_lossy(&self.comm(cx.slot)).into_owned();
        let (pid, uid, gid) = (self.process.pid, self.process.uid, self.process.gid);
        let (size, resident) = (self.mm.mapped_bytes / 1024, cx.vm.space().backed_bytes() / 1024);
        let thread = self.thread(cx.slot);
        format!(
            "Name:\t{comm}\nUmask:\t{:04o}\nState:\tR (running)\nTgid:\t{pid}\nNgid:\t0\nPid:\t{}\nPPid:\t1\nTracerPid:\t0\n\
             Uid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{gid}\t{gid}\t{gid}\t{gid}\nFDSize:\t1024\nGroups:\t\nVmPeak:\t{size:8} kB\n\
             VmSize:\t{size:8} kB\nVmLck:\t       0 kB\nVmHWM:\t{resident:8} kB\nVmRSS:\t{resident:8} kB\nVmData:\t{size:8} kB\n\
             VmStk:\t    8192 kB\nVmSwap:\t       0 kB\nThreads:\t{}\nSigQ:\t0/1024\nSigPnd:\t{:016x}\nShdPnd:\t{:016x}\nSigBlk:\t{:016x}\n\
             CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t{}\n\
             Seccomp:\t0\nCpus_allowed:\t{:x}\nCpus_allowed_list:\t0-{}\nMems_allowed_list:\t0\nvoluntary_ctxt_switches:\t0\nnonvoluntary_ctxt_switches:\t0\n",
            self.process.umask,
            thread.tid,
            self.threads.len(),
            thread.pending.mask(),
            self.signals.pending.mask(),
            thread.mask,
            u8::from(self.process.no_new_privileges),
            (1u64 << self.process.cpus) - 1,
            self.process.cpus.saturating_sub(1),
        )
    }

    fn mounts_text(&self) -> String {
        let mut out = String::from("gust / erofs ro,relatime 0 0\n");
        for Mount { path, kind, .. } in &self.vfs.mounts {
            let access = if kind == "erofs" { "ro" } else { "rw" };
            let _ = writeln!(out, "{kind} {path} {kind} {access},relatime 0 0");
        }
        out
    }

    fn mount_info_text(&self) -> String {
        let mut out = String::from("1 0 0:16 / / ro,relatime - erofs gust ro\n");
        for (n, Mount { path, kind, .. }) in self.vfs.mounts.iter().enumerate() {
            let access = if kind == "erofs" { "ro" } else { "rw" };
            let _ = writeln!(
                out,
                "{} 1 0:{} / {path} {access},relatime - {kind} {kind} {access}",
                n + 2,
                n + 17
            );
        }
        out
    }

    fn meminfo_text(&self, cx: &mut Cx<'_>) -> String {
        let total = self.mm.limit_bytes / 1024;
        let used = (cx.vm.space().backed_bytes() + self.vfs.memory_bytes()) / 1024;
        let free = total.saturating_sub(used);
        format!(
            "MemTotal:       {total:8} kB\nMemFree:        {free:8} kB\nMemAvailable:   {free:8} kB\nBuffers:               0 kB\n\
             Cached:                0 kB\nSwapCached:            0 kB\nActive:         {used:8} kB\nInactive:              0 kB\n\
             SwapTotal:             0 kB\nSwapFree:              0 kB\nShmem:                 0 kB\nCommitLimit:    {total:8} kB\n\
             Committed_AS:   {used:8} kB\nHugePages_Total:       0\nHugePages_Free:        0\nHugepagesize:       2048 kB\n"
        )
    }

    fn cpuinfo_text(&self) -> String {
        (0..self.process.cpus.max(1)).fold(String::new(), |mut out, cpu| {
            let _ = write!(
                out,
                "processor\t: {cpu}\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel name\t: virtual processor\n\
                 physical id\t: 0\nsiblings\t: {0}\ncore id\t\t: {cpu}\ncpu cores\t: {0}\nfpu\t\t: yes\n\
                 flags\t\t: fpu tsc cx8 cmov mmx fxsr sse sse2 syscall nx rdtscp lm constant_tsc pni ssse3 cx16 sse4_1 sse4_2 popcnt\n\n",
                self.process.cpus.max(1)
            );
            out
        })
    }

    fn system_stat_text(&self, cx: &mut Cx<'_>) -> String {
        let ticks = self.cpu_ns() / TICK_NS;
        let up = self.clock.monotonic_ns(cx.host) / TICK_NS;
        let boot_s = (self.clock.realtime_ns(cx.host) - self.clock.monotonic_ns(cx.host)) / 1_000_000_000;
        let idle = up.saturating_sub(ticks);
        let mut out = format!("cpu  {ticks} 0 0 {idle} 0 0 0 0 0 0\n");
        for cpu in 0..self.process.cpus.max(1) {
            let _ = writeln!(out, "cpu{cpu} {ticks} 0 0 {idle} 0 0 0 0 0 0");
        }
        let _ = writeln!(
            out,
            "intr 0\nctxt 0\nbtime {boot_s}\nprocesses 1\nprocs_running 1\nprocs_blocked 0"
        );
        out
    }

    /// Time that all threads have spent in the guest, in nanoseconds.
    pub(crate) fn cpu_ns(&self) -> u64 {
        self.threads.iter().map(|(_, thread)| thread.cpu_ns).sum()
    }
}

const LIMITS: &str = "\
Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              unlimited            unlimited            seconds   
Max file size             unlimited            unlimited            bytes     
Max data size             unlimited            unlimited            bytes     
Max stack size            8388608              unlimited            bytes     
Max core file size        0                    0                    bytes     
Max resident set          unlimited            unlimited            bytes     
Max processes             1024                 1024                 processes 
Max open files            1024                 1024                 files     
Max locked memory         65536                65536                bytes     
Max address space         unlimited            unlimited            bytes     
Max file locks            unlimited            unlimited            locks     
Max pending signals       1024                 1024                 signals   
Max msgqueue size         819200               819200               bytes     
Max nice priority         0                    0                    
Max realtime priority     0                    0                    
Max realtime timeout      unlimited            unlimited            us        
";
