//! Builds a runtime image: `build-runtime python3.11 OUTPUT WORK_DIR`.

use std::{path::Path, process::ExitCode, time::Instant};

use gust_image::build::{
    Progress,
    debian::{self, Recipe},
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, output, work_dir] = arguments.as_slice() else {
        eprintln!("usage: build-runtime NAME OUTPUT WORK_DIR");
        return ExitCode::from(2);
    };
    let Some(recipe) = Recipe::named(name) else {
        eprintln!("no runtime is called {name:?}");
        return ExitCode::from(2);
    };
    let start = Instant::now();
    let mut report = |progress| match progress {
        Progress::Step(text) | Progress::Note(text) => {
            eprintln!("{:6.2} s  {text}", start.elapsed().as_secs_f32());
        }
        Progress::Advance { .. } => {}
    };
    match debian::build(recipe, Path::new(output), Path::new(work_dir), &mut report) {
        Ok(built) => {
            println!(
                "{}: {} bytes, {} files",
                output, built.image.bytes, built.image.nodes
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                eprintln!("  because {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}
