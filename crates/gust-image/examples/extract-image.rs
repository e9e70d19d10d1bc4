//! Extracts an image into a new directory: `extract-image IMAGE DIRECTORY`.

use std::{path::Path, process::ExitCode};

use gust_image::ImageFile;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, directory] = arguments.as_slice() else {
        eprintln!("usage: extract-image IMAGE DIRECTORY");
        return ExitCode::from(2);
    };
    let extracted = ImageFile::open(Path::new(image)).and_then(|image| {
        image.verify()?;
        image.extract(Path::new(directory))
    });
    match extracted {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "{error}: {}",
                std::error::Error::source(&error)
                    .map(ToString::to_string)
                    .unwrap_or_default()
            );
            ExitCode::FAILURE
        }
    }
}
