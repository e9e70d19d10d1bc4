//! Builds the program that the sandbox benches run in their guests: no library, statically linked, so that it runs without
//! anything else in a guest's image.

use std::{env, path::PathBuf, process::Command};

const SOURCE: &str = "guest/probe.rs";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={SOURCE}");
    let rustc = env::var_os("RUSTC").expect("cargo names the compiler");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names the directory")).join("probe");
    let target = env::var("TARGET").expect("cargo names the target");
    let status = Command::new(rustc)
        .args([
            SOURCE,
            "--crate-name",
            "probe",
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
    assert!(status.success(), "the guest program {SOURCE} could not be built");
}
