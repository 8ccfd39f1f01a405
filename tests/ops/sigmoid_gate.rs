use super::*;

#[test]
fn cases() {
    check(verify::memory::sigmoid_gate);
}
