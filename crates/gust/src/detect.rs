//! Which language the code in a directory is written in, and where its handler is, as far as that can be told.
//!
//! JavaScript is read for names that a module exports. Java and Go are known by their build files; neither source can be
//! deployed as it is, so what is missing is said.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::exit::Hinted;

/// Runtimes of what is found.
pub const NODE: &str = "nodejs20.x";
/// See [`NODE`].
pub const JAVA: &str = "java17";

/// Largest source file that is searched for a handler.
const SOURCE_BYTES_MAX: u64 = 1 << 20;

/// Most entries of a directory that are looked at.
const ENTRIES_MAX: usize = 10_000;

/// Modules that are looked at first, in this order, their endings, and names of handlers.
const MODULES: &[&str] = &["index", "app", "main", "handler", "lambda"];
const ENDINGS: &[&str] = &["mjs", "js", "cjs"];
const FUNCTIONS: &[&str] = &["handler", "lambdaHandler", "main"];

/// Files that say how a Java program is built.
const JAVA_BUILDS: &[&str] = &["pom.xml", "build.gradle", "build.gradle.kts"];

/// The runtime of a function whose handler is known; `None` when nothing in the directory tells.
pub fn runtime_of(dir: &Path, handler: &str) -> Option<&'static str> {
    let module = handler.split('.').next().unwrap_or_default();
    let is_script = || {
        ENDINGS
            .iter()
            .any(|ending| dir.join(format!("{module}.{ending}")).is_file())
    };
    if handler.contains("::") || has_java(dir) {
        Some(JAVA)
    } else if dir.join("package.json").is_file() || is_script() {
        Some(NODE)
    } else {
        None
    }
}

/// The handler of JavaScript in a directory.
pub fn node_handler(dir: &Path) -> Result<Option<String>> {
    for module in MODULES {
        for ending in ENDINGS {
            if let Some(function) = exported_by(&dir.join(format!("{module}.{ending}")))? {
                return Ok(Some(format!("{module}.{function}")));
            }
        }
    }
    Ok(None)
}

/// What to do where there is only code that has to be built first, or whose handler cannot be told.
pub fn explain(dir: &Path) -> Option<Hinted> {
    let shown = dir.display();
    if dir.join("go.mod").is_file() {
        return Some(Hinted {
            message: format!("{shown} holds a program in Go that has not been built"),
            hint: "build it into a directory of its own, and deploy that: CGO_ENABLED=0 go build -tags lambda.norpc \
                   -o function/bootstrap . && gust deploy function"
                .to_owned(),
        });
    }
    if has_java(dir) {
        return Some(Hinted {
            message: format!("the handler of the Java function in {shown} cannot be told"),
            hint: "name it with --handler package.Class::method, and deploy the directory with the jar files in lib/"
                .to_owned(),
        });
    }
    None
}

fn has_java(dir: &Path) -> bool {
    JAVA_BUILDS.iter().any(|name| dir.join(name).is_file())
        || [dir.to_path_buf(), dir.join("lib")]
            .iter()
            .any(|dir| has_jar(dir.as_path()))
}

fn has_jar(dir: &Path) -> bool {
    let entries = fs::read_dir(dir).into_iter().flatten().take(ENTRIES_MAX);
    entries.flatten().any(|entry| {
        Path::new(&entry.file_name())
            .extension()
            .is_some_and(|ending| ending == "jar")
    })
}

/// The handler that a JavaScript file exports.
fn exported_by(path: &Path) -> Result<Option<&'static str>> {
    match path.metadata() {
        Ok(metadata) if metadata.is_file() && metadata.len() <= SOURCE_BYTES_MAX => {}
        Ok(_) | Err(_) => return Ok(None),
    }
    let source = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let source = String::from_utf8_lossy(&source);
    let exports = |function: &str| source.lines().any(|line| is_export(line.trim_start(), function));
    Ok(FUNCTIONS.iter().find(|function| exports(function)).copied())
}

/// Whether a line exports a name: `exports.NAME =`, `export const NAME =`, `export async function NAME(`.
fn is_export(line: &str, name: &str) -> bool {
    let assigned = line
        .strip_prefix("module.")
        .unwrap_or(line)
        .strip_prefix("exports.")
        .and_then(|rest| rest.strip_prefix(name))
        .is_some_and(|rest| rest.trim_start().starts_with('='));
    let Some(exported) = line.strip_prefix("export ") else {
        return assigned;
    };
    let mut words = exported
        .split(|c: char| c.is_whitespace() || "(=*{},;".contains(c))
        .filter(|word| !word.is_empty());
    words
        .find(|word| !["async", "function", "const", "let", "var"].contains(word))
        .is_some_and(|word| word == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_of_both_kinds_of_modules_are_found() {
        let check = |line: &str, expected: bool| assert_eq!(is_export(line, "handler"), expected, "{line}");
        for line in [
            "exports.handler = async (event) => event;",
            "module.exports.handler=f",
            "export const handler = async () => {};",
            "export async function handler(event) {",
            "export function handler (event) {",
            "export { handler };",
        ] {
            check(line, true);
        }
        for line in [
            "// exports.handler = 1",
            "exports.handlers = 1",
            "export const handlers = []",
            "export default handler",
            "const handler = 1",
        ] {
            check(line, false);
        }
    }

    #[test]
    fn languages_are_told_by_their_files() {
        let check = |files: &[&str], handler: &str, expected: Option<&str>| {
            let dir = tempfile::tempdir().unwrap();
            for file in files {
                let path = dir.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
            assert_eq!(runtime_of(dir.path(), handler), expected, "{files:?} {handler}");
        };
        check(&["package.json"], "src/app.handler", Some(NODE));
        check(&["index.mjs"], "index.handler", Some(NODE));
        check(&["lib/function.jar"], "example.Hello", Some(JAVA));
        check(&["pom.xml"], "example.Hello", Some(JAVA));
        check(&["example/Hello.class"], "example.Hello::handle", Some(JAVA));
        check(&["app.py"], "app.handler", None);
    }
}
