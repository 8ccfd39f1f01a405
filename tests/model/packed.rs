//! Models whose matrices stay as a file stores them, against the same values in the flat buffer.

use super::gpt::random_params;
use crate::ops::simulators;
use nanochat_gpu::device::Device;
use nanochat_gpu::device::packed::{ActivationBits, PackedMatrix};
use nanochat_gpu::error::is_user_error;
use nanochat_gpu::model::gpt::{Recompute, Rows, log_sum};
use nanochat_gpu::model::{Gpt, KvCache, ModelConfig};
use nanochat_gpu::ops::lm_loss::IGNORE;
use nanochat_gpu::tape::Tape;
use nanochat_gpu::tensor::{Arena, BlockType, DType, Grads, ParamId, Params, Tensor, Weight};
use nanochat_gpu::verify::{integers, made_blocks};

/// All widths are multiples of 32, q, k and v of unequal heights.
fn config() -> ModelConfig {
    ModelConfig {
        layers: 2,
        width: 64,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        ffn_width: 96,
        vocab_size: 203,
        max_seq_len: 32,
        qk_norm: false,
        tie_embeddings: true,
        ..ModelConfig::from_depth(2, 203, 32)
    }
}

/// The parameters of `model`, its matrices made in blocks of the kinds in turn, its vectors random.
fn packed_params(model: &Gpt, kinds: &[BlockType]) -> Params {
    packed_params_in(model, kinds, DType::F32)
}

/// The same, computed with in `dtype`.
fn packed_params_in(model: &Gpt, kinds: &[BlockType], dtype: DType) -> Params {
    let (layout, dense) = (model.layout(), random_params(model, dtype));
    let ids = || (0..).map(ParamId).zip(layout.entries());
    let matrices = ids().filter(|(_, entry)| entry.shape.rank() == 2).enumerate().map(|(i, (id, entry))| {
        let (kind, dims) = (kinds[i % kinds.len()], entry.shape.dims());
        (id, PackedMatrix::new(kind, dims, &made_blocks(&entry.name, kind, dims)).unwrap())
    });
    let mut params = Params::with_packed(layout.clone(), dtype, matrices.collect()).unwrap();
    for (id, _) in ids().filter(|(_, entry)| entry.shape.rank() == 1) {
        params.set_master(id, &dense.master_view(id).to_f64());
    }
    params.round();
    params
}

fn logits(model: &Gpt, params: &Params) -> Vec<f64> {
    let arena = Arena::new(1 << 24).unwrap();
    let rows = Rows::new(&arena, &integers("tokens", 2 * 9, model.config().vocab_size), 9, Some(&[0; 18]));
    model.logits(&mut Tape::inference(&arena, params), &rows).to_f64()
}

fn relative(got: &[f64], want: &[f64]) -> f64 {
    let squares: f64 = want.iter().map(|w| w * w).sum();
    (got.iter().zip(want).map(|(g, w)| (g - w) * (g - w)).sum::<f64>() / squares).sqrt()
}

#[test]
fn a_packed_model_says_what_its_dequantised_self_says() {
    use BlockType::*;
    let model = Gpt::new(config(), DType::F32).unwrap();
    // Weights of single elements meet the same activations; with 8 bits a product with quantised ones loses half a percent, with
    // 16 a 254th of that (`device::packed`), and nine lie behind each other.
    let mixed = [Q4_1, Q8_0, Q4_0];
    let (eight, sixteen) = (ActivationBits::Eight, ActivationBits::Sixteen);
    for (kinds, bits, most) in [
        (&[F32, Bf16, F16][..], eight, 1e-5),
        (&[Q8_0], eight, 3e-2),
        (&mixed, eight, 3e-2),
        (&[Q8_0], sixteen, 3e-2 / 254.0),
        (&mixed, sixteen, 3e-2 / 254.0),
    ] {
        let params = packed_params(&model, kinds).with_activation_bits(bits);
        let vectors: usize =
            model.layout().entries().iter().filter(|e| e.shape.rank() == 1).map(|e| e.shape.elems()).sum();
        assert_eq!(params.master().elems(), vectors, "packed matrices take no room in the flat buffer");
        let dense = params.dequantised();
        assert!(params.has_packed() && !dense.has_packed());
        let err = relative(&logits(&model, &params), &logits(&model, &dense));
        assert!(err <= most, "{kinds:?} {bits:?}: logits differ by {err}");
    }
}

#[test]
fn losses_are_those_of_the_logits() {
    let model = Gpt::new(ModelConfig { softcap: 9.0, ..config() }, DType::F32).unwrap();
    let params = packed_params(&model, &[BlockType::Q8_0]);
    let arena = Arena::new(1 << 24).unwrap();
    let rows = Rows::new(&arena, &integers("tokens", 2 * 9, 203), 9, None);
    let mut targets = integers("targets", 2 * 9, 203);
    targets[4] = IGNORE;
    let ids = Tensor::from_slice(&arena, [2 * 9], &targets);
    let losses = model.loss(&mut Tape::inference(&arena, &params), &rows, &ids, 1.0, Recompute::Nothing).to_f64();
    let logits = model.logits(&mut Tape::inference(&arena, &params), &rows).to_f64();
    for ((row, &target), loss) in logits.chunks(203).zip(&targets).zip(losses) {
        let want = if target == IGNORE { 0.0 } else { log_sum(row) - row[target as usize] };
        assert!((loss - want).abs() <= 1e-5 * (1.0 + want), "{loss}, {want} expected");
    }
}

/// The logits of 12 tokens that come in pieces of these lengths.
fn logits_in_pieces(model: &Gpt, params: &Params, pieces: &[usize]) -> Vec<f64> {
    let arena = Arena::new(1 << 24).unwrap();
    let (mut tokens, mut cache) = (&integers("tokens", 12, 203)[..], KvCache::new(model.config(), 12, DType::F32));
    let mut logits = Vec::new();
    for &t in pieces {
        let (piece, rest) = tokens.split_at(t);
        logits.extend(model.logits_cached(&mut Tape::inference(&arena, params), piece, &mut cache).to_f64());
        tokens = rest;
    }
    logits
}

#[test]
fn pieces_of_a_sequence_do_not_change_a_bit() {
    for kinds in [&[BlockType::Q4_1, BlockType::Q8_0][..], &[BlockType::F32], &[BlockType::Bf16]] {
        let model = Gpt::new(config(), DType::F32).unwrap();
        let params = packed_params(&model, kinds);
        let at_once = logits_in_pieces(&model, &params, &[12]);
        for pieces in [&[1; 12][..], &[5, 7], &[2, 9, 1]] {
            assert_eq!(logits_in_pieces(&model, &params, pieces), at_once, "{kinds:?} in pieces of {pieces:?}");
        }
        // Over whole rows attention sums in another order; what it rounds otherwise may tip the last bit of an activation.
        let arena = Arena::new(1 << 24).unwrap();
        let rows = Rows::new(&arena, &integers("tokens", 12, 203), 12, None);
        let err = relative(&model.logits(&mut Tape::inference(&arena, &params), &rows).to_f64(), &at_once);
        assert!(err <= 1e-4, "{kinds:?}: logits differ by {err}");
    }
}

#[test]
fn what_products_read_can_be_packed_as_it_is() {
    for config in super::gpt::configs() {
        for dtype in [DType::F32, DType::Bf16] {
            let model = Gpt::new(config.clone(), dtype).unwrap();
            let dense = random_params(&model, dtype);
            let packed = dense.packed();
            let err = relative(&logits(&model, &packed), &logits(&model, &dense));
            assert!(err <= if dtype == DType::F32 { 1e-5 } else { 5e-2 }, "{dtype}: logits differ by {err}");
            for id in (0..model.layout().entries().len() as u32).map(ParamId) {
                let name = &model.layout().entry(id).name;
                assert_eq!(packed.dequantised().view(id).to_f64(), dense.view(id).to_f64(), "{name}");
            }
        }
    }
}

#[test]
fn rows_of_a_packed_table_are_its_values() {
    let model = Gpt::new(config(), DType::F32).unwrap();
    let params = packed_params(&model, &[BlockType::Q8_0]);
    let arena = Arena::new(1 << 20).unwrap();
    let tokens = Tensor::from_slice(&arena, [3], &[202u32, 0, 7]);
    let got = Tape::inference(&arena, &params).embedding(model.embedding(), &tokens).value().to_f64();
    let table = params.dequantised().view(model.embedding()).to_f64();
    let want: Vec<f64> = [202, 0, 7].iter().flat_map(|&row| table[row * 64..][..64].to_vec()).collect();
    assert_eq!(got, want);
}

#[test]
#[should_panic(expected = "model.embed_tokens.weight is packed")]
fn to_view_what_is_packed_is_a_bug() {
    let model = Gpt::new(config(), DType::F32).unwrap();
    packed_params(&model, &[BlockType::F32]).view(model.embedding());
}

#[test]
#[should_panic(expected = "packed weights do not learn")]
fn to_record_with_what_is_packed_is_a_bug() {
    let model = Gpt::new(config(), DType::F32).unwrap();
    let params = packed_params(&model, &[BlockType::F32]);
    let (arena, mut grads) = (Arena::new(1 << 24).unwrap(), Grads::zeros(model.layout().clone(), DType::F32));
    let rows = Rows::new(&arena, &[1, 2, 3], 3, None);
    model.logits(&mut Tape::recording(&arena, &params, &mut grads), &rows);
}

#[test]
fn a_matrix_of_another_model_is_refused_by_name() {
    let model = Gpt::new(config(), DType::F32).unwrap();
    let matrix = PackedMatrix::new(BlockType::F32, [4, 2], &[0; 32]).unwrap();
    let error = Params::with_packed(model.layout().clone(), DType::F32, vec![(model.embedding(), matrix)])
        .map(|_| ())
        .expect_err("another shape");
    assert!(is_user_error(&error) && error.to_string().contains("model.embed_tokens.weight is 4 x 2"), "{error}");
}

#[test]
fn what_is_not_packed_is_viewed_as_ever() {
    let model = Gpt::new(config(), DType::F32).unwrap();
    let dense = random_params(&model, DType::F32);
    // The embedding alone is packed: what follows lies further to the front.
    let dims = [203, 64];
    let table = PackedMatrix::new(BlockType::F32, dims, &made_blocks("table", BlockType::F32, dims)).unwrap();
    let packed = vec![(model.embedding(), table)];
    let mut params = Params::with_packed(model.layout().clone(), DType::F32, packed).unwrap();
    for id in (0..model.layout().entries().len() as u32).map(ParamId).filter(|&id| id != model.embedding()) {
        params.set_master(id, &dense.master_view(id).to_f64());
    }
    for id in (0..model.layout().entries().len() as u32).map(ParamId).filter(|&id| id != model.embedding()) {
        assert_eq!(params.view(id).to_f64(), dense.view(id).to_f64(), "{}", model.layout().entry(id).name);
        assert!(matches!(params.weight(id), Weight::Dense(_)));
    }
    assert!(matches!(params.weight(model.embedding()), Weight::Packed(weight) if weight.matrices.len() == 1));
}

/// In bf16 a GPU reads quantised weights as they are; in f32 it gets them dequantised.
#[test]
fn a_simulated_gpu_reads_packed_weights() {
    use BlockType::*;
    let Some(&gpu) = simulators().first() else { return };
    let (device, arena) = (Device::Gpu(gpu), Arena::on(Device::Gpu(gpu), 1 << 24).unwrap());
    let tokens = integers("tokens", 9, 203);
    let next = |model: &Gpt, params: &Params| {
        let mut cache = KvCache::on(device, model.config(), 12, params.dtype());
        let model = model.clone().to(device);
        let logits = model.next_logits(&mut Tape::by_rows(&arena, params), &tokens, &mut cache).to_f64();
        device.synchronise().unwrap();
        logits
    };
    let model = Gpt::new(config(), DType::Bf16).unwrap();
    for kinds in [&[Q4_1, Q8_0, Q4_0][..], &[Q8_0, F16]] {
        let packed = packed_params_in(&model, kinds, DType::Bf16);
        let dense = packed.dequantised().to(device);
        let packed = packed.to(device);
        assert!(packed.has_packed() && packed.device() == device && !dense.has_packed());
        // The same weights in the same type: sums in another order, rounded to bf16 after each product.
        let err = relative(&next(&model, &packed), &next(&model, &dense));
        assert!(err <= 1e-2, "{kinds:?}: logits differ by {err}");
    }
    let wide = Gpt::new(config(), DType::F32).unwrap();
    assert!(!packed_params(&wide, &[Q8_0]).to(device).has_packed());
}
