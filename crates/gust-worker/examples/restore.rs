//! Measures restores of a Python function inside one process: `restore IMAGE CODE_DIR HANDLER EVENT [ROUNDS]`.
//! Files of the snapshot are made in the directory `GUST_HUGE` (a tmpfs with `huge=advise`), or in memory.

use std::{
    fs::{self, File},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Instant,
};

use gust_image::{Image, Tree, build::directory, runtime::RuntimeDescription};
use gust_vmm::{Hypervisor, SlotSizes};
use gust_worker::{
    kvm::{Heard, Images, Outside, Restore, Sandbox, plans},
    protocol::{BootSpec, Identity, InitSpec, Interface, InvokeSpec, Limits, MemoryMode},
    runtime_api::Said,
};

const LIMITS: Limits = Limits {
    memory_bytes: 512 << 20,
    tmp_bytes: 512 << 20,
    cpus: 1,
};

fn image(path: &str) -> Image {
    let file = File::open(path).expect("open the image");
    let map = rustix_map(&file);
    Image::open(Arc::new(map)).expect("an image")
}

fn rustix_map(file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut file.try_clone().expect("clone"), &mut bytes).expect("read the image");
    bytes
}

fn scratch() -> OwnedFd {
    match std::env::var("GUST_HUGE") {
        Ok(directory) => {
            let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR;
            rustix::fs::open(directory, flags, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
                .expect("open a file")
        }
        Err(_) => rustix::fs::memfd_create("snapshot", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd"),
    }
}

fn outside() -> Outside {
    Outside::new(File::open("/proc/self/statm").ok())
}

fn identity(n: u64) -> Identity {
    let mut seed = [3; 32];
    seed[..8].copy_from_slice(&n.to_le_bytes());
    Identity {
        instance_id: n.to_string(),
        seed,
    }
}

fn until_waits(sandbox: &mut Sandbox) {
    loop {
        match sandbox.run().expect("run") {
            Heard::Said(Said::Waits) => break,
            Heard::Log => print!("{}", String::from_utf8_lossy(&sandbox.take_log())),
            other => {
                print!("{}", String::from_utf8_lossy(&sandbox.take_log()));
                panic!("{other:?}")
            }
        }
    }
    sandbox.quiesce().expect("quiesce");
}

fn answer(sandbox: &mut Sandbox, n: u64, event: &str) -> Vec<u8> {
    let spec = InvokeSpec {
        request_id: format!("00000000-0000-0000-0000-{n:012}"),
        deadline_unix_ms: 4_000_000_000_000,
        function_arn: "arn:aws:lambda:us-east-1:000000000000:function:f".into(),
        trace_id: String::new(),
        client_context: String::new(),
    };
    let event = event.replace("%d", &n.to_string());
    sandbox.deliver(spec, event.into_bytes()).expect("deliver");
    loop {
        match sandbox.run().expect("run") {
            Heard::Said(Said::Response(body)) => return body,
            Heard::Said(Said::Waits) | Heard::Log => {
                print!("{}", String::from_utf8_lossy(&sandbox.take_log()));
            }
            other => {
                print!("{}", String::from_utf8_lossy(&sandbox.take_log()));
                panic!("{other:?}")
            }
        }
    }
}

fn report(name: &str, mut us: Vec<u64>) {
    us.sort_unstable();
    let at = |p: usize| us[(us.len() - 1) * p / 100] as f64 / 1000.0;
    println!(
        "{name:<34} p50 {:.3} p90 {:.3} p99 {:.3} min {:.3} ms",
        at(50),
        at(90),
        at(99),
        at(0)
    );
}

fn micros(began: Instant) -> u64 {
    began.elapsed().as_micros() as u64
}

fn main() {
    if std::env::var_os("GUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_env("GUST_LOG");
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .init();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, code, handler, event] = &arguments[..4] else {
        panic!("IMAGE CODE_DIR HANDLER EVENT [ROUNDS]")
    };
    let rounds: u64 = arguments
        .get(4)
        .map_or(100, |rounds| rounds.parse().expect("a number"));
    let root = image(path);
    let description = root
        .find(b"/.gust/runtime.json")
        .and_then(|node| root.file(node))
        .expect("a runtime");
    let description = RuntimeDescription::parse(description).expect("a description");
    let mut tree = Tree::new(&std::env::temp_dir()).expect("tree");
    directory::add(&mut tree, code.as_ref(), b"", directory::Ownership::Root).expect("code");
    let file = std::env::temp_dir().join("gust-restore-code.gimg");
    gust_image::write(&tree, b"{}", &file).expect("write");
    let code = image(file.to_str().expect("utf-8"));
    fs::remove_file(&file).expect("remove");

    let hypervisor = Hypervisor::open().expect("KVM");
    let environment: Vec<(String, String)> = description.environment.clone().into_iter().collect();
    let boot = BootSpec {
        argv: description.commands[0].clone(),
        environment,
        directory: description.directory.clone(),
        interface: Interface::Device,
        limits: LIMITS,
        identity: identity(0),
    };
    let mut machine = hypervisor.create_vm(SlotSizes::POOLED).expect("create a VM");
    machine.want_huge_memory();
    let began = Instant::now();
    let mut sandbox = Sandbox::boot(machine, outside(), boot, root.clone()).expect("boot");
    until_waits(&mut sandbox);
    println!("booted the runtime in {:?}", began.elapsed());
    let (base_memory, base_state) = (scratch(), scratch());
    let captured = sandbox.capture(&base_memory, &base_state).expect("capture");
    println!("captured the base: {captured:?}");
    drop(sandbox);
    let pooled = || {
        let mut vm = hypervisor.create_vm(SlotSizes::POOLED).expect("create a VM");
        vm.warm_up().expect("warm up");
        vm
    };
    let clone = |file: &OwnedFd| file.as_fd().try_clone_to_owned().expect("clone");
    let restore_base = |layout: Option<&OwnedFd>| {
        let restore = Restore {
            memory: clone(&base_memory),
            state: clone(&base_state),
            layout: layout.map(clone),
            images: Images {
                root: root.clone(),
                mounted: Vec::new(),
            },
            arm: layout.is_some(),
            on_base: false,
            frozen: None,
            record: false,
            memory_mode: MemoryMode::Reuse,
            limits: LIMITS,
            identity: identity(0),
            environment: Vec::new(),
        };
        Sandbox::restore(pooled(), outside(), restore).expect("restore the base")
    };
    let mut sandbox = restore_base(None);
    let began = Instant::now();
    let init = InitSpec {
        handler: handler.clone(),
        environment: vec![("AWS_REGION".into(), "us-east-1".into())],
        task_root: "/var/task".into(),
        limits: LIMITS,
    };
    sandbox.init(&init, vec![code.clone()]).expect("init");
    until_waits(&mut sandbox);
    println!("initialised the function in {:?}", began.elapsed());
    let (memory, state) = (scratch(), scratch());
    let began = Instant::now();
    let captured = sandbox.capture(&memory, &state).expect("capture");
    println!("captured in {:?}: {captured:?}", began.elapsed());
    drop(sandbox);

    let restore =
        |n: u64, layout: Option<&OwnedFd>, arm: bool, record: bool, memory_mode: MemoryMode| Restore {
            memory: clone(&memory),
            state: clone(&state),
            layout: layout.map(clone),
            images: Images {
                root: root.clone(),
                mounted: vec![code.clone()],
            },
            arm,
            on_base: false,
            frozen: None,
            record,
            memory_mode,
            limits: LIMITS,
            identity: identity(n),
            environment: Vec::new(),
        };
    let mut layout: Option<OwnedFd> = None;
    for n in 0..3 {
        let vm = pooled();
        let began = Instant::now();
        let mut sandbox = Sandbox::restore(
            vm,
            outside(),
            restore(n, layout.as_ref(), false, true, MemoryMode::Reuse),
        )
        .expect("restore");
        let body = answer(&mut sandbox, n, event);
        println!(
            "recorded in {:?}: {}",
            began.elapsed(),
            String::from_utf8_lossy(&body)
        );
        let file = scratch();
        let (bytes, hot) = sandbox.replan(&file, &memory).expect("replan");
        println!("  layout of {bytes} bytes, {hot} hot pages");
        layout = Some(file);
    }
    let layout = layout.expect("a layout");
    let mut times = Vec::new();
    let (mut map, mut fill) = (Vec::new(), Vec::new());
    for n in 0..rounds {
        let vm = pooled();
        let began = Instant::now();
        let mut sandbox = Sandbox::restore(
            vm,
            outside(),
            restore(n, Some(&layout), false, false, MemoryMode::Reuse),
        )
        .expect("restore");
        answer(&mut sandbox, n, event);
        times.push(micros(began));
        let timings = sandbox.take_timings();
        map.push(timings.map_ns / 1000);
        fill.push(timings.fill_ns / 1000);
        if n == 0 {
            println!("{timings:?}");
        }
    }
    report("unprepared", times);
    report("  map", map);
    report("  fill", fill);
    let (shaped, grafted) = (scratch(), scratch());
    let began = Instant::now();
    let files = [
        clone(&shaped),
        clone(&base_memory),
        clone(&base_state),
        clone(&memory),
        clone(&state),
        clone(&layout),
    ];
    let written = plans::shape(&files).expect("shape").expect("its files");
    println!("shaped the base in {:?}: {written:?}", began.elapsed());
    let began = Instant::now();
    let files = [
        clone(&grafted),
        clone(&memory),
        clone(&state),
        clone(&layout),
        clone(&base_memory),
        clone(&base_state),
        clone(&shaped),
    ];
    let written = plans::graft(&files).expect("graft").expect("its files");
    println!("grafted in {:?}: {written:?}", began.elapsed());
    let (mut times, mut fill) = (Vec::new(), Vec::new());
    for n in 0..rounds {
        let base = restore_base(Some(&shaped));
        let (vm, outside) = base.into_base().expect("a base");
        let began = Instant::now();
        let restore = Restore {
            on_base: true,
            ..restore(n, Some(&grafted), false, false, MemoryMode::Reuse)
        };
        let mut sandbox = Sandbox::restore(vm, outside, restore).expect("graft");
        let body = answer(&mut sandbox, n, event);
        times.push(micros(began));
        let timings = sandbox.take_timings();
        fill.push(timings.fill_ns / 1000);
        if n == 0 {
            println!("{timings:?} {}", String::from_utf8_lossy(&body));
        }
    }
    report("grafted", times);
    report("  fill", fill);
    let (mut arm, mut run) = (Vec::new(), Vec::new());
    for n in 0..rounds {
        let vm = pooled();
        let began = Instant::now();
        let mut sandbox = Sandbox::restore(
            vm,
            outside(),
            restore(n, Some(&layout), true, false, MemoryMode::Reuse),
        )
        .expect("restore");
        arm.push(micros(began));
        let began = Instant::now();
        answer(&mut sandbox, n, event);
        run.push(micros(began));
        if n == 0 {
            println!("{:?}", sandbox.take_timings());
        }
    }
    report("arming", arm);
    report("armed", run);
    let mut sandbox = Sandbox::restore(
        pooled(),
        outside(),
        restore(1, Some(&layout), true, false, MemoryMode::Fresh),
    )
    .expect("restore");
    let (mut run, mut back) = (Vec::new(), Vec::new());
    for n in 0..rounds {
        let began = Instant::now();
        answer(&mut sandbox, n, event);
        run.push(micros(began));
        until_waits(&mut sandbox);
        let began = Instant::now();
        sandbox.rewind().expect("rewind");
        back.push(micros(began));
    }
    report("rewound", run);
    report("rewinding", back);
    let mut run = Vec::new();
    let mut sandbox = Sandbox::restore(
        pooled(),
        outside(),
        restore(1, Some(&layout), true, false, MemoryMode::Reuse),
    )
    .expect("restore");
    for n in 0..rounds {
        let began = Instant::now();
        answer(&mut sandbox, n, event);
        run.push(micros(began));
        until_waits(&mut sandbox);
    }
    report("warm", run);
}
