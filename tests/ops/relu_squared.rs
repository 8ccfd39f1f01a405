use super::*;

#[test]
fn cases() {
    check(verify::heads::relu_squared);
}
