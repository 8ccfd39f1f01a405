//! The binary: runs, outputs, mutants, and bad input, which ends in one line and exit code 2.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Reverses 64 words through shared memory.
const REVERSE: &str = ".version 9.0\n.target sm_80\n.address_size 64
.visible .entry reverse(.param .u64 out, .param .u64 in, .param .u32 add)
{
.reg .b32 %r<9>; .reg .b64 %rd<9>;
.shared .align 4 .b8 tile[256];
ld.param.u64 %rd1, [out]; ld.param.u64 %rd2, [in]; ld.param.u32 %r4, [add];
mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd2, %rd3; ld.global.u32 %r2, [%rd4];
mov.u32 %r3, tile; shl.b32 %r5, %r1, 2; add.s32 %r6, %r3, %r5; st.shared.u32 [%r6], %r2;
bar.sync 0;
sub.s32 %r7, 252, %r5; add.s32 %r7, %r3, %r7; ld.shared.u32 %r2, [%r7]; add.s32 %r2, %r2, %r4;
add.s64 %rd5, %rd1, %rd3; st.global.u32 [%rd5], %r2;
ret;
}
";

const LAUNCH: &str = r#"{"ptx": "k.ptx", "entry": "reverse", "grid": [1, 1, 1], "block": [64, 1, 1],
"buffers": {"in": {"bytes": 256, "init": {"file": "in.bin"}}, "out": {"bytes": 256, "init": "poison"}},
"args": [{"buffer": "out"}, {"buffer": "in"}, {"u32": 5}], "outputs": {"out": "out.bin"}, "seeds": [1, 2], "mode": "fast"}"#;

/// A folder with the kernel, its input and a launch file.
fn folder(name: &str, ptx: &str, launch: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cli-{name}"));
    std::fs::create_dir_all(&folder).expect("a folder");
    let words: Vec<u8> = (0..64u32).flat_map(|i| (i * i).to_le_bytes()).collect();
    for (file, bytes) in [("k.ptx", ptx.as_bytes()), ("launch.json", launch.as_bytes()), ("in.bin", &words)] {
        std::fs::write(folder.join(file), bytes).expect("a file");
    }
    folder
}

/// Exit code, stdout and stderr.
fn call(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ptxsim")).args(args).current_dir(folder).output().expect("it starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("a code"), text(output.stdout), text(output.stderr))
}

#[test]
fn a_launch_file_runs_and_writes_its_outputs() {
    let folder = folder("runs", REVERSE, LAUNCH);
    let (code, stdout, stderr) = call(&folder, &["run", "launch.json"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let report: serde_json::Value = serde_json::from_str(&stdout).expect("one JSON object");
    assert_eq!(report["findings"].as_array().map(Vec::len), Some(0));
    assert!(report["counters"].is_object());
    let bytes = std::fs::read(folder.join("out.bin")).expect("the output");
    let words: Vec<u32> = bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().expect("4"))).collect();
    assert_eq!(words, (0..64u32).map(|i| (63 - i) * (63 - i) + 5).collect::<Vec<_>>());
}

#[test]
fn findings_end_with_1_and_say_where() {
    let folder = folder("findings", &REVERSE.replace("bar.sync 0;", ""), LAUNCH);
    let (code, stdout, _) = call(&folder, &["run", "launch.json"]);
    let report: serde_json::Value = serde_json::from_str(&stdout).expect("one JSON object");
    let finding = &report["findings"][0];
    assert_eq!((code, finding["checker"].as_str()), (1, Some("shared_races")), "{stdout}");
    // The store of line 10 and the load of line 12, whichever came second.
    let mut lines = [&finding["line"], &finding["other"]["line"]].map(|line| line["ptx"].as_u64());
    lines.sort();
    assert_eq!(lines, [Some(10), Some(12)], "{stdout}");
}

#[test]
fn mutants_are_listed() {
    let folder = folder("mutants", REVERSE, LAUNCH);
    let (code, stdout, _) = call(&folder, &["mutate", "launch.json"]);
    let report: serde_json::Value = serde_json::from_str(&stdout).expect("one JSON object");
    assert_eq!((code, report["reported"].as_u64(), report["of"].as_u64()), (0, Some(1), Some(1)), "{stdout}");
    assert_eq!(report["mutants"][0]["line"].as_u64(), Some(11));
    let needless = folder.join("needless.ptx");
    std::fs::write(&needless, REVERSE.replace("bar.sync 0;", "bar.sync 0; bar.sync 0;")).expect("a file");
    std::fs::write(folder.join("launch.json"), LAUNCH.replace("k.ptx", "needless.ptx")).expect("a file");
    let (code, stdout, _) = call(&folder, &["mutate", "launch.json"]);
    assert!(code == 1 && stdout.contains("survived"), "{code} {stdout}");
}

#[test]
fn forms_are_counted_and_unsupported_ones_marked() {
    let folder = folder("forms", REVERSE, LAUNCH);
    let (code, stdout, _) = call(&folder, &["forms", "k.ptx"]);
    assert!(code == 0 && stdout.contains("bar.sync") && stdout.contains("0 forms unsupported"), "{stdout}");
    std::fs::write(folder.join("k.ptx"), REVERSE.replace("bar.sync 0;", "txq.width.b32 %r2, [%rd1];")).expect("a file");
    let (code, stdout, _) = call(&folder, &["forms", "k.ptx"]);
    assert!(code == 1 && stdout.contains("UNSUPPORTED"), "{stdout}");
}

#[test]
fn bad_input_is_one_line_and_2() {
    let cases: &[(&str, &str, &str, &[&str])] = &[
        ("\"k.ptx\"", "\"absent.ptx\"", "", &["absent.ptx"]),
        ("\"reverse\"", "\"backwards\"", "", &["backwards", "reverse"]),
        ("\"grid\": [1, 1, 1]", "\"grid\": [1, 70000, 1]", "", &["grid", "65535"]),
        ("\"block\": [64, 1, 1]", "\"block\": [64, 64, 1]", "", &["block", "1024"]),
        ("\"block\": [64, 1, 1]", "\"block\": [0, 1, 1]", "", &["block"]),
        (", {\"u32\": 5}", "", "", &["2 arguments for 3 parameters"]),
        ("{\"u32\": 5}", "{\"u64\": 5}", "", &["argument 2 has 8 bytes", "add"]),
        ("{\"u32\": 5}", "{\"u128\": 5}", "", &["launch.json", "u128"]),
        ("{\"buffer\": \"in\"}", "{\"buffer\": \"inn\"}", "", &["inn", "in, out"]),
        ("{\"out\": \"out.bin\"}", "{\"o\": \"out.bin\"}", "", &["no buffer is called o"]),
        ("{\"bytes\": 256, \"init\": {", "{\"bytes\": 255, \"init\": {", "", &["buffer in", "255", "in.bin"]),
        ("in.bin", "missing.bin", "", &["missing.bin"]),
        ("\"mode\": \"fast\"", "\"dynamic_smem_bytes\": 200000", "", &["shared memory", "sm_80"]),
        ("\"mode\": \"fast\"", "\"cluster\": [2, 1, 1]", "", &["sm_90"]),
        ("\"mode\": \"fast\"", "\"mode\": \"quick\"", "", &["launch.json"]),
        ("\"seeds\"", "\"sedes\"", "", &["sedes"]),
        ("}", "", "", &["launch.json"]),
        ("", "", "bar.synk 0;", &["k.ptx:11", "bar.synk"]),
        ("", "", "add.s32 %r2, %r99, %r4;", &["k.ptx:11", "%r99"]),
        ("", "", "{ {", &["k.ptx"]),
    ];
    for (i, (from, to, statement, parts)) in cases.iter().enumerate() {
        let ptx = if statement.is_empty() { REVERSE.to_owned() } else { REVERSE.replace("bar.sync 0;", statement) };
        let folder = folder(&format!("bad-{i}"), &ptx, &LAUNCH.replacen(from, to, 1));
        let (code, stdout, stderr) = call(&folder, &["run", "launch.json"]);
        assert_eq!((code, stdout.as_str(), stderr.lines().count()), (2, "", 1), "case {i}: {stderr}");
        assert!(parts.iter().all(|part| stderr.contains(part)), "case {i}: {stderr} lacks one of {parts:?}");
        assert!(!folder.join("out.bin").exists(), "case {i} left an output");
    }
}

#[test]
fn a_trap_is_a_failure_of_the_kernel() {
    let folder = folder("trap", &REVERSE.replace("bar.sync 0;", "trap;"), LAUNCH);
    let (code, _, stderr) = call(&folder, &["run", "launch.json"]);
    assert!(code == 1 && stderr.contains("k.ptx:11") && stderr.contains("trap"), "{code} {stderr}");
}
