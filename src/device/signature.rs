//! Kernel signatures, read from the text of `kernels/*.cu` and from PTX. The build script includes this file, so it uses
//! nothing but the standard library.
//!
//! A kernel is declared as `extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) name(...)`, with pointers to and
//! values of the types of `kernels/common/types.cuh` only.

use std::fmt;

/// A kernel as its `.cu` file declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    pub name: String,
    /// Line of the file, from 1.
    pub line: usize,
    /// Threads of a block: the first of the launch bounds.
    pub threads: u32,
    /// Blocks that a multiprocessor must be able to hold: the second.
    pub blocks_min: u32,
    pub params: Vec<Param>,
}

/// One parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    pub name: String,
    pub kind: Kind,
}

/// Pointer or value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To memory that the kernel reads.
    Pointer(Scalar),
    /// To memory that the kernel writes.
    PointerMut(Scalar),
    Value(Scalar),
}

/// The number types of `kernels/common/types.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    F32,
    F64,
    Bf16,
    U32,
    I32,
    U64,
}

impl Scalar {
    fn of(word: &str) -> Option<Scalar> {
        Some(match word {
            "float" => Scalar::F32,
            "double" => Scalar::F64,
            "bf16" => Scalar::Bf16,
            "u32" => Scalar::U32,
            "i32" => Scalar::I32,
            "u64" => Scalar::U64,
            _ => return None,
        })
    }

    fn size_bytes(self) -> u32 {
        match self {
            Scalar::Bf16 => 2,
            Scalar::F32 | Scalar::U32 | Scalar::I32 => 4,
            Scalar::F64 | Scalar::U64 => 8,
        }
    }
}

impl Kind {
    /// Bytes of the parameter in a launch.
    pub fn size_bytes(self) -> u32 {
        match self {
            Kind::Pointer(_) | Kind::PointerMut(_) => 8,
            Kind::Value(scalar) => scalar.size_bytes(),
        }
    }
}

/// What is wrong with a declaration, and in which line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub line: usize,
    pub what: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// All kernels of a `.cu` file, in order.
///
/// # Errors
/// A declaration that is not of the one form above.
pub fn parse(text: &str) -> Result<Vec<Signature>, Error> {
    let code = without_comments(text);
    let mut found = Vec::new();
    for (at, _) in code.match_indices("__global__") {
        let line = code[..at].matches('\n').count() + 1;
        let kernel = declaration(&code[..at], &code[at + "__global__".len()..], line);
        found.push(kernel.map_err(|what| Error { line, what })?);
    }
    Ok(found)
}

fn declaration(before: &str, after: &str, line: usize) -> Result<Signature, String> {
    if !before.trim_end().ends_with("extern \"C\"") {
        return Err("__global__ without extern \"C\": its symbol would be mangled".into());
    }
    let form = "expected `void __launch_bounds__(THREADS, BLOCKS) name(...)`";
    let rest = after.trim_start().strip_prefix("void").ok_or(form)?.trim_start();
    let rest = rest.strip_prefix("__launch_bounds__").ok_or("no __launch_bounds__(THREADS, BLOCKS)")?.trim_start();
    let (bounds, rest) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')).ok_or(form)?;
    let (threads, blocks) = bounds.split_once(',').ok_or("__launch_bounds__ needs both numbers")?;
    let number = |text: &str| text.trim().parse().map_err(|_| format!("{} is not a number", text.trim()));
    let (name, rest) = rest.split_once('(').ok_or(form)?;
    let (params, _) = rest.split_once(')').ok_or(form)?;
    let name = name.trim();
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(format!("{name:?} is no name of a kernel"));
    }
    let params = params.split(',').map(str::trim).filter(|param| !param.is_empty());
    Ok(Signature {
        name: name.to_string(),
        line,
        threads: number(threads)?,
        blocks_min: number(blocks)?,
        params: params.map(param).collect::<Result<_, _>>()?,
    })
}

fn param(text: &str) -> Result<Param, String> {
    let spaced = text.replace('*', " * ").replace("__restrict__", " ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let unknown =
        || format!("parameter {text:?} is neither `[const] TYPE* name` nor `TYPE name` of a type in types.cuh");
    let scalar = |word: &str| Scalar::of(word).ok_or_else(unknown);
    let (kind, name) = match words[..] {
        ["const", elem, "*", name] => (Kind::Pointer(scalar(elem)?), name),
        [elem, "*", name] => (Kind::PointerMut(scalar(elem)?), name),
        [value, name] => (Kind::Value(scalar(value)?), name),
        _ => return Err(unknown()),
    };
    Ok(Param { name: name.to_string(), kind })
}

/// The text with comments blanked; line breaks stay.
fn without_comments(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    loop {
        let Some(at) = rest.find("//").into_iter().chain(rest.find("/*")).min() else { return out + rest };
        out.push_str(&rest[..at]);
        let comment = &rest[at..];
        let end = match comment.starts_with("//") {
            true => comment.find('\n'),
            false => comment.find("*/").map(|end| end + 2),
        };
        let end = end.unwrap_or(comment.len());
        out.extend(comment[..end].chars().filter(|&c| c == '\n'));
        rest = &comment[end..];
    }
}

/// An entry of a PTX module: its name, the bytes of its parameters, and `.maxntid`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub param_bytes: Vec<u32>,
    pub threads_max: Option<u32>,
}

/// All entries of a PTX module.
pub fn ptx_entries(ptx: &str) -> Vec<Entry> {
    let entry = |text: &str| {
        let (name, rest) = text.split_once('(')?;
        let (params, rest) = rest.split_once(')')?;
        let params = params.split(',').filter(|param| param.contains(".param")).filter_map(ptx_param_bytes);
        let directives = rest.split('{').next()?;
        let threads = directives.split(".maxntid").nth(1).and_then(|rest| rest.split(',').next());
        Some(Entry {
            name: name.trim().to_string(),
            param_bytes: params.collect(),
            threads_max: threads.and_then(|number| number.trim().parse().ok()),
        })
    };
    ptx.split(".entry").skip(1).filter_map(entry).collect()
}

/// Bytes of `.param .u64 name` or `.param .align 4 .b8 name[12]`.
fn ptx_param_bytes(param: &str) -> Option<u32> {
    let kind = param.split_whitespace().find(|word| {
        let digits = word.trim_start_matches('.').trim_start_matches(['u', 's', 'b', 'f']);
        word.starts_with('.') && !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit())
    })?;
    let bits: u32 = kind.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().ok()?;
    let count = param.split_once('[').and_then(|(_, rest)| rest.split(']').next()?.trim().parse().ok()).unwrap_or(1);
    Some(bits / 8 * count)
}

/// Compares a declaration with the entry that the compiler made of it.
///
/// # Errors
/// How they differ.
pub fn agree(signature: &Signature, entry: &Entry) -> Result<(), String> {
    let (declared, made) = (signature.params.len(), entry.param_bytes.len());
    if declared != made {
        return Err(format!("{} has {declared} parameters, its PTX {made}", signature.name));
    }
    for (param, &bytes) in signature.params.iter().zip(&entry.param_bytes) {
        let declared = param.kind.size_bytes();
        if declared != bytes {
            return Err(format!("{}: {} has {declared} bytes, in the PTX {bytes}", signature.name, param.name));
        }
    }
    if entry.threads_max != Some(signature.threads) {
        return Err(format!("{}: {} threads, .maxntid {:?}", signature.name, signature.threads, entry.threads_max));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "// extern \"C\" __global__ void not_this();\n/* nor\n__global__ this */\n\
        extern \"C\" __global__ void __launch_bounds__(128, 4)\nscale_fwd_f32(float* __restrict__ y, const bf16 *x,\n  float by, u64 n) {\n}\n";

    #[test]
    fn a_declaration_over_lines_and_between_comments() {
        let [kernel] = &parse(FILE).unwrap()[..] else { panic!("one kernel") };
        assert_eq!((&kernel.name[..], kernel.line, kernel.threads, kernel.blocks_min), ("scale_fwd_f32", 4, 128, 4));
        let kinds: Vec<Kind> = kernel.params.iter().map(|param| param.kind).collect();
        let want = [
            Kind::PointerMut(Scalar::F32),
            Kind::Pointer(Scalar::Bf16),
            Kind::Value(Scalar::F32),
            Kind::Value(Scalar::U64),
        ];
        assert_eq!(kinds, want);
        assert_eq!(kernel.params[1].name, "x");
    }

    #[test]
    fn other_forms_are_refused_with_their_line() {
        let error = |text: &str| parse(text).unwrap_err().to_string();
        assert!(error("\n__global__ void f() {}").starts_with("line 2: __global__ without extern"));
        assert!(error("extern \"C\" __global__ void f() {}").contains("no __launch_bounds__"));
        assert!(error("extern \"C\" __global__ void __launch_bounds__(64) f() {}").contains("both numbers"));
        assert!(error("extern \"C\" __global__ void __launch_bounds__(64, 1) f(short x) {}").contains("short x"));
    }

    #[test]
    fn ptx_is_held_against_the_declaration() {
        let kernel = &parse(FILE).unwrap()[0];
        let ptx = |params: &str, threads: u32| {
            format!(".visible .entry scale_fwd_f32(\n{params}\n)\n.maxntid {threads}, 1, 1\n{{ ret; }}\n")
        };
        let four = ".param .u64 p_0,\n.param .u64 p_1,\n.param .f32 p_2,\n.param .u64 p_3";
        let check = |text: String| agree(kernel, &ptx_entries(&text)[0]);
        assert_eq!(check(ptx(four, 128)), Ok(()));
        assert!(check(ptx(four, 64)).unwrap_err().contains("128 threads"));
        assert!(check(ptx(&four.replace(".f32", ".f64"), 128)).unwrap_err().contains("by has 4 bytes, in the PTX 8"));
        assert!(check(ptx(".param .u64 p_0", 128)).unwrap_err().contains("4 parameters, its PTX 1"));
        assert_eq!(ptx_entries(&ptx(".param .align 4 .b8 p_0[12]", 1))[0].param_bytes, [12]);
    }
}
