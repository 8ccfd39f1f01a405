use super::*;

#[test]
fn cases() {
    check(verify::banks::bank_product);
}
