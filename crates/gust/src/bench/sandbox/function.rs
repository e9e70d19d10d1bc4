//! The functions whose sandboxes are measured inside one process: source, handler and runtime.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::bench::handlers;

/// A function of one file.
#[derive(Debug, Clone, Copy)]
pub struct Function {
    /// Short name, fit for a directory.
    pub name: &'static str,
    /// The runtime that it is for.
    pub runtime: &'static str,
    /// Its handler, in the runtime's syntax.
    pub handler: &'static str,
    file: &'static str,
    source: &'static str,
}

impl Function {
    /// A Python function with the handler `app.handler`.
    pub const fn python(name: &'static str, source: &'static str) -> Self {
        Self {
            name,
            runtime: "python3.11",
            handler: "app.handler",
            file: "app.py",
            source,
        }
    }

    /// A JavaScript function with the handler `index.handler`.
    pub const fn node(name: &'static str, source: &'static str) -> Self {
        Self {
            name,
            runtime: "nodejs20.x",
            handler: "index.handler",
            file: "index.js",
            source,
        }
    }

    /// Writes its source into a directory, which is made.
    pub fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("make directory {}", dir.display()))?;
        let path = dir.join(self.file);
        fs::write(&path, self.source).with_context(|| format!("write {}", path.display()))
    }
}

/// Answers its event: Python.
pub const ECHO: Function = Function::python("echo", include_str!("functions/echo.py"));
/// json and hashlib: little more than the runtime itself.
pub const PLAIN: Function = Function::python("json-hash", handlers::PLAIN.source);
/// A boto3 client made at import.
pub const BOTO3: Function = Function::python("s3-client", handlers::BOTO3.source);
/// Answers its event: Node.
pub const NODE_ECHO: Function = Function::node("echo-node", include_str!("functions/echo.js"));
/// JSON and a hash: Node.
pub const NODE_PLAIN: Function = Function::node("json-hash-node", include_str!("functions/json-hash.js"));

/// Functions of ten kinds, as the suites of serverless benchmarks have them.
pub const SUITE: [Function; 10] = [
    Function::python("hello", include_str!("functions/suite/hello.py")),
    PLAIN,
    Function::python("aes", include_str!("functions/suite/aes.py")),
    Function::python("template", include_str!("functions/suite/template.py")),
    Function::python("regex", include_str!("functions/suite/regex.py")),
    Function::python("sqlite", include_str!("functions/suite/sqlite.py")),
    Function::python("compress", include_str!("functions/suite/compress.py")),
    Function::python("matrix", include_str!("functions/suite/matrix.py")),
    Function::python("xml", include_str!("functions/suite/xml.py")),
    BOTO3,
];
