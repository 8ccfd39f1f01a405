//! Matrix products: all transposes, sizes that divide nothing, both write modes, scales of both sides.

use crate::ops::check_on_all;
use nanochat_gpu::verify::products;

#[test]
fn every_transpose_and_type_at_awkward_sizes() {
    check_on_all(products::gemm_on);
}
