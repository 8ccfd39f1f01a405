//! What the memories of a conversation hold in a file: the same as if the conversation had not ended, and files that are refused.

use super::random_params;
use crate::data::assert_user_error;
use nanochat_gpu::infer::memory_file::{load, save};
use nanochat_gpu::model::abacus::AbacusConfig;
use nanochat_gpu::model::memory::MemoryConfig;
use nanochat_gpu::model::{Gpt, KvCache, ModelConfig, Parts};
use nanochat_gpu::tape::Tape;
use nanochat_gpu::tensor::{Arena, DType, Params};
use nanochat_gpu::verify::integers;
use std::path::Path;

const SEGMENT: usize = 6;

fn model(key_width: usize) -> Gpt {
    let memory = MemoryConfig { enabled: true, rows: 4, key_width, top: 2, segment: SEGMENT };
    let base = ModelConfig {
        width: 24,
        heads: 2,
        kv_heads: 2,
        head_dim: 12,
        ffn_width: 40,
        ..ModelConfig::from_depth(3, 31, 64)
    };
    Gpt::new(ModelConfig { parts: Parts { memory, ..Parts::default() }, ..base }, DType::F32).unwrap()
}

fn cache(model: &Gpt) -> KvCache {
    KvCache::new(model.config(), 64, DType::F32)
}

fn said(model: &Gpt, params: &Params, cache: &mut KvCache, tokens: &[u32]) -> Vec<f64> {
    let arena = Arena::new(64 << 20).unwrap();
    model.logits_cached(&mut Tape::inference(&arena, params), tokens, cache).to_f64()
}

/// Two segments and a bit are said, more than once; the next text reads all of it.
#[test]
fn what_was_said_is_read_in_the_next_call() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("talk.memory");
    let model = model(6);
    let params = random_params(&model, DType::F32);
    let (first, second) = (integers("first", 2 * SEGMENT + 4, 31), integers("second", 5, 31));
    let mut before = cache(&model);
    load(&file, &model, &params, before.state()).unwrap();
    said(&model, &params, &mut before, &first);
    save(&file, &model, &params, before.state()).unwrap();
    let mut after = cache(&model);
    load(&file, &model, &params, after.state()).unwrap();
    let memory = |cache: &mut KvCache| {
        let memory = cache.state().memory().unwrap();
        (memory.filled(), memory.tensors().map(|(name, tensor)| (name, tensor.to_bytes())).collect::<Vec<_>>())
    };
    assert_eq!(memory(&mut before), memory(&mut after));
    assert_eq!(memory(&mut after).0, 4);
    // Keys and values of attention are of this text alone; what differs was read in the memory.
    let (with, without) =
        (said(&model, &params, &mut after, &second), said(&model, &params, &mut cache(&model), &second));
    let apart = with.iter().zip(&without).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(apart > 1e-3 && with.iter().all(|x| x.is_finite()), "{apart}");
    // The segment that was not finished is, and its row is there.
    save(&file, &model, &params, after.state()).unwrap();
    let born = |cache: &mut KvCache| {
        let memory = cache.state().memory().unwrap();
        let born = memory.tensors().find(|(name, _)| *name == "memory.born").unwrap().1.to_f64();
        born.iter().filter(|&&b| b < 100.0).count()
    };
    assert_eq!((born(&mut before), born(&mut after)), (2, 3));
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["talk.memory"]);
}

/// The state alone, and beside the long-term memory.
#[test]
fn the_state_memory_is_kept_too() {
    let folder = tempfile::tempdir().unwrap();
    for memory in [false, true] {
        let file = folder.path().join(format!("talk.{memory}"));
        let abacus = AbacusConfig { enabled: true, heads: 2, key_dim: 32, value_dim: 32, segments: 1 };
        let mut config = model(6).config().clone();
        config.parts =
            Parts { abacus, memory: MemoryConfig { enabled: memory, ..config.parts.memory }, ..config.parts };
        let model = Gpt::new(config, DType::F32).unwrap();
        let params = random_params(&model, DType::F32);
        let (first, second) = (integers("first", 2 * SEGMENT + 4, 31), integers("second", 5, 31));
        let mut before = cache(&model);
        said(&model, &params, &mut before, &first);
        save(&file, &model, &params, before.state()).unwrap();
        let mut after = cache(&model);
        load(&file, &model, &params, after.state()).unwrap();
        let kept = |cache: &mut KvCache| {
            cache.state().memories().map(|(name, tensor)| (name, tensor.to_bytes())).collect::<Vec<_>>()
        };
        assert_eq!(kept(&mut before), kept(&mut after));
        let state = kept(&mut after).pop().unwrap();
        assert!(state.0 == "abacus" && state.1.iter().any(|&byte| byte != 0), "a state that was written");
        let (with, without) =
            (said(&model, &params, &mut after, &second), said(&model, &params, &mut cache(&model), &second));
        let apart = with.iter().zip(&without).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart > 1e-3 && with.iter().all(|x| x.is_finite()), "{apart}");
        assert_user_error(load(&file, &model, &model.init(DType::F32, 3), cache(&model).state()), &["another model"]);
    }
}

#[test]
fn other_and_damaged_files_are_refused_and_left_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("talk.memory");
    let six = model(6);
    let params = random_params(&six, DType::F32);
    let mut talked = cache(&six);
    said(&six, &params, &mut talked, &integers("first", 2 * SEGMENT + 1, 31));
    save(&file, &six, &params, talked.state()).unwrap();
    let whole = std::fs::read(&file).unwrap();
    let of = |model: &Gpt, params: &Params, file: &Path| load(file, model, params, cache(model).state());
    let eight = model(8);
    assert_user_error(of(&eight, &random_params(&eight, DType::F32), &file), &["talk.memory", "memory.keys"]);
    assert_user_error(of(&six, &six.init(DType::F32, 3), &file), &["another model"]);
    let plain = Gpt::new(ModelConfig { parts: Parts::default(), ..six.config().clone() }, DType::F32).unwrap();
    assert_user_error(of(&plain, &random_params(&plain, DType::F32), &file), &["memory.enabled=true"]);
    for at in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        let mut bytes = whole.clone();
        bytes[at] ^= 8;
        std::fs::write(&file, &bytes).unwrap();
        assert_user_error(of(&six, &params, &file), &["talk.memory"]);
        std::fs::write(&file, &whole[..at]).unwrap();
        assert_user_error(of(&six, &params, &file), &["talk.memory"]);
    }
    // A cache that was refused a file is as it was.
    let mut empty = cache(&six);
    load(&file, &six, &params, empty.state()).unwrap_err();
    assert!(
        empty
            .state()
            .memories()
            .all(|(name, tensor)| name != "memory.values" || tensor.to_f64().iter().all(|&x| x == 0.0))
    );
    let nowhere = folder.path().join("absent/talk.memory");
    assert!(save(&nowhere, &six, &params, talked.state()).is_err() && !nowhere.exists());
    assert_user_error(of(&six, &params, &nowhere), &["talk.memory", "no folder"]);
}
