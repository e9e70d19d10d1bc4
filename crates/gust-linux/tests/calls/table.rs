//! The table of system calls as `docs/system-calls.md` shows it.

use std::fmt::Write as _;

use gust_linux::Support;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/system-calls.md");

fn document() -> String {
    let calls: Vec<_> = gust_linux::support().collect();
    let full = calls
        .iter()
        .filter(|(_, _, support)| *support == Support::Full)
        .count();
    let mut text = format!(
        "# System calls\n\n\
         What a guest's kernel answers, generated from its table (`crates/gust-linux/src/syscalls/table.rs`) by\n\
         `GUST_WRITE_DOCS=1 cargo test -p gust-linux --test calls`. {} calls are there, {full} of them in full; any other gives\n\
         `ENOSYS`. *Accepted* calls succeed and do nothing, because there is nothing that they could do here.\n\n\
         | number | name | support | what is missing, or why |\n|---|---|---|---|\n",
        calls.len()
    );
    for (number, name, support) in calls {
        let (word, why) = match support {
            Support::Full => ("full", ""),
            Support::Partial(why) => ("partial", why),
            Support::Accepted(why) => ("accepted", why),
            Support::Refused(why) => ("refused", why),
        };
        writeln!(text, "| {number} | `{name}` | {word} | {why} |").unwrap();
    }
    text
}

#[test]
fn the_document_is_the_table() {
    let document = document();
    if std::env::var_os("GUST_WRITE_DOCS").is_some() {
        std::fs::write(PATH, &document).unwrap();
    }
    let written = std::fs::read_to_string(PATH).unwrap_or_default();
    assert!(
        written == document,
        "docs/system-calls.md is not the table's: GUST_WRITE_DOCS=1 cargo test -p gust-linux --test calls"
    );
}
