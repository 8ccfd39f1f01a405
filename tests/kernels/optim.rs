//! Optimisers on a GPU: each update as on the CPU, for both rules, tall and wide matrices, rounded copies included.

use crate::ops::check_on_all;
use nanochat_gpu::verify::state;

#[test]
fn adamw_updates_are_those_of_the_cpu() {
    check_on_all(state::adamw_on);
}

#[test]
fn muon_updates_are_those_of_the_cpu() {
    check_on_all(state::muon_on);
}
