//! What Gust's cold starts are compared with, each started and asked in the way that is cheapest for it.

mod container;
mod ministack;
mod python;
mod venv;

pub use container::{Container, Idle};
pub use ministack::MiniStack;
pub use python::Python;
pub use venv::Venv;

/// What a bare interpreter runs: it takes the event from standard input, and prints the answer. Its argument is the
/// directory of the function's code.
const SCRIPT: &str = "\
import json, sys
sys.path.insert(0, sys.argv[1])
from app import handler
print(json.dumps(handler(json.load(sys.stdin), None)))
";
