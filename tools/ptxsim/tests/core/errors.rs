//! What is refused: at load time with file, line and text; at launch with one sentence.

use ptxsim::host::{Arg, Device};
use ptxsim::launch::Geometry;
use ptxsim::options::{Checks, Options};

use super::{module, per_thread};

fn load_error(text: &str) -> String {
    Device::new().load("bad.ptx", text).err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn unknown_forms_are_refused_when_loaded() {
    for (body, part) in [
        ("tcgen05.fence; ret;", "bad.ptx:6: unsupported instruction: tcgen05.fence;"),
        (".reg .b32 %r<3>; add.s32.odd %r0, %r1, %r2; ret;", "unsupported modifier .odd: add.s32.odd %r0, %r1, %r2;"),
        (".reg .b32 %r<3>; add.s32 %r0, %r1; ret;", "unsupported instruction: add.s32 %r0, %r1;"),
        (".reg .b32 %r<3>; add.s32 %r0, %r1, %x; ret;", "bad source operand: add.s32 %r0, %r1, %x;"),
        (".reg .b32 %r<3>; mov.u32 %r0, %nothing; ret;", "unknown name %nothing"),
        ("bra NOWHERE; ret;", "unknown name NOWHERE"),
        (".reg .b64 %d<3>; .reg .b32 %r<3>; add.s32 %r0, %d0, %r1; ret;", "operand is too wide"),
        ("ret", "bad.ptx:7: expected an operand, found \"}\""),
    ] {
        let error = load_error(&module(body));
        assert!(error.contains(part), "{body}: {error:?}");
    }
    assert!(load_error("hello").contains("bad.ptx:1"));
    assert!(load_error(".version 8.4\n.target sm_35\n.address_size 64\n").contains("sm_35"));
}

#[test]
fn wrong_launches_are_refused() {
    let mut device = Device::new();
    let loaded = device.load("k.ptx", &per_thread("mov.u32 %r1, 0;")).expect("load");
    let function = loaded.function("k").expect("entry");
    let a = device.alloc(4096).expect("memory");
    let good = [Arg::Pointer(a), Arg::Pointer(a)];
    let refuse = |geometry: Geometry, args: &[Arg]| {
        device.launch(&function, &geometry, args, &Options::default()).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert!(refuse(Geometry::linear(1, 32), &good[..1]).contains("1 arguments for 2 parameters"));
    assert!(refuse(Geometry::linear(1, 32), &[Arg::U32(1), Arg::Pointer(a)]).contains("argument 0 has 4 bytes"));
    assert!(refuse(Geometry::linear(1, 1025), &good).contains("block"));
    assert!(refuse(Geometry::linear(0, 32), &good).contains("grid"));
    let geometry = Geometry { dynamic_bytes: 300 << 10, ..Geometry::linear(1, 32) };
    assert!(refuse(geometry, &good).contains("shared memory"));
    let geometry = Geometry { cluster: Some([2, 1, 1]), ..Geometry::linear(3, 32) };
    assert!(refuse(geometry, &good).contains("no multiple of the cluster"));
    assert!(loaded.function("none").is_err_and(|error| error.to_string().contains("has no entry none")));
}

#[test]
fn faults_end_the_launch_when_their_checker_is_off() {
    let mut device = Device::new();
    let function = device.load("k.ptx", &per_thread("ld.global.u32 %r1, [%rd4+4096];")).and_then(|m| m.function("k"));
    let function = function.expect("load");
    let a = device.alloc(4096).expect("memory");
    device.fill(a, 0, 4096).expect("fill");
    let options = Options { checks: Checks::NONE, ..Options::default() };
    let result = device.launch(&function, &Geometry::linear(1, 32), &[Arg::Pointer(a), Arg::Pointer(a)], &options);
    let error = result.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("illegal address") && error.contains("ld.global.u32"), "{error}");
}

#[test]
fn traps_name_block_warp_and_line() {
    let mut device = Device::new();
    let text = per_thread("mov.u32 %r1, 0; setp.eq.u32 %p0, %r23, 70; @%p0 trap;");
    let function = device.load("k.ptx", &text).and_then(|m| m.function("k")).expect("load");
    let a = device.alloc(4096).expect("memory");
    device.fill(a, 0, 4096).expect("fill");
    let result =
        device.launch(&function, &Geometry::linear(2, 64), &[Arg::Pointer(a), Arg::Pointer(a)], &Options::default());
    let error = result.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("block [1, 0, 0], warp 0, k.ptx:"), "{error}");
}
