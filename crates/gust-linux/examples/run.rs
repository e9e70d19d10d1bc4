//! Runs a program from an image in a sandbox: `run IMAGE PROGRAM [ARGUMENT ...]`. `GUST_LOG=trace` shows system calls,
//! `GUEST_USER` is the user's number, `GUEST_DIRECTORY` where the program starts, `GUEST_CPUS` how many CPUs the guest sees.

use std::{
    env, fs,
    io::Write as _,
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use gust_image::Image;
use gust_linux::{BootConfig, Ended, Host, Kernel, Step, Stream};
use gust_vmm::{Hypervisor, SlotSizes};

struct Outside {
    began: Instant,
}

impl Host for Outside {
    fn monotonic_ns(&mut self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn realtime_ns(&mut self) -> u64 {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |now| now.as_nanos() as u64)
    }

    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        let _ = match stream {
            Stream::Output => std::io::stdout().write_all(bytes),
            Stream::Error => std::io::stderr().write_all(bytes),
        };
    }

    fn resident_bytes(&mut self) -> u64 {
        let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        statm
            .split(' ')
            .nth(1)
            .and_then(|pages| pages.parse::<u64>().ok())
            .unwrap_or(0)
            * 4096
    }
}

/// `GUEST_MOUNTS=/path=DIRECTORY,...`: directories of the host, taken into images and laid over the root image.
fn mounts() -> Vec<(String, Image)> {
    use gust_image::{Tree, build::directory};
    let mut images = Vec::new();
    for mount in env::var("GUEST_MOUNTS")
        .unwrap_or_default()
        .split(',')
        .filter(|mount| !mount.is_empty())
    {
        let (path, source) = mount.split_once('=').expect("PATH=DIRECTORY");
        let mut tree = Tree::new(&env::temp_dir()).expect("make a tree");
        directory::add(&mut tree, source.as_ref(), b"", directory::Ownership::Root)
            .expect("take the directory in");
        let file = env::temp_dir().join(format!("gust-run-{}.gimg", std::process::id()));
        gust_image::write(&tree, b"{}", &file).expect("write the image");
        let bytes = fs::read(&file).expect("read the image back");
        fs::remove_file(&file).expect("remove the image");
        images.push((
            path.to_owned(),
            Image::open(Arc::new(bytes)).expect("open the image"),
        ));
    }
    images
}

fn main() -> ExitCode {
    if env::var_os("GUST_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_env("GUST_LOG"))
            .with_writer(std::io::stderr)
            .init();
    }
    let mut arguments = env::args().skip(1);
    let (Some(image), Some(program)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: run IMAGE PROGRAM [ARGUMENT ...]");
        return ExitCode::from(2);
    };
    let bytes = fs::read(&image).expect("read the image");
    let root = Image::open(Arc::new(bytes)).expect("open the image");
    let began = Instant::now();
    let hypervisor = Hypervisor::open().expect("KVM");
    let mut vm = hypervisor.create_vm(SlotSizes::BOOT).expect("create a VM");
    vm.want_huge_memory();
    let mut host = Outside { began };
    let user = env::var("GUEST_USER").map_or(0, |user| user.parse().expect("a user's number"));
    let config = BootConfig {
        root,
        images: mounts(),
        arguments: std::iter::once(program.clone()).chain(arguments).collect(),
        program,
        environment: env::var("GUEST_ENV")
            .unwrap_or_else(|_| "PATH=/usr/bin:/bin HOME=/tmp LANG=C.UTF-8".into())
            .split(' ')
            .map(str::to_owned)
            .collect(),
        directory: env::var("GUEST_DIRECTORY").unwrap_or_else(|_| "/".into()),
        uid: user,
        gid: user,
        memory_bytes: 2 << 30,
        tmp_bytes: 512 << 20,
        cpus: env::var("GUEST_CPUS").map_or(1, |cpus| cpus.parse().expect("a number of CPUs")),
        host_name: "gust".into(),
        pid: 7,
        seed: [7; 32],
    };
    let mut kernel = match Kernel::boot(config, &mut vm, &mut host) {
        Ok(kernel) => kernel,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(126);
        }
    };
    let booted = began.elapsed();
    let mut faults = 0;
    loop {
        match kernel.schedule(&mut vm, &mut host) {
            Step::Run { slot, quantum_ns } => {
                let mut registers = *kernel.registers_mut(slot);
                let entered = Instant::now();
                let exit = match vm.run(slot, &mut registers, quantum_ns) {
                    Ok(exit) => exit,
                    Err(error) => {
                        eprintln!("machine: {error}");
                        return ExitCode::from(125);
                    }
                };
                kernel.charge(slot, entered.elapsed().as_nanos() as u64);
                if matches!(exit, gust_vmm::Exit::Exception { .. }) {
                    faults += 1;
                }
                *kernel.registers_mut(slot) = registers;
                kernel.on_exit(&mut vm, &mut host, slot, exit);
            }
            Step::Sleep { for_ns } => thread::sleep(Duration::from_nanos(for_ns)),
            Step::Idle => {
                eprintln!("the guest waits for ever");
                return ExitCode::from(124);
            }
            Step::Ended => break,
        }
    }
    if env::var_os("GUST_STATS").is_some() {
        eprintln!(
            "{:?} to boot, {:?} in all, {} entries, {faults} exceptions, {} MiB backed",
            booted,
            began.elapsed(),
            vm.entries(),
            vm.space().backed_bytes() >> 20
        );
        let mut calls: Vec<_> = kernel.call_counts().collect();
        calls.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        eprintln!("{calls:?}");
    }
    match kernel.ended() {
        Some(Ended::Exit(status)) => ExitCode::from(*status as u8),
        Some(Ended::Signal(signal)) => {
            eprintln!("killed by signal {signal}");
            ExitCode::from(128 + *signal as u8)
        }
        Some(Ended::OutOfMemory) => {
            eprintln!("out of memory");
            ExitCode::from(137)
        }
        None => ExitCode::from(1),
    }
}
