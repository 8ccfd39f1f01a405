//! A plain contiguous cache of one sequence: keys and values of attention, states of Kimi Delta Attention and of the memory.

use super::ModelConfig;
use super::kda::KdaState;
use super::memory::Conversation;
use crate::device::Device;
use crate::device::launch::{Grid, by_dtype};
use crate::for_float;
use crate::tensor::{Arena, DType, Tensor};

/// Keys and values of every attention layer for up to `capacity` tokens, in the accumulator type; the state of every other.
pub struct KvCache {
    layers: Vec<Layer>,
    /// `[1, H, dk, dv]`, of a model with a memory.
    abacus: Option<Tensor>,
    memory: Option<Conversation>,
    /// Length of the run of digits at the end.
    pub(super) digit_run: u32,
    len: usize,
    capacity: usize,
}

enum Layer {
    /// `[capacity, G D]` each; keys are rotated.
    Attention {
        k: Tensor,
        v: Tensor,
    },
    Kda(KdaState),
}

impl KvCache {
    /// An empty cache on the host.
    pub fn new(config: &ModelConfig, capacity: usize, dtype: DType) -> KvCache {
        KvCache::on(Device::Cpu, config, capacity, dtype)
    }

    /// An empty cache on `device`, of a model that computes in `dtype`.
    pub fn on(device: Device, config: &ModelConfig, capacity: usize, dtype: DType) -> KvCache {
        let row = config.kv_heads * config.head_dim;
        let buffer = || Tensor::owned_on(device, [capacity, row], dtype.accumulator());
        let layer = |layer| match config.is_kda(layer) {
            true => Layer::Kda(KdaState::new(device, config, dtype)),
            false => Layer::Attention { k: buffer(), v: buffer() },
        };
        let abacus = &config.parts.abacus;
        let abacus = abacus.enabled.then(|| abacus.states(device, 1, dtype));
        let memory = (config.parts.memory.enabled).then(|| Conversation::new(device, config, dtype));
        KvCache { layers: (0..config.layers).map(layer).collect(), abacus, memory, digit_run: 0, len: 0, capacity }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of what it holds beside keys and values: the states of the memories.
    pub fn memory_bytes(&self) -> usize {
        let memory = self.memory.iter().flat_map(Conversation::tensors).map(|(_, tensor)| tensor);
        self.abacus.iter().chain(memory).map(Tensor::size_bytes).sum()
    }

    /// Counts `t` tokens that every layer has appended.
    pub(super) fn advance(&mut self, t: usize) {
        self.len += t;
    }

    /// The state of the memory.
    pub(super) fn abacus(&mut self) -> &mut Tensor {
        self.abacus.as_mut().expect("a cache of a model with a memory")
    }

    /// The long-term memory, of a model that has one.
    pub fn memory(&mut self) -> Option<&mut Conversation> {
        self.memory.as_mut()
    }

    /// Of `t` tokens how many may come at once: those up to the end of a segment.
    pub(super) fn piece(&self, t: usize) -> usize {
        self.memory.as_ref().map_or(t, |conversation| conversation.room().min(t))
    }

    /// The state of a layer of Kimi Delta Attention.
    pub(super) fn kda(&mut self, layer: usize) -> &mut KdaState {
        match &mut self.layers[layer] {
            Layer::Kda(state) => state,
            Layer::Attention { .. } => panic!("layer {layer} has keys and values"),
        }
    }

    /// Appends the keys and values of `qkv [t, (H + 2G) D]` to a layer, and returns the queries `[t, H D]` with the keys
    /// and values so far.
    pub(super) fn append(
        &mut self,
        arena: &Arena,
        config: &ModelConfig,
        layer: usize,
        qkv: &Tensor,
    ) -> (Tensor, &Tensor, &Tensor) {
        let [t, row] = qkv.shape().rows_cols();
        let (q_elems, kv_elems) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let len = self.len;
        assert!(len + t <= self.capacity, "{} tokens in a cache of {}", len + t, self.capacity);
        let Layer::Attention { k, v } = &mut self.layers[layer] else { panic!("layer {layer} has a state") };
        let mut q = Tensor::uninit(arena, [t, q_elems], k.dtype());
        if let Device::Gpu(gpu) = qkv.device() {
            let [mut k_end, mut v_end] = [&mut *k, &mut *v].map(|cache| cache.view_mut(len * kv_elems, [t, kv_elems]));
            by_dtype!(
                qkv.dtype(),
                kv_cache_fwd_split_rows_f32 | kv_cache_fwd_split_rows_bf16,
                (
                    gpu,
                    Grid::over(t * row, 256),
                    q.ptr_mut(),
                    k_end.ptr_mut(),
                    v_end.ptr_mut(),
                    qkv.ptr(),
                    t,
                    q_elems,
                    kv_elems
                )
            );
            return (q, k, v);
        }
        let wide = qkv.cast(arena, qkv.dtype().accumulator());
        for_float!(wide.dtype(), F => {
            let rows = wide.as_slice::<F>().chunks_exact(row);
            let (q, k, v) = (q.as_mut_slice::<F>(), k.as_mut_slice::<F>(), v.as_mut_slice::<F>());
            let to = q.chunks_exact_mut(q_elems).zip(k[len * kv_elems..].chunks_exact_mut(kv_elems));
            for ((row, (q, k)), v) in rows.zip(to).zip(v[len * kv_elems..].chunks_exact_mut(kv_elems)) {
                q.copy_from_slice(&row[..q_elems]);
                k.copy_from_slice(&row[q_elems..q_elems + kv_elems]);
                v.copy_from_slice(&row[q_elems + kv_elems..]);
            }
        });
        (q, k, v)
    }
}
