//! ARCHITECTURE.md must not drift from the workspace.

use std::{collections::BTreeSet, fs, path::Path};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the crate lies two levels below the root")
}

/// The first cells of the table under a heading.
fn first_cells(text: &str, heading: &str) -> BTreeSet<String> {
    let (_, section) = text
        .split_once(&format!("## {heading}\n"))
        .expect("the heading is there");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.filter_map(|row| row.split('|').nth(1))
        .map(|cell| cell.trim().replace('`', ""))
        .collect()
}

#[test]
fn every_crate_has_a_reason() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let crates = fs::read_dir(root().join("crates")).unwrap();
    let crates: BTreeSet<String> = crates
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(first_cells(&text, "Crates"), crates);
}

#[test]
fn every_dependency_has_a_reason() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let named: BTreeSet<String> = first_cells(&text, "Dependencies")
        .iter()
        .flat_map(|cell| cell.split(", ").map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml"))
        .unwrap()
        .parse()
        .unwrap();
    let dependencies = manifest["workspace"]["dependencies"].as_table().unwrap();
    let used: BTreeSet<String> = dependencies
        .keys()
        .filter(|name| !name.starts_with("gust-"))
        .cloned()
        .collect();
    assert_eq!(named, used);
}

#[test]
fn bad_input_names_tests_that_there_are() {
    let text = fs::read_to_string(root().join("docs/bad-input.md")).unwrap();
    let mut named = 0;
    for row in text
        .lines()
        .filter(|line| line.starts_with('|') && line.contains("::"))
    {
        let cell = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        let (file, test) = cell.trim().trim_matches('`').split_once("::").expect(row);
        let source = fs::read_to_string(root().join(file)).expect(row);
        let is_there =
            source.contains(&format!("def {test}(")) || source.contains(&format!("#[test]\nfn {test}("));
        assert!(is_there, "{row}");
        named += 1;
    }
    assert!(named > 30, "the tables are read");
}
