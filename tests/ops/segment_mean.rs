use super::*;

#[test]
fn cases() {
    check(verify::banks::segment_mean);
}
