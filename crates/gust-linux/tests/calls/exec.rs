//! `execve` and `execveat`.

use gust_linux::Ended;

use crate::guest::{AT_FDCWD, Came, Guest, NOWHERE, SCRATCH, error, image, program};

const ENTRY: u64 = 0x40_0100;

/// A list of strings in the second half of the scratch memory.
fn list(guest: &mut Guest, place: u64, strings: &[&str]) -> u64 {
    let at = SCRATCH + 0x8_0000 + place * 0x4000;
    let mut text_at = at + 0x1000;
    let mut pointers = Vec::new();
    for string in strings {
        pointers.extend_from_slice(&text_at.to_le_bytes());
        guest.put(text_at, &[string.as_bytes(), &[0]].concat());
        text_at += string.len() as u64 + 1;
    }
    pointers.extend_from_slice(&[0; 8]);
    guest.put(at, &pointers)
}

fn file(guest: &mut Guest, path: &str, content: &[u8], mode: u64) {
    let path = guest.text(0, path);
    let flags = (libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC) as u64;
    let fd = guest.done(libc::SYS_openat, &[AT_FDCWD, path, flags, mode]) as u64;
    guest.put(SCRATCH, content);
    let written = guest.done(libc::SYS_write, &[fd, SCRATCH, content.len() as u64]);
    assert_eq!(written, content.len() as i64);
    assert_eq!(guest.done(libc::SYS_close, &[fd]), 0);
}

fn exec(guest: &mut Guest, slot: usize, path: &str, arguments: &[&str]) -> Came {
    let arguments = list(guest, 0, arguments);
    let environment = list(guest, 1, &["NAME=value"]);
    let path = guest.text(1, path);
    guest.call_on(slot, libc::SYS_execve, &[path, arguments, environment])
}

/// What the new program finds on its stack: arguments, then environment.
fn strings_on_stack(guest: &mut Guest, slot: usize) -> (Vec<String>, Vec<String>) {
    let mut at = guest.kernel.registers_mut(slot).rsp;
    assert_eq!(at % 16, 0);
    let count = guest.word(at);
    let mut lists = [Vec::new(), Vec::new()];
    for list in &mut lists {
        at += 8;
        loop {
            let pointer = guest.word(at);
            if pointer == 0 {
                break;
            }
            let mut string = Vec::new();
            loop {
                let byte = guest.get(pointer + string.len() as u64, 1)[0];
                if byte == 0 {
                    break;
                }
                string.push(byte);
            }
            list.push(String::from_utf8(string).unwrap());
            at += 8;
        }
    }
    let [arguments, environment] = lists;
    assert_eq!(arguments.len() as u64, count);
    (arguments, environment)
}

#[test]
fn another_program_keeps_what_is_the_process_s() {
    let mut guest = Guest::new();
    let kept = guest.open("/etc/hostname", libc::O_RDONLY) as u64;
    let closed = guest.open("/etc/hostname", libc::O_RDONLY | libc::O_CLOEXEC) as u64;
    let directory = guest.text(0, "/tmp");
    assert_eq!(guest.done(libc::SYS_chdir, &[directory]), 0);
    // SIGUSR1 has a handler, SIGUSR2 is ignored, SIGTERM is blocked.
    guest.put(
        SCRATCH,
        &[0x1000_u64.to_le_bytes(), [0; 8], [0; 8], [0; 8]].concat(),
    );
    guest.done(libc::SYS_rt_sigaction, &[libc::SIGUSR1 as u64, SCRATCH, 0, 8]);
    guest.put(SCRATCH, &1_u64.to_le_bytes());
    guest.done(libc::SYS_rt_sigaction, &[libc::SIGUSR2 as u64, SCRATCH, 0, 8]);
    guest.put(SCRATCH, &(1_u64 << (libc::SIGTERM - 1)).to_le_bytes());
    guest.done(
        libc::SYS_rt_sigprocmask,
        &[libc::SIG_SETMASK as u64, SCRATCH, 0, 8],
    );
    let pid = guest.done(libc::SYS_getpid, &[]);
    let main = guest.main;

    assert!(matches!(
        exec(&mut guest, main, "/program", &["a", "b c"]),
        Came::Back(_)
    ));
    let registers = *guest.kernel.registers_mut(main);
    assert_eq!((registers.rip, registers.fs_base, registers.rax), (ENTRY, 0, 0));
    let (arguments, environment) = strings_on_stack(&mut guest, main);
    assert_eq!(
        (arguments, environment),
        (vec!["a".into(), "b c".into()], vec!["NAME=value".into()])
    );
    assert!(
        guest.vm.space().read(SCRATCH, &mut [0]).is_err(),
        "memory of the old program"
    );

    let at = guest.kernel.registers_mut(main).rsp - 0x1000;
    assert_eq!(guest.done(libc::SYS_getpid, &[]), pid);
    assert_eq!(guest.done(libc::SYS_read, &[kept, at, 5]), 5);
    assert_eq!(guest.get(at, 5), b"guest");
    assert_eq!(guest.fails(libc::SYS_read, &[closed, at, 5]), libc::EBADF);
    assert_eq!(guest.done(libc::SYS_getcwd, &[at, 100]), 5);
    assert_eq!(guest.get(at, 5), b"/tmp\0");
    let handler = |guest: &mut Guest, signal: i32| {
        guest.done(libc::SYS_rt_sigaction, &[signal as u64, 0, at, 8]);
        guest.word(at)
    };
    assert_eq!(handler(&mut guest, libc::SIGUSR1), 0);
    assert_eq!(handler(&mut guest, libc::SIGUSR2), 1);
    guest.done(libc::SYS_rt_sigprocmask, &[0, 0, at, 8]);
    assert_eq!(guest.word(at), 1 << (libc::SIGTERM - 1));
}

#[test]
fn other_threads_end_and_the_caller_is_the_first() {
    let mut guest = Guest::new();
    let other = guest.thread();
    let third = guest.thread();
    // The first thread waits for what does not come, with a time-out.
    guest.put(SCRATCH, &[5, 0, 0, 0]);
    let word = [SCRATCH, libc::FUTEX_WAIT as u64, 5, 0, 0, 0];
    assert_eq!(guest.call_on(guest.main, libc::SYS_futex, &word), Came::Blocked);
    assert!(guest.kernel.thread_slots().contains(&third));
    assert!(matches!(
        exec(&mut guest, other, "/program", &["x"]),
        Came::Back(_)
    ));
    assert_eq!(guest.kernel.thread_slots(), [other]);
    guest.main = other;
    let pid = guest.done(libc::SYS_getpid, &[]);
    assert_eq!(guest.done(libc::SYS_gettid, &[]), pid);
    // Its descriptors, its memory and its threads work as any program's do.
    let flags = (libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let mapped = guest.done(libc::SYS_mmap, &[SCRATCH, 0x10_0000, 3, flags, u64::MAX, 0]);
    assert_eq!(mapped, SCRATCH as i64);
    guest.thread();
    assert_eq!(guest.call(libc::SYS_exit_group, &[3]), Came::Ended);
    assert_eq!(guest.ended(), Some(Ended::Exit(3)));
}

#[test]
fn scripts_and_files_in_memory_are_run() {
    let mut guest = Guest::new();
    file(&mut guest, "/tmp/other", &program(), 0o755);
    file(&mut guest, "/tmp/script", b"#!/tmp/other  one word\n", 0o755);
    let main = guest.main;
    assert!(matches!(
        exec(&mut guest, main, "/tmp/script", &["name", "2"]),
        Came::Back(_)
    ));
    let (arguments, _) = strings_on_stack(&mut guest, main);
    assert_eq!(arguments, ["/tmp/other", "one word", "/tmp/script", "2"]);

    // A file that has no name, by a descriptor that goes with it.
    let mut guest = Guest::new();
    file(&mut guest, "/tmp/other", &program(), 0o755);
    let fd = guest.open("/tmp/other", libc::O_RDONLY | libc::O_CLOEXEC) as u64;
    let path = guest.text(0, "/tmp/other");
    assert_eq!(guest.done(libc::SYS_unlink, &[path]), 0);
    let empty = guest.text(0, "");
    let arguments = list(&mut guest, 0, &["by descriptor"]);
    let by_descriptor = [fd, empty, arguments, 0, libc::AT_EMPTY_PATH as u64];
    assert!(matches!(
        guest.call(libc::SYS_execveat, &by_descriptor),
        Came::Back(_)
    ));
    assert_eq!(guest.kernel.registers_mut(guest.main).rip, ENTRY);
    assert_eq!(guest.get(0x40_0000, 4), b"\x7fELF");
    let (arguments, environment) = strings_on_stack(&mut guest, main);
    assert_eq!((arguments, environment.len()), (vec!["by descriptor".into()], 0));
}

#[test]
fn what_cannot_be_run_leaves_the_program_that_asked() {
    let mut guest = Guest::new();
    file(&mut guest, "/tmp/data", b"no program", 0o755);
    file(&mut guest, "/tmp/closed", &program(), 0o644);
    file(&mut guest, "/tmp/astray", b"#!/nowhere\n", 0o755);
    file(&mut guest, "/tmp/loop", b"#!/tmp/loop\n", 0o755);
    let mut cut = program();
    cut.truncate(80);
    file(&mut guest, "/tmp/cut", &cut, 0o755);
    let main = guest.main;
    for (path, errno) in [
        ("/tmp/data", libc::ENOEXEC),
        ("/tmp/cut", libc::ENOEXEC),
        ("/tmp/closed", libc::EACCES),
        ("/tmp", libc::EACCES),
        ("/tmp/none", libc::ENOENT),
        ("/tmp/data/x", libc::ENOTDIR),
        ("/tmp/astray", libc::ENOENT),
        ("/tmp/loop", libc::ELOOP),
        ("", libc::ENOENT),
    ] {
        assert_eq!(exec(&mut guest, main, path, &["x"]), error(errno), "{path}");
    }
    let path = guest.text(1, "/program");
    assert_eq!(guest.fails(libc::SYS_execve, &[path, NOWHERE, 0]), libc::EFAULT);
    // The same word again and again is a list without an end.
    let endless = SCRATCH + 0x1_0000;
    guest.put(endless, &path.to_le_bytes().repeat(0x2_0000 / 8));
    assert_eq!(guest.fails(libc::SYS_execve, &[path, endless, 0]), libc::E2BIG);
    let unknown = [AT_FDCWD, path, 0, 0, 1];
    assert_eq!(guest.fails(libc::SYS_execveat, &unknown), libc::EINVAL);
    assert_eq!(
        guest.fails(libc::SYS_execveat, &[77, path + 1, 0, 0, 0]),
        libc::EBADF
    );
    // It is as it was.
    assert_eq!(guest.get(path, 9), b"/program\0");
    assert_eq!(guest.ended(), None::<Ended>);
    assert_eq!(guest.done(libc::SYS_getpid, &[]), 1);
}

#[test]
fn a_program_where_its_stack_goes_is_not_loaded() {
    let mut astray = program();
    // Its one segment's address.
    astray[80..88].copy_from_slice(&0x7eff_ffdf_f000_u64.to_le_bytes());
    assert!(Guest::boot(image(&astray)).is_err());
    let mut guest = Guest::new();
    file(&mut guest, "/tmp/astray", &astray, 0o755);
    let main = guest.main;
    assert_eq!(exec(&mut guest, main, "/tmp/astray", &["x"]), Came::Ended);
    assert_eq!(guest.ended(), Some(Ended::Signal(libc::SIGKILL)));
}

#[test]
fn a_new_program_registers_for_barriers_anew() {
    let mut guest = Guest::new();
    let (register, command) = (
        libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED as u64,
        libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED as u64,
    );
    assert_eq!(guest.done(libc::SYS_membarrier, &[register, 0]), 0);
    assert_eq!(guest.done(libc::SYS_membarrier, &[command, 0]), 0);
    let main = guest.main;
    exec(&mut guest, main, "/program", &["x"]);
    assert_eq!(guest.fails(libc::SYS_membarrier, &[command, 0]), libc::EPERM);
}
