//! Builds the programs that the sandbox benches and replays run in guests: no library, statically linked, so that they run without
//! anything else in a guest's image.

use std::{env, path::PathBuf, process::Command};

/// The programs; the source of each is in `guest/`, and what they share in `guest/bare.rs`.
const PROGRAMS: [&str; 3] = ["channel", "probe", "replay"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=guest/bare.rs");
    PROGRAMS.into_iter().for_each(build);
}

fn build(program: &str) {
    let source = format!("guest/{program}.rs");
    println!("cargo::rerun-if-changed={source}");
    let rustc = env::var_os("RUSTC").expect("cargo names the compiler");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names the directory")).join(program);
    let target = env::var("TARGET").expect("cargo names the target");
    let status = Command::new(rustc)
        .args([
            source.as_str(),
            "--crate-name",
            program,
            "--crate-type",
            "bin",
            "--edition",
            "2024",
        ])
        .args(["--target", &target])
        .args([
            "-C",
            "panic=abort",
            "-C",
            "opt-level=2",
            "-C",
            "relocation-model=static",
        ])
        .args(["-C", "target-feature=+crt-static", "-C", "strip=symbols"])
        .args([
            "-C",
            "link-arg=-nostdlib",
            "-C",
            "link-arg=-nostartfiles",
            "-C",
            "link-arg=-static",
        ])
        .arg("-o")
        .arg(&out)
        .status()
        .expect("start the compiler");
    assert!(status.success(), "the guest program {source} could not be built");
}
