//! What cached sequences leave behind: keys and values of attention in pages of a pool that any of them may own, and by sequence the
//! states of Kimi Delta Attention and of the memories.

use super::ModelConfig;
use super::kda::KdaState;
use super::memory::Conversation;
use crate::device::Device;
use crate::ops::paged_attention::{PAGE_TOKENS, Placement, slot};
use crate::ops::sample::Draw;
use crate::tensor::{Arena, DType, Tensor};

/// Pages of keys and values, for every attention layer the same ones. Who owns which is not its business.
pub struct KvPool {
    /// Query heads that read a key head.
    shared: usize,
    /// Of each attention layer keys, rotated, and values: `[pages PAGE_TOKENS, G D]`.
    layers: Vec<Option<[Tensor; 2]>>,
}

impl KvPool {
    /// `pages` pages on `device` whose elements are stored as `dtype`. On the CPU, memory is taken as pages are written.
    pub fn new(device: Device, config: &ModelConfig, pages: usize, dtype: DType) -> KvPool {
        let shape = [pages * PAGE_TOKENS, config.kv_heads * config.head_dim];
        let layer = |layer| (!config.is_kda(layer)).then(|| [(); 2].map(|()| Tensor::sparse_on(device, shape, dtype)));
        KvPool { shared: config.heads / config.kv_heads, layers: (0..config.layers).map(layer).collect() }
    }

    /// Keys and values of an attention layer.
    pub(super) fn layer(&mut self, layer: usize) -> &mut [Tensor; 2] {
        self.layers[layer].as_mut().expect("a layer of attention")
    }

    /// Copies a page in every layer.
    pub fn copy_page(&mut self, from: u32, to: u32) {
        for tensor in self.layers.iter_mut().flatten().flatten() {
            let [_, cols] = tensor.dims();
            let page_elems = PAGE_TOKENS * cols;
            tensor.copy_part(from as usize * page_elems, to as usize * page_elems, page_elems);
        }
    }
}

/// What a sequence carries along beside keys and values.
pub struct SequenceState {
    /// Of each layer of Kimi Delta Attention.
    kda: Vec<Option<KdaState>>,
    /// `[1, H, dk, dv]`, of a model with a state memory.
    abacus: Option<Tensor>,
    memory: Option<Conversation>,
    /// Length of the run of digits at the end.
    pub(super) digit_run: u32,
}

impl SequenceState {
    /// Of a sequence that has not begun, on `device`, of a model that computes in `dtype`.
    pub fn new(device: Device, config: &ModelConfig, dtype: DType) -> SequenceState {
        let layer = |layer| config.is_kda(layer).then(|| KdaState::new(device, config, dtype));
        let abacus = &config.parts.abacus;
        let abacus = abacus.enabled.then(|| abacus.states(device, 1, dtype));
        let memory = (config.parts.memory.enabled).then(|| Conversation::new(device, config, dtype));
        SequenceState { kda: (0..config.layers).map(layer).collect(), abacus, memory, digit_run: 0 }
    }

    /// What the memories hold, by name.
    pub fn memories(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        let abacus = self.abacus.iter().map(|state| ("abacus", state));
        self.memory.iter().flat_map(Conversation::tensors).chain(abacus)
    }

    /// The same, to overwrite.
    pub fn memories_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Tensor)> {
        let abacus = self.abacus.iter_mut().map(|state| ("abacus", state));
        self.memory.iter_mut().flat_map(Conversation::tensors_mut).chain(abacus)
    }

    /// Bytes of that.
    pub fn memory_bytes(&self) -> usize {
        self.memories().map(|(_, tensor)| tensor.size_bytes()).sum()
    }

    /// The long-term memory, of a model that has one.
    pub fn memory(&mut self) -> Option<&mut Conversation> {
        self.memory.as_mut()
    }

    /// Of `t` tokens how many may come at once: those up to the end of a segment of the long-term memory.
    pub fn piece(&self, t: usize) -> usize {
        self.memory.as_ref().map_or(t, |conversation| conversation.room().min(t))
    }

    /// The state of the memory.
    pub(super) fn abacus(&mut self) -> &mut Tensor {
        self.abacus.as_mut().expect("a sequence of a model with a memory")
    }

    /// The state of a layer of Kimi Delta Attention.
    pub(super) fn kda(&mut self, layer: usize) -> &mut KdaState {
        self.kda[layer].as_mut().expect("a layer with a state")
    }
}

/// The next tokens of one cached sequence.
pub struct Piece<'a> {
    /// At least one.
    pub tokens: &'a [u32],
    /// Tokens before them.
    pub start: usize,
    /// The pages of the sequence, with room for these tokens; nobody else writes those that they go to.
    pub pages: &'a [u32],
    pub state: &'a mut SequenceState,
}

/// What a pass over one token of each of `n` sequences reads, at a fixed place of a GPU's memory, so that the work can be recorded once.
pub struct StepInputs {
    /// Tokens, sequences, positions and slots `[n]` each, the pages of each sequence `[n, P]`, and how each next token is drawn `[n, 8]`; u32.
    words: Tensor,
    n: usize,
    pages: usize,
}

/// A row of [`StepInputs`].
pub struct StepRow<'a> {
    pub token: u32,
    pub position: usize,
    /// The pages of the sequence, with room for this token.
    pub pages: &'a [u32],
    /// How the next token is drawn.
    pub draw: Draw,
}

impl StepInputs {
    /// For `n` sequences of at most `tokens` tokens.
    pub fn new(device: Device, n: usize, tokens: usize) -> StepInputs {
        let pages = tokens.div_ceil(PAGE_TOKENS);
        StepInputs { words: Tensor::owned_on(device, [n * (4 + pages + Draw::WORDS)], DType::U32), n, pages }
    }

    /// Takes the rows of the next pass.
    ///
    /// # Panics
    /// If there are not `n`, or a sequence has too few or too many pages.
    pub fn fill(&mut self, rows: &[StepRow]) {
        assert_eq!(rows.len(), self.n, "rows of a step");
        let mut words: Vec<u32> = rows.iter().map(|row| row.token).collect();
        words.extend(0..self.n as u32);
        words.extend(rows.iter().map(|row| row.position as u32));
        words.extend(rows.iter().map(|row| slot(row.pages, row.position)));
        for (i, row) in rows.iter().enumerate() {
            words.extend(row.pages);
            assert!(row.pages.len() <= self.pages, "{} pages in a table of {}", row.pages.len(), self.pages);
            words.resize(4 * self.n + (i + 1) * self.pages, 0);
        }
        words.extend(rows.iter().flat_map(|row| row.draw.words()));
        self.words.copy_from_slice(&words);
    }

    /// How each token is drawn, `[n, 8]`.
    pub fn draws(&self) -> Tensor {
        self.words.view(self.n * (4 + self.pages), [self.n, Draw::WORDS])
    }
}

/// A pass over the next tokens of cached sequences.
pub struct Cached<'a> {
    pub(super) pieces: Vec<Piece<'a>>,
    pub(super) pool: &'a mut KvPool,
    pub(super) placement: Placement,
    /// All tokens `[N]`, in the order of the rows.
    pub(super) ids: Tensor,
}

impl<'a> Cached<'a> {
    /// The pieces go through the model behind each other: more than one only where [`ModelConfig::sequences_mix`] says so.
    ///
    /// # Panics
    /// If there is no token, or a sequence has too few pages.
    pub fn new(arena: &Arena, pieces: Vec<Piece<'a>>, pool: &'a mut KvPool) -> Cached<'a> {
        let placed = pieces.iter().map(|piece| (piece.start, piece.tokens.len(), piece.pages));
        let placement = Placement::new(arena, placed, pool.shared);
        let tokens: Vec<u32> = pieces.iter().flat_map(|piece| piece.tokens).copied().collect();
        let ids = Tensor::from_slice(arena, [tokens.len()], &tokens);
        Cached { pieces, pool, placement, ids }
    }

    /// The pass that `inputs` describe, at most to position `last`: of sequences that carry nothing along but keys and values.
    pub fn of_step(inputs: &StepInputs, last: usize, pool: &'a mut KvPool) -> Cached<'a> {
        let [ids, sequences, positions, slots] =
            [0, 1, 2, 3].map(|part| inputs.words.view(part * inputs.n, [inputs.n]));
        let tables = inputs.words.view(4 * inputs.n, [inputs.n, inputs.pages]);
        let placement = Placement::of_rows([sequences, positions, slots], tables, last);
        Cached { pieces: Vec::new(), pool, placement, ids }
    }

    /// The state of the only sequence, and its tokens in this pass.
    pub(super) fn only(&mut self) -> (usize, &mut SequenceState) {
        let [piece] = &mut self.pieces[..] else { panic!("a model with states takes one sequence at a time") };
        (piece.tokens.len(), piece.state)
    }
}

/// One sequence with a pool of its own.
pub struct KvCache {
    pool: KvPool,
    pages: Vec<u32>,
    state: SequenceState,
    len: usize,
    capacity: usize,
}

impl KvCache {
    /// An empty cache on the host.
    pub fn new(config: &ModelConfig, capacity: usize, dtype: DType) -> KvCache {
        KvCache::on(Device::Cpu, config, capacity, dtype)
    }

    /// An empty cache on `device`, of a model that computes in `dtype`.
    pub fn on(device: Device, config: &ModelConfig, capacity: usize, dtype: DType) -> KvCache {
        let pages = capacity.div_ceil(PAGE_TOKENS);
        let pool = KvPool::new(device, config, pages, dtype);
        let state = SequenceState::new(device, config, dtype);
        KvCache { pool, pages: (0..pages as u32).collect(), state, len: 0, capacity }
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

    /// What it holds beside keys and values.
    pub fn state(&mut self) -> &mut SequenceState {
        &mut self.state
    }

    /// Of `t` tokens how many may come at once.
    pub(super) fn piece(&self, t: usize) -> usize {
        self.state.piece(t)
    }

    /// A pass over the next tokens, which are counted as held.
    ///
    /// # Panics
    /// If there is no room for them.
    pub(super) fn advance<'a>(&'a mut self, arena: &Arena, tokens: &'a [u32]) -> Cached<'a> {
        let start = self.len;
        self.len += tokens.len();
        assert!(self.len <= self.capacity, "{} tokens in a cache of {}", self.len, self.capacity);
        let piece = Piece { tokens, start, pages: &self.pages, state: &mut self.state };
        Cached::new(arena, vec![piece], &mut self.pool)
    }
}
