use super::*;

#[test]
fn cases() {
    check(verify::rowwise::rmsnorm);
}
