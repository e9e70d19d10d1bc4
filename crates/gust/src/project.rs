//! What a directory with code says about its function.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, bail};
use gust_control::ids::FunctionName;
use serde::Deserialize;

use crate::{cli::FunctionArgs, detect, exit::Hinted};

/// File with a function's settings, in its directory.
pub const FILE: &str = "gust.toml";

/// Largest source file that is searched for a handler.
const SOURCE_BYTES_MAX: u64 = 1 << 20;

/// Runtimes of what is found.
const PYTHON: &str = "python3.11";
const PROVIDED: &str = "provided.al2023";

/// Modules that are looked at first, in this order, and names of handlers.
const MODULES: &[&str] = &["lambda_function", "app", "index", "main", "handler"];
const FUNCTIONS: &[&str] = &["lambda_handler", "handler", "main"];

/// The settings file. Everything may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    name: Option<String>,
    handler: Option<String>,
    runtime: Option<String>,
    memory: Option<u32>,
    timeout: Option<u32>,
    description: Option<String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
}

/// A function as its directory and the command line describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// Its name.
    pub name: String,
    /// Its handler.
    pub handler: String,
    /// Its runtime.
    pub runtime: String,
    /// Memory, in MiB, when stated.
    pub memory: Option<u32>,
    /// Longest run, in seconds, when stated.
    pub timeout: Option<u32>,
    /// Free text, when stated.
    pub description: Option<String>,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
}

/// Reads a directory; the command line wins over the settings file, which wins over what is found.
pub fn read(dir: &Path, arguments: &FunctionArgs) -> Result<Project> {
    if !dir.is_dir() {
        bail!("{} is no directory", dir.display());
    }
    let path = dir.join(FILE);
    let settings: Settings = match fs::read_to_string(&path) {
        Ok(text) => toml::from_str(&text).with_context(|| format!("read {}", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Settings::default(),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let mut environment = settings.environment;
    for variable in &arguments.environment {
        let (name, value) = variable
            .split_once('=')
            .with_context(|| format!("--env {variable}: NAME=VALUE is needed"))?;
        environment.insert(name.to_owned(), value.to_owned());
    }
    let name = match arguments.name.clone().or(settings.name) {
        Some(name) => name,
        None => directory_name(dir)?,
    };
    if FunctionName::new(&name).is_none() {
        bail!("{name:?} is no function name: letters, digits, - and _, at most 64");
    }
    let runtime = arguments.runtime.clone().or(settings.runtime);
    let (runtime, handler) = match arguments.handler.clone().or(settings.handler) {
        Some(handler) if dir.join("bootstrap").is_file() => {
            (runtime.unwrap_or_else(|| PROVIDED.to_owned()), handler)
        }
        Some(handler) => {
            let found = detect::runtime_of(dir, &handler).unwrap_or(PYTHON);
            (runtime.unwrap_or_else(|| found.to_owned()), handler)
        }
        None => {
            let (found, handler) = find(dir)?;
            (runtime.unwrap_or(found), handler)
        }
    };
    Ok(Project {
        name,
        handler,
        runtime,
        memory: arguments.memory.or(settings.memory),
        timeout: arguments.timeout.or(settings.timeout),
        description: settings.description,
        environment,
        tags: settings.tags,
    })
}

fn directory_name(dir: &Path) -> Result<String> {
    let dir = dir
        .canonicalize()
        .with_context(|| format!("find {}", dir.display()))?;
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    Ok(name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_', "-"))
}

/// Finds runtime and handler.
fn find(dir: &Path) -> Result<(String, String)> {
    let bootstrap = dir.join("bootstrap");
    if let Ok(metadata) = bootstrap.metadata().map(|metadata| metadata.permissions()) {
        if metadata.mode() & 0o111 == 0 {
            let message = format!("{} is not executable", bootstrap.display());
            return Err(Hinted {
                message,
                hint: format!("chmod +x {}", bootstrap.display()),
            }
            .into());
        }
        return Ok((PROVIDED.to_owned(), "bootstrap".to_owned()));
    }
    if let Some(handler) = detect::node_handler(dir)? {
        return Ok((detect::NODE.to_owned(), handler));
    }
    let mut modules: Vec<String> = MODULES.iter().map(|module| (*module).to_owned()).collect();
    let mut others = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let name = entry
            .with_context(|| format!("list {}", dir.display()))?
            .file_name();
        if let Some(module) = name.to_str().and_then(|name| name.strip_suffix(".py"))
            && !MODULES.contains(&module)
        {
            others.push(module.to_owned());
        }
    }
    others.sort();
    modules.extend(others);
    for module in modules {
        if let Some(function) = handler_in(&dir.join(format!("{module}.py")))? {
            return Ok((PYTHON.to_owned(), format!("{module}.{function}")));
        }
    }
    if let Some(explained) = detect::explain(dir) {
        return Err(explained.into());
    }
    let message = format!("no handler was found in {}", dir.display());
    let hint =
        "name it with --handler MODULE.FUNCTION, or put an executable called bootstrap there".to_owned();
    Err(Hinted { message, hint }.into())
}

/// The handler that a Python file defines at its top level.
fn handler_in(path: &Path) -> Result<Option<&'static str>> {
    match path.metadata() {
        Ok(metadata) if metadata.is_file() && metadata.len() <= SOURCE_BYTES_MAX => {}
        Ok(_) | Err(_) => return Ok(None),
    }
    let source = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let source = String::from_utf8_lossy(&source);
    let defines = |function: &str| {
        source.lines().any(|line| {
            let defined = line
                .strip_prefix("def ")
                .and_then(|rest| rest.strip_prefix(function));
            let assigned = line.strip_prefix(function);
            defined.is_some_and(|rest| rest.trim_start().starts_with('('))
                || assigned.is_some_and(|rest| rest.trim_start().starts_with('='))
        })
    };
    Ok(FUNCTIONS.iter().find(|function| defines(function)).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[(&str, &str)], expected: Option<(&str, &str)>) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let found = find(dir.path()).ok();
        let expected = expected.map(|(runtime, handler)| (runtime.to_owned(), handler.to_owned()));
        assert_eq!(found, expected, "{files:?}");
    }

    #[test]
    fn handlers_are_found() {
        let lambda = "def lambda_handler(event, context):\n    pass\n";
        let python = |handler| Some(("python3.11", handler));
        check(
            &[("lambda_function.py", lambda)],
            python("lambda_function.lambda_handler"),
        );
        check(
            &[("app.py", "def handler(e, c): pass"), ("util.py", lambda)],
            python("app.handler"),
        );
        check(&[("index.py", "handler = make()\n")], python("index.handler"));
        check(&[("main.py", "def main (e, c):\n")], python("main.main"));
        check(&[("zebra.py", lambda)], python("zebra.lambda_handler"));
        check(
            &[(
                "app.py",
                "    def handler(self): pass\n# def handler(x)\ndef handlers(): pass",
            )],
            None,
        );
        check(&[], None);
        let node = |handler| Some(("nodejs20.x", handler));
        check(
            &[("index.mjs", "export const handler = async () => {};\n")],
            node("index.handler"),
        );
        check(
            &[("app.js", "\nexports.lambdaHandler = f;"), ("package.json", "{}")],
            node("app.lambdaHandler"),
        );
        check(&[("go.mod", "module m"), ("main.go", "package main")], None);
        check(&[("pom.xml", "<project/>")], None);
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let text = "name = 'n'\nhandler = 'a.b'\nruntime = 'python3.11'\nmemory = 256\n[environment]\nA = '1'\nB = '1'\n";
        fs::write(dir.path().join(FILE), text).unwrap();
        let arguments = FunctionArgs {
            memory: Some(512),
            environment: vec!["B=2=3".to_owned()],
            ..FunctionArgs::default()
        };
        let project = read(dir.path(), &arguments).unwrap();
        assert_eq!((project.name.as_str(), project.memory), ("n", Some(512)));
        let environment = [("A", "1"), ("B", "2=3")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(project.environment, BTreeMap::from(environment));
        fs::write(dir.path().join(FILE), "memry = 1").unwrap();
        assert!(read(dir.path(), &arguments).is_err());
    }

    #[test]
    fn a_bootstrap_must_be_executable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bootstrap");
        fs::write(&path, "#!/bin/sh").unwrap();
        assert!(
            find(dir.path())
                .unwrap_err()
                .to_string()
                .contains("not executable")
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find(dir.path()).unwrap().0, "provided.al2023");
    }
}
