//! Writes the inputs to begin with into the directory `GUST_SEEDS`, one directory a target, and ends. It is built like a
//! target, because the counters' functions come with the fuzzer.

#![no_main]

use std::{fs, io, path::PathBuf, process::exit};

fn write() -> io::Result<()> {
    let to = std::env::var_os("GUST_SEEDS").map(PathBuf::from);
    let to = to.ok_or_else(|| io::Error::other("GUST_SEEDS names no directory"))?;
    for (n, (target, input)) in gust_fuzz::seeds().into_iter().enumerate() {
        let directory = to.join(target);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(format!("seed-{n}")), input)?;
    }
    Ok(())
}

libfuzzer_sys::fuzz_target!(
    init: match write() {
        Ok(()) => exit(0),
        Err(error) => {
            eprintln!("writing the inputs to begin with failed: {error}");
            exit(1)
        }
    },
    |_data: &[u8]| {}
);
