use crate::gpu::everywhere;
use crate::nvcc::Arch;
use ptxsim::host::Arg;
use ptxsim::launch::Geometry;
use std::path::Path;

/// What a real H100 answered (`benches/results/*/truth/facts.u32`): the leader of `elect`, shuffles past the ends, active masks,
/// subnormals, NaN.
#[test]
fn small_facts_are_the_cards() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/results/h100-80gb-hbm3-2026-11-22/truth");
    let file = std::fs::File::open(folder.join("facts.u32.xz")).expect("the recorded file");
    let mut bytes = Vec::new();
    lzma_rs::xz_decompress(&mut std::io::BufReader::new(file), &mut bytes).expect("an xz file");
    let card: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    assert_eq!(card.len(), 14 * 32);
    everywhere("facts", |gpu| {
        let out = gpu.space(4 * card.len());
        // Divergent lanes see each other's masks as the schedule lets them; the recorded rows are those of lanes together.
        gpu.run("facts", Geometry::linear(1, 32), &[Arg::Pointer(out)]);
        let got = gpu.read_words(out, card.len());
        let first = if gpu.arch == Arch::Sm80 { 64 } else { 0 };
        for (at, (got, card)) in got.iter().zip(&card).enumerate().skip(first) {
            // The first lanes of the second row did not write.
            if !(32..37).contains(&at) {
                assert_eq!(got, card, "row {}, lane {}", at / 32, at % 32);
            }
        }
    });
}
