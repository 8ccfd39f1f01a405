//! The checks: each takes the repository and returns what it finds.

use super::repo::{File, Finding, Repo, words};
use std::collections::BTreeSet;

/// What must not be left behind in code, and in comments and other text.
const LEFTOVER_CODE: &[&str] =
    &["dbg!(", "todo!(", "unimplemented!(", "#[ignore", "#[allow(dead_code", "#![allow(dead_code", "clippy::all"];
/// Split, so that this file is not its own finding.
const LEFTOVER_TEXT: [&str; 2] = [concat!("FIX", "ME"), concat!("XX", "X")];

pub fn leftovers(repo: &Repo) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &repo.files {
        for (i, line) in file.lines.iter().enumerate() {
            let found = LEFTOVER_CODE.iter().filter(|pattern| {
                let code = line.code.replace(' ', "");
                let longer_name = |at: usize| code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
                code.match_indices(**pattern).any(|(at, _)| pattern.starts_with('#') || !longer_name(at))
            });
            findings.extend(found.map(|pattern| file.finding(i + 1, format!("{pattern} left behind"))));
        }
        for (i, line) in file.text.lines().enumerate() {
            let found = LEFTOVER_TEXT.iter().filter(|word| words(line, word).next().is_some());
            findings.extend(found.map(|word| file.finding(i + 1, format!("{word} left behind"))));
        }
    }
    findings
}

/// What begins a line of code rather than of prose.
const STATEMENTS: &[&str] = &[
    "let ", "use ", "pub ", "fn ", "if ", "for ", "while ", "match ", "return ", "impl ", "struct ", "enum ", "mod ",
    "assert", "}", "#[",
];

pub fn commented_out_code(repo: &Repo) -> Vec<Finding> {
    let is_code = |comment: &str| {
        let Some(text) = comment.strip_prefix("//") else { return false };
        if text.starts_with(['/', '!']) {
            return false; // documentation, where examples are at home
        }
        let text = text.trim();
        let ends_like_code = text.ends_with([';', '{']) || text == "}" || text.ends_with("})");
        let reads_like_code = STATEMENTS.iter().any(|start| text.starts_with(start))
            || [" = ", "(", "::", " += "].iter().any(|mark| text.contains(mark)) && !text.contains(", which ");
        ends_like_code && reads_like_code
    };
    each_line(repo, |file, i| {
        let line = &file.lines[i];
        (line.code.trim().is_empty() && is_code(&line.comment)).then(|| "commented-out code".to_string())
    })
}

/// A reason must stand on the line itself or at most this many lines above.
const REASON_LINES: usize = 6;

pub fn unsafe_says_why(repo: &Repo) -> Vec<Finding> {
    each_line(repo, |file, i| {
        let code = &file.lines[i].code;
        let mut kinds = words(code, "unsafe").map(|at| code[at + "unsafe".len()..].trim_start());
        let missing = kinds.find(|rest| {
            if rest.starts_with("fn(") || rest.starts_with("extern \"\" fn(") {
                return false; // a type
            }
            let is_function = rest.starts_with("fn ") || rest.starts_with("extern \"\" fn ");
            !(comments_above(file, i, "SAFETY:") || is_function && documents_safety(file, i))
        });
        missing.map(|rest| {
            let remedy = if rest.starts_with("fn ") { "# Safety section" } else { "// SAFETY: comment" };
            format!("unsafe without a {remedy}")
        })
    })
}

fn comments_above(file: &File, i: usize, mark: &str) -> bool {
    file.lines[i.saturating_sub(REASON_LINES)..=i].iter().any(|line| line.comment.contains(mark))
}

/// Whether the doc comment and attributes right above line `i` have a safety section.
fn documents_safety(file: &File, i: usize) -> bool {
    let above = file.lines[..i].iter().rev();
    let mut docs = above.take_while(|line| line.code.trim().is_empty() || line.code.trim().starts_with("#["));
    docs.any(|line| line.comment.contains("# Safety"))
}

pub fn module_docs(repo: &Repo) -> Vec<Finding> {
    let sources = repo.rust().filter(|file| file.path.starts_with("src/") || file.path == "build.rs");
    let bare = sources.filter(|file| !file.text.starts_with("//!"));
    bare.map(|file| file.finding(1, "does not open with `//!` and what it is for")).collect()
}

pub fn op_table(repo: &Repo) -> Vec<Finding> {
    let mut findings = Vec::new();
    let benches: Vec<&File> = repo.rust().filter(|file| file.path.starts_with("src/bench/")).collect();
    for file in repo.rust() {
        let Some(op) = file.path.strip_prefix("src/ops/").and_then(|name| name.strip_suffix(".rs")) else { continue };
        if op == "mod" || op.contains('/') {
            continue; // a part of an op lies in a folder of the op's name
        }
        if !repo.has(&format!("tests/ops/{op}.rs")) {
            findings.push(file.finding(1, format!("no tests/ops/{op}.rs")));
        }
        if !benches.iter().any(|bench| bench.text.contains(&format!("[\"{op}\","))) {
            findings.push(file.finding(1, format!("no row [\"{op}\", ...] in src/bench/")));
        }
    }
    findings
}

pub fn prints(repo: &Repo) -> Vec<Finding> {
    each_line(repo, |file, i| {
        let below = file.path.starts_with("src/") && !file.path.starts_with("src/cli/") && file.path != "src/main.rs";
        let code = &file.lines[i].code;
        let found = ["println", "eprintln", "print", "eprint"]
            .into_iter()
            .find(|name| words(code, name).any(|at| code[at + name.len()..].starts_with('!')));
        found.filter(|_| below).map(|name| format!("{name}! outside src/cli"))
    })
}

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 100;
/// `path` or `path function`, and why it may be longer.
const LONG: &[(&str, &str)] = &[];

pub fn lengths(repo: &Repo) -> Vec<Finding> {
    let mut findings = Vec::new();
    let excused = |what: &str| LONG.iter().any(|(name, _)| *name == what);
    for file in repo.rust() {
        let lines = file.text.lines().count();
        if lines > FILE_LINES_MAX && !excused(&file.path) {
            findings.push(file.finding(1, format!("{lines} lines, more than {FILE_LINES_MAX}")));
        }
        for function in functions(file) {
            let (name, lines) = (&function.name, function.lines);
            if lines > FUNCTION_LINES_MAX && !excused(&format!("{} {name}", file.path)) {
                let what = format!("function {name} has {lines} lines, more than {FUNCTION_LINES_MAX}");
                findings.push(file.finding(function.line, what));
            }
        }
    }
    findings
}

struct Function {
    name: String,
    line: usize,
    lines: usize,
}

/// Every function with a body, inner ones too.
fn functions(file: &File) -> Vec<Function> {
    let mut found = Vec::new();
    for (i, line) in file.lines.iter().enumerate() {
        for at in words(&line.code, "fn") {
            let rest = line.code[at + 2..].trim_start();
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if name.is_empty() {
                continue; // a type
            }
            if let Some(last) = last_line_of_body(file, i, at) {
                found.push(Function { name, line: i + 1, lines: last - i + 1 });
            }
        }
    }
    found
}

/// Index of the line where the body that follows closes; none where a semicolon comes first.
fn last_line_of_body(file: &File, first: usize, from: usize) -> Option<usize> {
    let (mut braces, mut nested) = (0usize, 0usize);
    for (i, line) in file.lines.iter().enumerate().skip(first) {
        let code = if i == first { &line.code[from..] } else { &line.code };
        for c in code.chars() {
            match c {
                '(' | '[' => nested += 1,
                ')' | ']' => nested = nested.saturating_sub(1),
                ';' if braces == 0 && nested == 0 => return None,
                '{' => braces += 1,
                '}' if braces <= 1 => return Some(i),
                '}' => braces -= 1,
                _ => {}
            }
        }
    }
    None
}

const TREE_START: &str = "<!-- tree -->";
const TREE_END: &str = "<!-- /tree -->";

/// The tree of the README: a fenced block between the two marks. Each line names paths (parted by one space), then after
/// two spaces or more a remark. A name is relative to the folder (`name/`) above it that is indented less.
pub fn readme_tree(repo: &Repo) -> Vec<Finding> {
    let absent = |what: &str| vec![Finding { path: "README.md".into(), line: 1, what: what.into() }];
    let Some(readme) = repo.file("README.md") else { return absent("there is no README.md") };
    let start = readme.text.lines().position(|line| line.trim() == TREE_START);
    let end = readme.text.lines().position(|line| line.trim() == TREE_END);
    let (Some(start), Some(end)) = (start, end) else { return absent("no tree between its two marks") };
    let (mut findings, mut named) = (Vec::new(), BTreeSet::new());
    let mut folders: Vec<(usize, String)> = Vec::new();
    for (i, line) in readme.text.lines().enumerate().take(end).skip(start + 1) {
        let body = line.trim_start();
        if body.is_empty() || body.starts_with("```") {
            continue;
        }
        let indent = line.len() - body.len();
        folders.retain(|(depth, _)| *depth < indent);
        let prefix = folders.last().map_or(String::new(), |(_, folder)| folder.clone());
        for name in body.split("  ").next().unwrap_or_default().split_whitespace() {
            let path = format!("{prefix}{}", name.trim_end_matches(','));
            let kind_differs = repo.file(&path).is_none() && !path.ends_with('/');
            if !repo.has(&path) || kind_differs {
                findings.push(readme.finding(i + 1, format!("the tree names {path}, which is not there")));
            }
            if path.ends_with('/') {
                folders.push((indent, path.clone()));
            }
            named.insert(path);
        }
    }
    let ordinary =
        |name: &String| !name.starts_with('.') && !["README.md", "Cargo.lock", "rustfmt.toml"].contains(&name.as_str());
    let top = repo.children("").into_iter().filter(ordinary);
    let modules =
        repo.children("src/").into_iter().filter(|name| name.ends_with('/')).map(|name| format!("src/{name}"));
    let unnamed = top.chain(modules).filter(|path| !named.contains(path));
    findings.extend(unnamed.map(|path| readme.finding(start + 1, format!("the tree does not name {path}"))));
    findings
}

const TOP_LEVEL: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "build.rs",
    "README.md",
    "kernels/",
    "src/",
    "tests/",
    "benches/",
    "tools/",
    ".ci/",
    ".gitignore",
    "rustfmt.toml",
];

pub fn top_level(repo: &Repo) -> Vec<Finding> {
    let strangers = repo.children("").into_iter().filter(|name| !TOP_LEVEL.contains(&name.as_str()));
    strangers.map(|name| Finding { path: name, line: 1, what: "does not belong at the top level".into() }).collect()
}

/// Homes of people and of build machines. Split, so that this file is not its own finding.
const MACHINE_PATHS: [&str; 3] = [concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/wo", "rk/")];

pub fn machine_paths(repo: &Repo) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &repo.files {
        for (i, line) in file.text.lines().enumerate() {
            let found = MACHINE_PATHS.iter().filter(|path| {
                let absolute = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}~".contains(c));
                line.match_indices(**path).any(|(at, _)| absolute(at))
            });
            findings.extend(found.map(|path| file.finding(i + 1, format!("a path of one machine: {path}"))));
        }
    }
    findings
}

const FILE_BYTES_MAX: u64 = 1 << 20;

pub fn sizes(repo: &Repo) -> Vec<Finding> {
    let large = repo.files.iter().filter(|file| file.size_bytes > FILE_BYTES_MAX);
    large.map(|file| file.finding(1, format!("{} bytes, more than {FILE_BYTES_MAX}", file.size_bytes))).collect()
}

/// Applies `look` to every line of every Rust file.
fn each_line(repo: &Repo, look: impl Fn(&File, usize) -> Option<String>) -> Vec<Finding> {
    let lines = repo.rust().flat_map(|file| (0..file.lines.len()).map(move |i| (file, i)));
    lines.filter_map(|(file, i)| look(file, i).map(|what| file.finding(i + 1, what))).collect()
}
