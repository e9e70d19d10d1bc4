//! The Java runtime: Debian's OpenJDK, and AWS's own client of the Runtime API from Maven's central repository.

use std::{
    fs::File,
    io::{self, BufReader},
    path::{Path, PathBuf},
};

use zip::ZipArchive;

use super::{RuntimeBuildError, archive::Archive};
use crate::tree::{Attributes, Tree};

/// The client first: the native part lies in it.
pub(super) const ARCHIVES: [Archive; 4] = [
    Archive {
        name: "aws-lambda-java-runtime-interface-client",
        version: "2.9.0",
        url: "https://repo1.maven.org/maven2/com/amazonaws/aws-lambda-java-runtime-interface-client/2.9.0/\
              aws-lambda-java-runtime-interface-client-2.9.0.jar",
        sha256: "26568a5f63bf9e921567e77661be425650abc8972bae2aa0b7e99bab4e4239d9",
    },
    Archive {
        name: "aws-lambda-java-core",
        version: "1.4.0",
        url: "https://repo1.maven.org/maven2/com/amazonaws/aws-lambda-java-core/1.4.0/aws-lambda-java-core-1.4.0.jar",
        sha256: "575c24393cc1ad645e83e618956eabd89ffe8cc09efae2cb62bc6589154d68ed",
    },
    Archive {
        name: "aws-lambda-java-serialization",
        version: "1.2.0",
        url: "https://repo1.maven.org/maven2/com/amazonaws/aws-lambda-java-serialization/1.2.0/\
              aws-lambda-java-serialization-1.2.0.jar",
        sha256: "1513c1f945a3213f916a4b2de1760c97b51d84d110f82bbbcf9cfac53d5651e7",
    },
    Archive {
        name: "utils-lite",
        version: "2.34.0",
        url: "https://repo1.maven.org/maven2/software/amazon/awssdk/utils-lite/2.34.0/utils-lite-2.34.0.jar",
        sha256: "efaf784f07ae526f0b5c89d71ef21cf16636131c47d44616e3df9bedc3f4f89a",
    },
];

/// The virtual machine with what it links to; the rest of its dependencies is for desktops, printers and smart cards.
pub(super) const KEPT: [&str; 16] = [
    "ca-certificates",
    "libbrotli1",
    "libc-bin",
    "libc6",
    "libfreetype6",
    "libgcc-s1",
    "libglib2.0-0",
    "libgraphite2-3",
    "libharfbuzz0b",
    "libjpeg62-turbo",
    "liblcms2-2",
    "libpng16-16",
    "libstdc++6",
    "openjdk-17-jre-headless",
    "tzdata",
    "zlib1g",
];

/// Environment of the program.
pub(super) const ENVIRONMENT: [(&str, &str); 1] = [("AWS_EXECUTION_ENV", "AWS_Lambda_java17")];

/// Where the client's classes and its native part lie.
const LIBRARIES: &str = "var/runtime/lib";

/// The native part, in the client's archive.
const NATIVE: &str = "jni/libaws-lambda-jni.linux-x86_64.so";

/// How the runtime is started. The virtual machine is told its memory, because where functions run as processes it would
/// see the host's; a part is left to its own structures, threads and native memory. One compiler, one collector, and no
/// file of statistics, as on AWS.
pub(super) fn command() -> Vec<&'static str> {
    vec![
        "/usr/lib/jvm/java-17-openjdk-amd64/bin/java",
        "-XX:MaxRAM={memory_mib}m",
        "-XX:MinRAMPercentage=55",
        "-XX:MaxRAMPercentage=75",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-XX:-UsePerfData",
        "-Xshare:auto",
        "-Dfile.encoding=UTF-8",
        "-Dsun.jnu.encoding=UTF-8",
        "-Dcom.amazonaws.services.lambda.runtime.api.client.runtimeapi.NativeClient.JNI=\
         /var/runtime/lib/libaws-lambda-jni.so",
        "-cp",
        "/var/runtime/lib/*",
        "com.amazonaws.services.lambda.runtime.api.client.AWSLambda",
        "{handler}",
    ]
}

/// Places the client beside the virtual machine.
pub(super) fn add(tree: &mut Tree, archives: &[PathBuf]) -> Result<(), RuntimeBuildError> {
    for (archive, file) in ARCHIVES.iter().zip(archives) {
        let mut content = open(file)?;
        let path = format!("{LIBRARIES}/{}", archive.file_name());
        tree.file(path.as_bytes(), Attributes::root(0o644), &mut content)?;
    }
    let client = archives.first().ok_or_else(missing)?;
    let mut jar =
        ZipArchive::new(open(client)?).map_err(|source| failed(client, io::Error::other(source)))?;
    let mut native = jar.by_name(NATIVE).map_err(|_| missing())?;
    let path = format!("{LIBRARIES}/libaws-lambda-jni.so");
    tree.file(path.as_bytes(), Attributes::root(0o755), &mut native)?;
    Ok(())
}

fn open(file: &Path) -> Result<BufReader<File>, RuntimeBuildError> {
    File::open(file)
        .map(BufReader::new)
        .map_err(|source| failed(file, source))
}

fn failed(path: &Path, source: io::Error) -> RuntimeBuildError {
    RuntimeBuildError::Work {
        path: path.to_path_buf(),
        source,
    }
}

fn missing() -> RuntimeBuildError {
    RuntimeBuildError::IncompleteArchive {
        url: ARCHIVES[0].url,
        file: NATIVE,
    }
}
