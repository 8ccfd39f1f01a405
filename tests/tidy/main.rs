//! The repository checks itself. Each check is a row of [`CHECKS`]; a test beside it plants what it must find.

mod checks;
mod planted;
mod repo;

use repo::{Finding, Repo};
use std::path::Path;

/// A name and what finds its breaches.
type Check = (&'static str, fn(&Repo) -> Vec<Finding>);

const CHECKS: &[Check] = &[
    ("leftovers", checks::leftovers),
    ("commented-out code", checks::commented_out_code),
    ("unsafe says why", checks::unsafe_says_why),
    ("modules say what they are for", checks::module_docs),
    ("an op has its tests and its bench", checks::op_table),
    ("nothing below the command line prints", checks::prints),
    ("length of files and functions", checks::lengths),
    ("README tree", checks::readme_tree),
    ("top level", checks::top_level),
    ("paths of one machine", checks::machine_paths),
    ("size of files", checks::sizes),
];

#[test]
fn the_repository_is_tidy() {
    let repo = Repo::read(Path::new(env!("CARGO_MANIFEST_DIR")));
    assert!(repo.file("Cargo.toml").is_some() && repo.rust().count() > 50, "the walk sees the repository");
    let report: Vec<String> = CHECKS
        .iter()
        .flat_map(|(name, check)| check(&repo).into_iter().map(move |finding| format!("{finding} ({name})")))
        .collect();
    assert!(report.is_empty(), "{} findings:\n{}", report.len(), report.join("\n"));
}
