//! The guest of these tests: a runtime that does what its events say.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::fd::{FromRawFd, IntoRawFd},
    path::Path,
    process::{ExitCode, exit},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// One call: the fields of its event, joined by `|`, and its payload.
struct Call<'a> {
    meta: String,
    payload: Vec<u8>,
    id: String,
    /// The function as the device gave it; nothing from the Runtime API.
    function: &'a serde_json::Value,
}

impl Call<'_> {
    fn environment(&self, name: &str) -> Vec<u8> {
        self.function["environment"][name]
            .as_str()
            .unwrap_or_default()
            .into()
    }
}

enum Answer {
    Response(Vec<u8>),
    Error(Vec<u8>),
}

pub fn main() -> ExitCode {
    match std::env::var("GUST_DEVICE") {
        Ok(device) => serve_device(open_device(&device)),
        Err(_) => serve_api(&std::env::var("AWS_LAMBDA_RUNTIME_API").unwrap()),
    }
}

fn open_device(name: &str) -> fs::File {
    match name.strip_prefix("fd:") {
        // SAFETY: the supervisor has handed this descriptor over, and no one else in this process uses it.
        Some(descriptor) => unsafe { fs::File::from_raw_fd(descriptor.parse().unwrap()) },
        None => fs::File::options().read(true).write(true).open(name).unwrap(),
    }
}

fn serve_device(mut device: fs::File) -> ExitCode {
    let is_socket = std::env::var("GUST_DEVICE").unwrap().starts_with("fd:");
    let ready = |device: &mut fs::File| {
        // A socket cannot tell that it is being read.
        if is_socket {
            answer(device, 4, b"");
        }
    };
    ready(&mut device);
    let (_, _, meta, _) = message(&mut device);
    let mut function = function(&meta);
    match initialise(function["handler"].as_str().unwrap().to_owned()) {
        Ok(()) => ready(&mut device),
        Err(document) => {
            answer(&mut device, 3, document);
            return ExitCode::FAILURE;
        }
    }
    loop {
        let (kind, flags, meta, payload) = message(&mut device);
        assert_eq!(kind, 2);
        let meta = String::from_utf8(meta).unwrap().replacen('\n', "|", 4);
        let meta = match flags {
            0 => meta,
            _ => renewed(&meta, &mut function),
        };
        let id = meta.split('|').next().unwrap().to_owned();
        match payload.as_slice() {
            b"close" => {
                drop(device);
                loop {
                    std::thread::park();
                }
            }
            b"unasked" => {
                // In one write, because the guest is stopped after the first answer.
                let mut both = answer_bytes(1, b"1");
                both.extend(answer_bytes(1, b"2"));
                device.write_all(&both).unwrap();
                continue;
            }
            b"garbage" => {
                device.write_all(&[0xff; 64]).unwrap();
                continue;
            }
            _ => {}
        }
        match call(&Call {
            meta,
            payload,
            id,
            function: &function,
        }) {
            Answer::Response(body) => answer(&mut device, 1, &body),
            Answer::Error(body) => answer(&mut device, 2, &body),
        }
    }
}

fn function(meta: &[u8]) -> serde_json::Value {
    let function: serde_json::Value = serde_json::from_slice(meta).unwrap();
    assert_eq!(function["task_root"], "/var/task");
    assert_eq!(function["environment"]["OWN"], "value");
    function
}

/// Takes what is new after a restore out of an event's fields.
fn renewed(meta: &str, function: &mut serde_json::Value) -> String {
    let (fields, rest) = meta.rsplit_once('|').unwrap();
    let [entropy, changes, context] = rest.splitn(3, '\n').collect::<Vec<_>>()[..] else {
        panic!("an event after a restore has the fields {meta:?}");
    };
    assert!(entropy.len() == 64 && entropy.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let changes: serde_json::Map<String, serde_json::Value> = serde_json::from_str(changes).unwrap();
    for (name, value) in changes {
        function["environment"][name] = value;
    }
    format!("{fields}|{context}")
}

fn message(device: &mut fs::File) -> (u32, u32, Vec<u8>, Vec<u8>) {
    let mut header = [0; 16];
    if device.read_exact(&mut header).is_err() {
        exit(0);
    }
    let field = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
    let mut meta = vec![0; field(4) as usize];
    let mut body = vec![0; field(8) as usize];
    device.read_exact(&mut meta).unwrap();
    device.read_exact(&mut body).unwrap();
    (field(0), field(12), meta, body)
}

fn answer(device: &mut fs::File, kind: u32, body: &[u8]) {
    device.write_all(&answer_bytes(kind, body)).unwrap();
}

fn answer_bytes(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut out = kind.to_le_bytes().to_vec();
    out.extend((body.len() as u32).to_le_bytes());
    out.extend(1234_u64.to_le_bytes());
    out.extend(body);
    out
}

fn serve_api(address: &str) -> ExitCode {
    assert_eq!(std::env::var("OWN").as_deref(), Ok("value"));
    let mut connection = TcpStream::connect(address).unwrap();
    if let Err(document) = initialise(std::env::var("_HANDLER").unwrap()) {
        post(&mut connection, "init/error", document);
        return ExitCode::FAILURE;
    }
    loop {
        connection
            .write_all(b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\n\r\n")
            .unwrap();
        let (head, payload) = response(&mut connection);
        let field = |name: &str| {
            let line = head
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.unwrap_or_default().to_owned()
        };
        let id = field("Lambda-Runtime-Aws-Request-Id");
        let rest = [
            "Deadline-Ms",
            "Invoked-Function-Arn",
            "Trace-Id",
            "Client-Context",
        ];
        let rest: Vec<String> = rest
            .iter()
            .map(|name| field(&format!("Lambda-Runtime-{name}")))
            .collect();
        let meta = format!("{id}|{}", rest.join("|"));
        let function = &serde_json::Value::Null;
        match call(&Call {
            meta,
            payload,
            id: id.clone(),
            function,
        }) {
            Answer::Response(body) => post(&mut connection, &format!("invocation/{id}/response"), &body),
            Answer::Error(body) => post(&mut connection, &format!("invocation/{id}/error"), &body),
        }
    }
}

fn post(connection: &mut TcpStream, path: &str, body: &[u8]) {
    let length = body.len();
    write!(
        connection,
        "POST /2018-06-01/runtime/{path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n"
    )
    .unwrap();
    connection.write_all(body).unwrap();
    response(connection);
}

fn response(connection: &mut TcpStream) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        connection.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    connection.read_exact(&mut body).unwrap();
    (head, body)
}

fn initialise(handler: String) -> Result<(), &'static [u8]> {
    if let Some(number) = handler.strip_prefix("hold ") {
        hold(number.parse().unwrap());
    }
    match handler.as_str() {
        "init-error" => {
            println!("about to fail");
            Err(b"{\"errorType\":\"Init\"}")
        }
        "exit-at-init" => exit(3),
        "spin-at-init" => {
            println!("about to spin");
            loop {
                std::hint::spin_loop();
            }
        }
        _ => Ok(()),
    }
}

fn call(call: &Call<'_>) -> Answer {
    assert!(!call.id.is_empty());
    let text = String::from_utf8_lossy(&call.payload[..call.payload.len().min(100)]).into_owned();
    let (verb, number) = match text.split_once(' ') {
        Some((verb, number)) => (verb, number.parse::<u64>().unwrap_or(0)),
        None => (text.as_str(), 0),
    };
    match verb {
        "fail" => return Answer::Error(b"{\"errorType\":\"E\"}".to_vec()),
        "meta" => return Answer::Response(call.meta.clone().into_bytes()),
        "exit" => exit(number as i32),
        "abort" => std::process::abort(),
        "segv" => end_by(libc::SIGSEGV),
        "kill" => end_by(libc::SIGKILL),
        "spin" => loop {
            std::hint::spin_loop();
        },
        "log-and-spin" => {
            println!("about to spin");
            loop {
                std::hint::spin_loop();
            }
        }
        "wait" => {
            let start = std::time::Instant::now();
            while start.elapsed().as_millis() < u128::from(number) {
                std::hint::spin_loop();
            }
        }
        "read" => return Answer::Response(fs::read(text.trim_start_matches("read ")).unwrap()),
        "environment" => return Answer::Response(call.environment(text.trim_start_matches("environment "))),
        "log" => {
            println!("out {number}");
            eprintln!("err {number}");
        }
        "flood" => {
            let line = [b'.'; 1 << 16];
            let mut left = number as usize;
            while left > 0 {
                let n = left.min(line.len());
                std::io::stdout().write_all(&line[..n]).unwrap();
                std::io::stdout().flush().unwrap();
                left -= n;
            }
        }
        "big" => return Answer::Response(vec![b'b'; number as usize]),
        "world" => return Answer::Response(world().into_bytes()),
        "forbidden" => return Answer::Response(forbidden().into_bytes()),
        "files" => return Answer::Response(files().into_bytes()),
        "forks" => return Answer::Response(forks().into_bytes()),
        "background" => background(),
        "held" => return Answer::Response(held().into_bytes()),
        "count" => return Answer::Response(count().into_bytes()),
        "litter" => return Answer::Response(litter().into_bytes()),
        "random" => return Answer::Response(random().into_bytes()),
        "allocate" => allocate(),
        "borrow" => drop(std::hint::black_box(vec![1_u8; number as usize])),
        "wild" => return Answer::Response(crate::wild::run(text.trim_start_matches("wild ")).into_bytes()),
        _ => {}
    }
    Answer::Response(call.payload.clone())
}

/// Ends by a signal as if nothing handled it.
fn end_by(signal: i32) -> ! {
    // SAFETY: takes no pointers; this thread is the only one.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::kill(libc::getpid(), signal);
    }
    loop {
        std::thread::park();
    }
}

fn names(directory: &str) -> String {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("{directory}: {error}"))
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names.join(",")
}

fn world() -> String {
    let is_pid = |name: &&str| name.bytes().all(|byte| byte.is_ascii_digit());
    let write = |path: &str| match fs::write(path, "x") {
        Ok(()) => "ok".to_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => "read-only".to_owned(),
        Err(error) => error.to_string(),
    };
    let device = device_descriptor();
    // The directory that lists them is open, too.
    let lists =
        |name: &&str| fs::read_link(format!("/proc/self/fd/{name}")).is_ok_and(|path| !path.ends_with("fd"));
    let listed = names("/proc/self/fd");
    let mut descriptors: Vec<&str> = listed.split(',').filter(lists).collect();
    descriptors.sort_by_key(|name| name.parse::<i32>().unwrap());
    let descriptors = descriptors.join(",").replace(&device.to_string(), "device");
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status.lines().filter(|line| line.starts_with("Cap"));
    let capabilities = capabilities
        .filter(|line| !line.ends_with("0000000000000000"))
        .count();
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    let processes = names("/proc");
    let fill = vec![0; 8 << 20];
    // SAFETY: takes no pointers.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    [
        format!("root={}", names("/")),
        format!("task={}", names("/var/task")),
        format!("opt=both:{},{}", fs::read_to_string("/opt/both").unwrap(), {
            names("/opt").replace("both,", "")
        }),
        format!("dev={}", names("/dev")),
        format!("user={uid}:{gid}"),
        format!("pid={}", std::process::id()),
        format!(
            "processes={}",
            processes.split(',').filter(is_pid).collect::<Vec<_>>().join(",")
        ),
        format!("interfaces={}", interfaces()),
        format!("write-root={}", write("/x")),
        format!("write-task={}", write("/var/task/x")),
        format!("write-opt={}", write("/opt/x")),
        format!("write-dev={}", write("/dev/x")),
        format!("write-tmp={}", write("/tmp/x")),
        format!(
            "fill-tmp={}",
            match fs::write("/tmp/fill", fill) {
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => "full",
                _ => "not full",
            }
        ),
        format!("null={}", write("/dev/null")),
        format!("descriptors={descriptors}"),
        format!("capabilities={capabilities}"),
        format!("directory={}", std::env::current_dir().unwrap().display()),
        format!("nofile={}", limit("Max open files")),
        format!("nproc={}", limit("Max processes")),
        format!(
            "host={}",
            if fs::exists("/usr").unwrap() {
                "seen"
            } else {
                "hidden"
            }
        ),
    ]
    .join("\n")
}

/// Number of the device's descriptor, or one that is not there.
fn device_descriptor() -> i32 {
    let device = std::env::var("GUST_DEVICE").unwrap();
    match device.strip_prefix("fd:") {
        Some(number) => number.parse().unwrap(),
        None => {
            let opened = |number: &i32| {
                fs::read_link(format!("/proc/self/fd/{number}")).is_ok_and(|path| path == Path::new(&device))
            };
            (0..100).find(opened).unwrap_or(-1)
        }
    }
}

fn interfaces() -> String {
    let table = fs::read_to_string("/proc/net/dev").unwrap();
    let names = table
        .lines()
        .skip(2)
        .filter_map(|line| line.trim().split_once(':'));
    names
        .map(|(name, _)| name.to_owned())
        .collect::<Vec<_>>()
        .join(",")
}

fn error_name() -> String {
    match std::io::Error::last_os_error().raw_os_error() {
        Some(libc::EPERM) => "EPERM".to_owned(),
        Some(libc::ENOSYS) => "ENOSYS".to_owned(),
        Some(libc::EINVAL) => "EINVAL".to_owned(),
        Some(libc::EMFILE) => "EMFILE".to_owned(),
        Some(libc::EAGAIN) => "EAGAIN".to_owned(),
        Some(libc::EAFNOSUPPORT) => "EAFNOSUPPORT".to_owned(),
        other => format!("{other:?}"),
    }
}

/// Tries what a guest must not be able to do; a line each with the error.
fn forbidden() -> String {
    let mut out = Vec::new();
    let mut attempt = |name: &str, number: libc::c_long, arguments: [usize; 5]| {
        let [a, b, c, d, e] = arguments;
        // SAFETY: every pointer among the arguments is null, which the kernel checks.
        let result = unsafe { libc::syscall(number, a, b, c, d, e) };
        let error = if result == -1 {
            error_name()
        } else {
            format!("allowed: {result}")
        };
        out.push(format!("{name} {error}"));
    };
    let user = libc::CLONE_NEWUSER as usize;
    attempt("mount", libc::SYS_mount, [0; 5]);
    attempt("umount2", libc::SYS_umount2, [0; 5]);
    attempt("unshare", libc::SYS_unshare, [user, 0, 0, 0, 0]);
    attempt("setns", libc::SYS_setns, [0; 5]);
    attempt(
        "clone",
        libc::SYS_clone,
        [user | libc::SIGCHLD as usize, 0, 0, 0, 0],
    );
    attempt("clone3", libc::SYS_clone3, [0; 5]);
    attempt(
        "ptrace",
        libc::SYS_ptrace,
        [libc::PTRACE_TRACEME as usize, 0, 0, 0, 0],
    );
    attempt("process_vm_readv", libc::SYS_process_vm_readv, [1, 0, 0, 0, 0]);
    attempt("bpf", libc::SYS_bpf, [0; 5]);
    attempt("keyctl", libc::SYS_keyctl, [0; 5]);
    attempt("userfaultfd", libc::SYS_userfaultfd, [0; 5]);
    attempt("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0, 0, 0]);
    attempt("perf_event_open", libc::SYS_perf_event_open, [0; 5]);
    attempt(
        "vsock",
        libc::SYS_socket,
        [libc::AF_VSOCK as usize, libc::SOCK_STREAM as usize, 0, 0, 0],
    );
    attempt(
        "alg",
        libc::SYS_socket,
        [libc::AF_ALG as usize, libc::SOCK_SEQPACKET as usize, 0, 0, 0],
    );
    attempt("chroot", libc::SYS_chroot, [0; 5]);
    attempt("x32 getpid", libc::SYS_getpid | 0x4000_0000, [0; 5]);
    // EINVAL where the namespace has no such user at all.
    attempt("setuid", libc::SYS_setuid, [0; 5]);
    out.join("\n")
}

fn files() -> String {
    let mut open = Vec::new();
    for _ in 0..100_000 {
        match fs::File::open("/dev/null") {
            Ok(file) => open.push(file),
            Err(_) => return error_name(),
        }
    }
    "no limit".to_owned()
}

fn forks() -> String {
    let mut children = Vec::new();
    let result = loop {
        if children.len() > 10_000 {
            break "no limit".to_owned();
        }
        // SAFETY: this process has one thread, and the child only waits for its end.
        match unsafe { libc::fork() } {
            -1 => break error_name(),
            0 => loop {
                std::thread::park();
            },
            pid => children.push(pid),
        }
    };
    for pid in children {
        // SAFETY: a child of this process, which it has not waited for; the null pointer asks for no status.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
    }
    result
}

/// What a function keeps from its initialisation.
static HELD: Mutex<Vec<Vec<u64>>> = Mutex::new(Vec::new());

/// Keeps so many blocks of numbers, some of which have gaps of memory that was given back between them.
fn hold(number: u64) {
    let blocks = (0..number * 40).map(|block| {
        let words = 100 + block * 37 % 9000;
        (0..words).map(|word| word.wrapping_mul(number + block)).collect()
    });
    let mut all: Vec<Vec<u64>> = blocks.collect();
    let mut n = 0;
    all.retain(|_| {
        n += 1;
        n % 3 != 0
    });
    *HELD.lock().unwrap() = all;
}

/// A sum of all that is held, which it changes in places.
fn held() -> String {
    let mut blocks = HELD.lock().unwrap();
    let sum = blocks
        .iter()
        .flatten()
        .fold(0_u64, |sum, word| sum.wrapping_mul(31).wrapping_add(*word));
    for block in blocks.iter_mut().step_by(5) {
        block[0] = block[0].wrapping_add(1);
    }
    format!("{} {sum:x}", blocks.len())
}

/// How often it has been asked.
fn count() -> String {
    static ASKED: AtomicU64 = AtomicU64::new(0);
    (ASKED.fetch_add(1, Ordering::Relaxed) + 1).to_string()
}

/// Leaves things of every kind behind; tells whether any were there.
fn litter() -> String {
    static THREADS: AtomicU64 = AtomicU64::new(0);
    let file = Path::new("/tmp/litter");
    let lowest = fs::File::open("/dev/null").unwrap().into_raw_fd();
    static LOWEST: AtomicU64 = AtomicU64::new(0);
    let first = LOWEST.swap(lowest as u64 + 1, Ordering::Relaxed) == 0;
    let clean = first && !file.exists() && THREADS.fetch_add(1, Ordering::Relaxed) == 0;
    fs::write(file, "x").unwrap();
    std::env::set_current_dir("/tmp").unwrap();
    // More than a chunk of new memory, and a thread that never ends.
    std::mem::forget(vec![1_u8; 5 << 20]);
    std::thread::spawn(|| {
        loop {
            std::thread::park();
        }
    });
    if clean { "clean" } else { "littered" }.to_owned()
}

/// What must differ between two instances: bytes of the kernel, of the loader's block, and the process's id.
fn random() -> String {
    let mut bytes = [0_u8; 16];
    // SAFETY: the buffer has this many bytes; the loader's block has 16.
    let loaders = unsafe {
        assert_eq!(libc::getrandom(bytes.as_mut_ptr().cast(), 16, 0), 16);
        *(libc::getauxval(libc::AT_RANDOM) as *const [u8; 16])
    };
    assert_ne!(bytes, loaders);
    format!("{bytes:?} {loaders:?}")
}

/// Uses all memory that there is.
fn allocate() {
    for _ in 0..10_000 {
        std::mem::forget(vec![1_u8; 1 << 20]);
    }
}

/// Leaves a process behind that works on.
fn background() {
    // SAFETY: this process has one thread, and the child makes no use of anything but the processor.
    if unsafe { libc::fork() } == 0 {
        loop {
            std::hint::spin_loop();
        }
    }
}
