use super::*;

#[test]
fn rows_over_pages_are_those_of_whole_sequences_on_the_cpu() {
    verify::paged::paged_on_host().unwrap();
}

#[test]
fn rows_over_pages_are_those_of_whole_sequences_in_the_simulator() {
    check_on_all(verify::paged::paged_on);
}
