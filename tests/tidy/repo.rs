//! The repository as data: its files, and Rust source taken apart into code and comments.

use std::fmt;
use std::path::Path;

/// The files under test, and what was found wrong with them.
#[derive(Default)]
pub struct Repo {
    pub files: Vec<File>,
}

/// One file; `text` is empty where it is not UTF-8.
pub struct File {
    /// Relative to the root, with `/`.
    pub path: String,
    pub size_bytes: u64,
    pub text: String,
    /// Of Rust files only.
    pub lines: Vec<Line>,
}

/// A line of Rust: what the compiler reads, with the content of literals blanked, and what it does not.
#[derive(Default, Clone)]
pub struct Line {
    pub code: String,
    /// From the slashes on, doc comments too.
    pub comment: String,
}

/// What is wrong, and where.
pub struct Finding {
    pub path: String,
    /// From 1.
    pub line: usize,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// Folders of the root that are not part of the repository: what `.gitignore` names, and git's own.
const SKIPPED: &[&str] = &[".git", "target", ".fixtures", "runs", ".cuda", ".gpu", ".venv"];

impl Repo {
    /// Everything under `root` but [`SKIPPED`] folders of it.
    pub fn read(root: &Path) -> Repo {
        let mut repo = Repo::default();
        repo.walk(root, root);
        repo.files.sort_by(|a, b| a.path.cmp(&b.path));
        repo
    }

    fn walk(&mut self, root: &Path, folder: &Path) {
        for entry in std::fs::read_dir(folder).expect("a readable folder").flatten() {
            let path = entry.path();
            let name = path.strip_prefix(root).expect("below the root").to_string_lossy().replace('\\', "/");
            if SKIPPED.contains(&name.as_str()) || name.ends_with("__pycache__") {
                continue;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.walk(root, &path);
            } else {
                let bytes = std::fs::read(&path).expect("a readable file");
                let size_bytes = bytes.len() as u64;
                self.files.push(File::new(&name, size_bytes, &String::from_utf8(bytes).unwrap_or_default()));
            }
        }
    }

    /// A repository of these files: `(path, text)`.
    pub fn of(files: &[(&str, &str)]) -> Repo {
        Repo { files: files.iter().map(|(path, text)| File::new(path, text.len() as u64, text)).collect() }
    }

    pub fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Whether a file or folder of this path exists.
    pub fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let inside = |file: &File| file.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
        self.file(path).is_some() || self.files.iter().any(inside)
    }

    /// Names directly under `folder` (`""` for the root), folders with a trailing `/`, sorted, each once.
    pub fn children(&self, folder: &str) -> Vec<String> {
        let below = self.files.iter().filter_map(|file| file.path.strip_prefix(folder));
        let mut names: Vec<String> = below
            .map(|rest| match rest.split_once('/') {
                Some((folder, _)) => format!("{folder}/"),
                None => rest.to_string(),
            })
            .collect();
        names.sort();
        names.dedup();
        names
    }

    pub fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.path.ends_with(".rs"))
    }
}

impl File {
    fn new(path: &str, size_bytes: u64, text: &str) -> File {
        let lines = if path.ends_with(".rs") { split(text) } else { Vec::new() };
        File { path: path.to_string(), size_bytes, text: text.to_string(), lines }
    }

    /// A finding in this file; `line` from 1.
    pub fn finding(&self, line: usize, what: impl Into<String>) -> Finding {
        Finding { path: self.path.clone(), line, what: what.into() }
    }
}

/// Where the scanner is.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Code,
    LineComment,
    /// Depth of nesting.
    BlockComment(usize),
    /// Ends at a quote with this many hashes; `None` for a literal with escapes.
    Str(Option<usize>),
}

/// Takes Rust apart. Literals keep their quotes and lose their content.
pub fn split(text: &str) -> Vec<Line> {
    let chars: Vec<char> = text.chars().collect();
    let (mut lines, mut line, mut mode, mut i) = (Vec::new(), Line::default(), Mode::Code, 0);
    let at = |i: usize| chars.get(i).copied().unwrap_or('\n');
    while i < chars.len() {
        let c = chars[i];
        if c == '\n' {
            lines.push(std::mem::take(&mut line));
            mode = if mode == Mode::LineComment { Mode::Code } else { mode };
            i += 1;
            continue;
        }
        let mut taken = 1;
        match mode {
            Mode::LineComment => line.comment.push(c),
            Mode::BlockComment(depth) => {
                line.comment.push(c);
                let step = (c, at(i + 1));
                if step == ('*', '/') || step == ('/', '*') {
                    line.comment.push(at(i + 1));
                    taken = 2;
                    let depth = if c == '/' { depth + 1 } else { depth - 1 };
                    mode = if depth == 0 { Mode::Code } else { Mode::BlockComment(depth) };
                }
            }
            Mode::Str(None) if c == '\\' && at(i + 1) != '\n' => taken = 2,
            Mode::Str(hashes) => {
                let hashes = hashes.unwrap_or(0);
                if c == '"' && (1..=hashes).all(|k| at(i + k) == '#') {
                    line.code.push('"');
                    (mode, taken) = (Mode::Code, 1 + hashes);
                }
            }
            Mode::Code if c == '/' && at(i + 1) == '/' => {
                line.comment.push('/');
                mode = Mode::LineComment;
            }
            Mode::Code if c == '/' && at(i + 1) == '*' => {
                line.comment.push_str("/*");
                (mode, taken) = (Mode::BlockComment(1), 2);
            }
            Mode::Code if c == '"' => {
                line.code.push('"');
                mode = Mode::Str(raw_hashes(&line.code));
                if let Mode::Str(Some(_)) = mode {
                    line.code.truncate(line.code.trim_end_matches(['"', '#']).len());
                    line.code.push('"');
                }
            }
            Mode::Code if c == '\'' => {
                line.code.push('\'');
                taken = character_literal(&chars[i..]).unwrap_or(1);
            }
            Mode::Code => line.code.push(c),
        }
        i += taken;
    }
    lines.push(line);
    lines
}

/// The number of hashes where `code`, which ends in a quote, opens a raw literal (`r"`, `br##"`).
fn raw_hashes(code: &str) -> Option<usize> {
    let before = code.strip_suffix('"')?;
    let prefix = before.trim_end_matches('#');
    let word: String = prefix.chars().rev().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    matches!(word.as_str(), "r" | "rb" | "rc").then_some(before.len() - prefix.len())
}

/// Characters of the literal that starts at the quote, none for a lifetime.
fn character_literal(rest: &[char]) -> Option<usize> {
    if rest.get(1) == Some(&'\\') {
        let end = rest.iter().skip(3).take(12).position(|&c| c == '\'')?;
        return Some(end + 4);
    }
    (rest.get(2) == Some(&'\'')).then_some(3)
}

/// Byte positions of `word` in `code` where it is not part of a longer name.
pub fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let in_name = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |&at| !in_name(code[..at].chars().next_back()) && !in_name(code[at + word.len()..].chars().next()))
}

#[test]
fn literals_and_comments_are_told_from_code() {
    let text = "let a = \"x // y \\\" {\"; // note\nlet b = r#\"dbg \"quoted\" {\"#; let c = '{'; let d = '\\''; fn e<'a>() {}\n/* one\n/* two */ */ let f;";
    let lines = split(text);
    let code: Vec<&str> = lines.iter().map(|line| line.code.trim()).collect();
    assert_eq!(code, ["let a = \"\";", "let b = r\"\"; let c = '; let d = '; fn e<'a>() {}", "", "let f;"]);
    assert_eq!(lines[0].comment, "// note");
    assert_eq!(words("unsafe_op unsafe fn", "unsafe").collect::<Vec<_>>(), [10]);
}
