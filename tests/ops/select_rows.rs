use super::*;

#[test]
fn cases() {
    check(verify::parts::select_rows);
}
