//! For every check a planted breach that it must find, and a look-alike that it must not.

use super::checks;
use super::repo::{Finding, Repo};

/// Lines of `path` that the check finds, in order.
fn lines(check: fn(&Repo) -> Vec<Finding>, path: &str, text: &str) -> Vec<usize> {
    check(&Repo::of(&[(path, text)])).iter().map(|finding| finding.line).collect()
}

#[test]
fn leftovers() {
    let text =
        "fn a() { dbg!(1); }\nfn b() { todo!() }\n#[ignore]\n#![allow(dead_code)]\nlet s = \"dbg!(\";\nmy_dbg!(1);";
    assert_eq!(lines(checks::leftovers, "src/a.rs", text), [1, 2, 3, 4]);
    let word = concat!("FIX", "ME");
    assert_eq!(lines(checks::leftovers, "tools/a.py", &format!("x = 1\n# {word}: later")), [2]);
    assert_eq!(lines(checks::leftovers, "tests/a.rs", &format!("// {word} later")), [1]);
}

#[test]
fn commented_out_code() {
    let text = "// let x = 1;\n// for a in b {\n//! let x = 1;\n// A sentence; another one.\nlet y = 2; // x = 1;\n// call(a, b);\n// first this;\n";
    assert_eq!(lines(checks::commented_out_code, "src/a.rs", text), [1, 2, 6]);
}

#[test]
fn unsafe_says_why() {
    let good = "// SAFETY: in bounds.\nlet x = unsafe { *p };\n/// Reads.\n///\n/// # Safety\n/// p is valid.\n#[inline]\npub unsafe fn f(p: *const u8) {}\ntype F = unsafe fn(u8);\n// unsafe\nlet s = \"unsafe {\";\n";
    assert_eq!(lines(checks::unsafe_says_why, "src/a.rs", good), [0; 0]);
    let bad = "let x = unsafe { *p };\nunsafe impl Send for X {}\n/// Reads.\npub unsafe fn f(p: *const u8) {}\n";
    assert_eq!(lines(checks::unsafe_says_why, "src/a.rs", bad), [1, 2, 4]);
    let far = format!("// SAFETY: far away.\n{}unsafe {{ f() }}", "a();\n".repeat(7));
    assert_eq!(lines(checks::unsafe_says_why, "src/a.rs", &far), [9]);
}

#[test]
fn module_docs() {
    assert_eq!(lines(checks::module_docs, "src/a.rs", "use b;\n"), [1]);
    assert_eq!(lines(checks::module_docs, "src/a.rs", "//! What.\n"), [0; 0]);
    assert_eq!(lines(checks::module_docs, "tests/a.rs", "use b;\n"), [0; 0]);
}

#[test]
fn op_table() {
    let files = |test: &'static str, bench: &'static str| {
        Repo::of(&[("src/ops/mod.rs", ""), ("src/ops/gelu.rs", ""), (test, ""), ("src/bench/rows.rs", bench)])
    };
    let count = |test, bench| checks::op_table(&files(test, bench)).len();
    assert_eq!(count("tests/ops/gelu.rs", "new([\"gelu\", \"fwd\"])"), 0);
    let part = [("src/ops/gelu/gpu.rs", ""), ("src/bench/rows.rs", "")];
    assert_eq!(checks::op_table(&Repo::of(&part)).len(), 0);
    assert_eq!(count("tests/ops/gelu.rs", "new([\"geluish\", \"fwd\"])"), 1);
    assert_eq!(count("tests/ops/other.rs", "new([\"gelu\", \"fwd\"])"), 1);
}

#[test]
fn prints() {
    let text = "println!();\neprint!(\"x\");\nwriteln!(f)?;\n// println!()\n";
    assert_eq!(lines(checks::prints, "src/model/a.rs", text), [1, 2]);
    assert_eq!(lines(checks::prints, "src/cli/a.rs", text), [0; 0]);
    assert_eq!(lines(checks::prints, "src/main.rs", text), [0; 0]);
}

#[test]
fn lengths() {
    let function =
        |lines: usize| format!("trait T {{ fn a();\n}}\nfn b(x: [u8; 3]) {{\n{}}}\n", "{ x(); }\n".repeat(lines));
    assert_eq!(lines(checks::lengths, "src/a.rs", &function(98)), [0; 0]);
    assert_eq!(lines(checks::lengths, "src/a.rs", &function(99)), [3]);
    assert_eq!(lines(checks::lengths, "src/a.rs", &"\n".repeat(600)), [0; 0]);
    assert_eq!(lines(checks::lengths, "src/a.rs", &"\n".repeat(601)), [1]);
}

#[test]
fn readme_tree() {
    let files = ["Cargo.toml", "src/lib.rs", "src/ops/add.rs", "src/model/gpt.rs", "tools/test", ".gitignore"];
    let report = |tree: &str| {
        let readme = format!("# X\n<!-- tree -->\n```\n{tree}```\n<!-- /tree -->\n");
        let mut all: Vec<(&str, &str)> = files.iter().map(|path| (*path, "")).collect();
        all.push(("README.md", &readme));
        checks::readme_tree(&Repo::of(&all)).iter().map(|finding| finding.to_string()).collect::<Vec<_>>()
    };
    let good = "Cargo.toml   the package\nsrc/  \n  lib.rs   reading order\n  ops/     one file per op\n    add.rs\n  model/\ntools/   helpers\n";
    assert_eq!(report(good), [""; 0]);
    assert_eq!(report(&good.replace("  model/\n", "")), ["README.md:2: the tree does not name src/model/"]);
    assert_eq!(report(&good.replace("tools/ ", "tool/ ")).len(), 2);
    assert_eq!(
        report(&good.replace("add.rs", "sub.rs")),
        ["README.md:8: the tree names src/ops/sub.rs, which is not there"]
    );
    assert_eq!(checks::readme_tree(&Repo::of(&[("Cargo.toml", "")])).len(), 1);
    assert_eq!(checks::readme_tree(&Repo::of(&[("README.md", "no marks")])).len(), 1);
}

#[test]
fn top_level() {
    let repo = Repo::of(&[("Cargo.toml", ""), ("notes.txt", ""), ("scratch/a.rs", ""), ("src/lib.rs", "")]);
    let found: Vec<String> = checks::top_level(&repo).into_iter().map(|finding| finding.path).collect();
    assert_eq!(found, ["notes.txt", "scratch/"]);
}

#[test]
fn machine_paths() {
    let text = [
        concat!("cd /ro", "ot/x"),
        "cd /usr/local/",
        concat!("https://example.com/ho", "me/"),
        concat!("\"/wo", "rk/a\""),
    ];
    assert_eq!(lines(checks::machine_paths, "tools/a", &text.join("\n")), [1, 4]);
}

#[test]
fn sizes() {
    let large = "x".repeat((1 << 20) + 1);
    assert_eq!(lines(checks::sizes, "tests/a.bin", &large), [1]);
    assert_eq!(lines(checks::sizes, "tests/a.bin", &large[1..]), [0; 0]);
}
