//! Building real runtimes from Debian's packages. Needs apt and its sources' servers; says so when it skips.

use std::{path::Path, process::Command};

use gust_image::{
    ImageFile, NodeKind,
    build::debian::{self, BuiltRuntime, Recipe, RuntimeBuildError},
    runtime::{DESCRIPTION_PATH, RuntimeDescription, RuntimeInterface},
};

/// Builds into `output`, or says why that cannot be tried here. Downloads are kept between runs.
fn build(recipe: Recipe, output: &Path) -> Option<BuiltRuntime> {
    let work_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(recipe.name());
    match debian::build(recipe, output, &work_dir, &mut |_| {}) {
        Ok(built) => Some(built),
        Err(error @ (RuntimeBuildError::NoTool(_) | RuntimeBuildError::Command { .. }))
            if matches!(&error, RuntimeBuildError::NoTool(_)) || error.to_string().contains("apt-get") =>
        {
            eprintln!(
                "SKIPPED: building {} needs apt and its sources: {error}",
                recipe.name()
            );
            None
        }
        Err(error) => panic!("building {}: {error:?}", recipe.name()),
    }
}

fn description(image: &ImageFile) -> RuntimeDescription {
    let index = image.tables().find(DESCRIPTION_PATH.as_bytes()).unwrap();
    RuntimeDescription::parse(&image.read(index, 1 << 20).unwrap().unwrap()).unwrap()
}

#[test]
fn python_is_built_and_runs() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("python.img");
    let Some(built) = build(Recipe::Python311, &output) else {
        return;
    };
    assert!(built.packages.iter().any(|(name, _)| name == "python3-boto3"));
    assert!(
        !built
            .packages
            .iter()
            .any(|(name, _)| name == "perl-base" || name == "dpkg")
    );

    let image = ImageFile::open(&output).unwrap();
    image.verify().unwrap();
    let description = description(&image);
    assert_eq!(
        (description.name.as_str(), description.interface),
        ("python3.11", RuntimeInterface::Device)
    );
    for path in description.commands[0].iter().map(String::as_str).chain([
        "/etc/ssl/certs/ca-certificates.crt",
        "/usr/share/zoneinfo/Etc/UTC",
        "/etc/ld.so.cache",
    ]) {
        let found = image.tables().find(path.as_bytes()).unwrap();
        assert_eq!(image.tables().node(found).unwrap().kind, NodeKind::File, "{path}");
    }
    let byte_code = image
        .tables()
        .find(b"/usr/lib/python3.11/json/__pycache__/__init__.cpython-311.pyc")
        .unwrap();
    // PEP 552: flags 1 say that the byte code is named by its source's hash and never compared with it.
    assert_eq!(
        image.read(byte_code, 1 << 20).unwrap().unwrap()[4..8],
        [1, 0, 0, 0]
    );

    let root = dir.path().join("root");
    image.extract(&root).unwrap();
    let code = "import boto3, ssl, sqlite3, ctypes, lzma, uuid, zoneinfo, simplejson._speedups, locale\n\
                locale.setlocale(locale.LC_ALL, 'C.UTF-8')\n\
                assert len(ssl.create_default_context().get_ca_certs()) > 100\n\
                print(boto3.client('s3', region_name='us-east-1').meta.region_name)";
    let mut command = Command::new("chroot");
    command.arg(&root).args(["/usr/bin/python3.11", "-B", "-c", code]);
    let run = command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin")
        .output()
        .unwrap();
    if String::from_utf8_lossy(&run.stderr).contains("chroot: cannot change root") {
        eprintln!("SKIPPED: running the built Python needs root");
        return;
    }
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(run.stdout, b"us-east-1\n");
}

#[test]
fn builds_of_the_same_packages_are_the_same_image() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
    let Some(one) = build(Recipe::ProvidedAl2023, &first) else {
        return;
    };
    let Some(two) = build(Recipe::ProvidedAl2023, &second) else {
        return;
    };
    assert_eq!(one, two);

    let image = ImageFile::open(&first).unwrap();
    let description = description(&image);
    assert_eq!(description.interface, RuntimeInterface::RuntimeApi);
    assert_eq!(
        description.commands,
        [["/var/task/bootstrap"], ["/opt/bootstrap"]]
    );
    for program in ["/usr/bin/bash", "/usr/bin/env", "/usr/bin/curl"] {
        assert!(image.tables().find(program.as_bytes()).is_some(), "{program}");
    }
}
