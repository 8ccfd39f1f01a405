//! The front end on damaged PTX: seeded mutations of what nvcc emits, and random bytes. It answers with a module or an
//! error that names a line; it never panics and never hangs.

use crate::nvcc;
use ptxsim::error::Error;
use ptxsim::exec::Random;
use ptxsim::host::Device;
use std::time::{Duration, Instant};

/// Bytes of PTX that a mutation starts from: more would only repeat the same.
const BYTES_MAX: usize = 24 << 10;

/// Loads the text as a host would. An error must name a line of the text.
fn load(text: &str) -> bool {
    match Device::new().load("fuzz.ptx", text) {
        Ok(_) => true,
        Err(Error::Ptx { line, message, .. }) => {
            assert!(line as usize <= text.split('\n').count() && !message.is_empty(), "line {line}: {message}");
            false
        }
        Err(error) => {
            assert!(!error.to_string().contains('\n'), "{error}");
            false
        }
    }
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(bytes.len() as u64) as usize;
    let span = 1 + random.below(12) as usize;
    let end = (at + span).min(bytes.len());
    match random.below(7) {
        0 => bytes[at] = random.below(256) as u8,
        1 => bytes[at] = b"{}()[]<>,;:.@!%$-+0x\"/ \n"[random.below(24) as usize],
        2 => drop(bytes.drain(at..end)),
        3 => {
            let copied = bytes[at..end].to_vec();
            let to = random.below(bytes.len() as u64) as usize;
            drop(bytes.splice(to..to, copied));
        }
        4 => bytes.truncate(at),
        5 => bytes[at] ^= 1 << random.below(8),
        _ => drop(bytes.splice(at..end, b"99999999999999999999".iter().copied())),
    }
    if bytes.is_empty() {
        bytes.push(b'.');
    }
}

#[test]
fn damaged_ptx_is_refused_not_fatal() {
    let (mut refused, mut accepted) = (0, 0);
    for (stem, archs) in nvcc::all() {
        let text = nvcc::ptx(&stem, archs[archs.len() - 1]);
        let whole = &text.as_bytes()[..text.len().min(BYTES_MAX)];
        let mut random = Random::new(text.len() as u64);
        for _ in 0..120 {
            let mut bytes = whole.to_vec();
            for _ in 0..1 + random.below(3) {
                mutate(&mut bytes, &mut random);
            }
            let started = Instant::now();
            if load(&String::from_utf8_lossy(&bytes)) {
                accepted += 1
            } else {
                refused += 1
            }
            assert!(started.elapsed() < Duration::from_secs(30), "{stem}: loading hangs");
        }
    }
    assert!(refused > 100 && accepted > 10, "{refused} refused, {accepted} accepted");
}

#[test]
fn random_bytes_and_random_words_are_refused() {
    let words = [
        ".version",
        "9.0",
        ".target",
        "sm_90a",
        ".entry",
        ".func",
        "k",
        "(",
        ")",
        "{",
        "}",
        ".reg",
        ".b32",
        "%r",
        "<4>",
        ";",
        "mov.u32",
        "add.s32",
        "%r1",
        ",",
        "[",
        "]",
        "ld.global.v4.f32",
        "@%p1",
        "bra",
        ".shared",
        ".align",
        "4294967296",
        "0xffffffffffffffffff",
        "1e999",
        "0f7FC00000",
        "\"",
        "//",
        "/*",
        "$L:",
        ".loc",
        ".section",
        "call",
        ".param",
        "-",
    ];
    let mut random = Random::new(11);
    for round in 0..4000 {
        let length = 1 + random.below(200);
        let bytes: Vec<u8> = match round % 2 {
            0 => (0..length).map(|_| random.below(256) as u8).collect(),
            _ => {
                let picked = (0..length).map(|_| words[random.below(words.len() as u64) as usize]);
                picked.collect::<Vec<_>>().join(" ").into_bytes()
            }
        };
        let header = if round % 4 < 2 { "" } else { ".version 9.0\n.target sm_90a\n.address_size 64\n" };
        load(&format!("{header}{}", String::from_utf8_lossy(&bytes)));
    }
    assert!(!load("no PTX at all"));
}
