//! Flat buffers with named ranges: all parameters in one allocation, their gradients in a second, moments in others.
//!
//! One allocation each makes a fused optimiser pass, one all-reduce and sharding by range possible. A [`Layout`] says
//! what lies where; [`Params`] and [`Grads`] are the buffers.

use super::packed::{Packed, Weight};
use super::{BlockType, DType, Shape, Tensor, TensorMut};
use crate::device::Device;
use crate::device::packed::{ActivationBits, PackedMatrix, PackedWeight};
use std::ops::Range;
use std::sync::Arc;

/// Which parameter: an index into a [`Layout`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct ParamId(pub u32);

/// What kind of parameter: optimisers choose learning rate, decay and method by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Token table.
    Embedding,
    /// Output projection to the vocabulary.
    Head,
    /// Weight matrix of a block.
    Matrix,
    /// Norm gain or other vector.
    Gain,
    /// Rows that are looked up or added up: codes, banks, position tables. No decay.
    Table,
    /// What weighs streams: not updated during warm-up, when its gradient is noise.
    Controller,
    /// Drawn or counted once and never learnt.
    Fixed,
    /// A running mean of what backward leaves in the place of its gradient.
    Average,
}

/// How a parameter begins.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Init {
    /// All the same.
    Constant(f64),
    /// Normal around 0 with this standard deviation.
    Normal(f64),
    /// Uniform between minus and plus this.
    Uniform(f64),
    /// What softplus turns into decays whose half-lives, in tokens, go in equal ratios from the shortest to the longest over the elements.
    HalfLives { shortest: f64, longest: f64 },
}

impl Init {
    /// All zeros.
    pub const ZERO: Init = Init::Constant(0.0);

    /// `dt` of element `i` of `n`, with `softplus(dt) = ln 2 / half-life`.
    pub(crate) fn half_life_offset(shortest: f64, longest: f64, i: u64, n: usize) -> f64 {
        let share = i as f64 / (n.max(2) - 1) as f64;
        let half_life = shortest * (longest / shortest).powf(share);
        (std::f64::consts::LN_2 / half_life).exp_m1().ln()
    }

    /// `U(+-sqrt(3 / fan_in))`: rows of unit norm on average.
    pub fn fan_in(fan_in: usize) -> Init {
        Init::Uniform((3.0 / fan_in as f64).sqrt())
    }
}

/// One named range.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Name in Hugging Face's spelling.
    pub name: String,
    pub shape: Shape,
    pub offset_elems: usize,
    pub role: Role,
    pub init: Init,
}

impl Entry {
    /// Whether gradients change it.
    pub fn is_learnt(&self) -> bool {
        !matches!(self.role, Role::Fixed | Role::Average)
    }

    /// Its elements in the flat buffer.
    pub fn range(&self) -> Range<usize> {
        self.offset_elems..self.offset_elems + self.shape.elems()
    }
}

/// What lies where in the flat buffers.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    entries: Vec<Entry>,
    elems: usize,
}

impl Layout {
    /// Appends a parameter that begins at zero.
    pub fn push(&mut self, name: impl Into<String>, shape: impl Into<Shape>, role: Role) -> ParamId {
        self.push_init(name, shape, role, Init::ZERO)
    }

    /// Appends a parameter.
    pub fn push_init(&mut self, name: impl Into<String>, shape: impl Into<Shape>, role: Role, init: Init) -> ParamId {
        let entry = Entry { name: name.into(), shape: shape.into(), offset_elems: self.elems, role, init };
        self.elems += entry.shape.elems();
        self.entries.push(entry);
        ParamId(self.entries.len() as u32 - 1)
    }

    /// All entries in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// One entry.
    pub fn entry(&self, id: ParamId) -> &Entry {
        &self.entries[id.0 as usize]
    }

    /// Elements in all.
    pub fn elems(&self) -> usize {
        self.elems
    }

    /// Elements that are learnt.
    pub fn learnt_elems(&self) -> usize {
        self.entries.iter().filter(|entry| entry.is_learnt()).map(|entry| entry.shape.elems()).sum()
    }

    /// Offset and shape of a span: matrices of equal width that lie behind each other read as one with all their rows.
    fn span(&self, span: Span) -> (usize, Shape) {
        let first = self.entry(span.first);
        if span.count == 1 {
            return (first.offset_elems, first.shape);
        }
        let [_, cols] = first.shape.dims();
        let entries = &self.entries[span.first.0 as usize..][..span.count as usize];
        let rows = entries.iter().map(|entry| {
            let [rows, entry_cols] = entry.shape.dims();
            assert_eq!(entry_cols, cols, "{} joins matrices of another width", entry.name);
            rows
        });
        (first.offset_elems, Shape::from([rows.sum::<usize>(), cols]))
    }
}

/// One parameter, or several matrices of equal width in a row that are used as one (q, k, v; gate, up).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    pub first: ParamId,
    pub count: u32,
}

impl From<ParamId> for Span {
    fn from(first: ParamId) -> Span {
        Span { first, count: 1 }
    }
}

/// The parameters: master values (f32 or f64) and, where they are stored narrower for computing, a rounded copy. Some may be packed:
/// these have no master values, take no room in the flat buffer, and are for inference on the processor alone.
#[derive(Clone)]
pub struct Params {
    layout: Arc<Layout>,
    master: Tensor,
    rounded: Option<Tensor>,
    packed: Option<Arc<Packed>>,
    activation_bits: ActivationBits,
}

impl Params {
    /// All zeros; computing uses `dtype`.
    pub fn zeros(layout: Arc<Layout>, dtype: DType) -> Params {
        let elems = layout.elems();
        Params::flat(layout, dtype, elems, None)
    }

    /// All zeros but for the matrices that are packed; computing uses `dtype`.
    ///
    /// # Errors
    /// A user error where a matrix has another shape than its parameter.
    ///
    /// # Panics
    /// If a parameter comes twice.
    pub fn with_packed(
        layout: Arc<Layout>,
        dtype: DType,
        packed: Vec<(ParamId, PackedMatrix)>,
    ) -> anyhow::Result<Params> {
        let packed = Packed::new(&layout, packed)?;
        let elems = packed.dense_elems();
        Ok(Params::flat(layout, dtype, elems, Some(Arc::new(packed))))
    }

    fn flat(layout: Arc<Layout>, dtype: DType, elems: usize, packed: Option<Arc<Packed>>) -> Params {
        let master = Tensor::owned([elems], dtype.accumulator());
        let rounded = (dtype != dtype.accumulator()).then(|| Tensor::owned([elems], dtype));
        Params { layout, master, rounded, packed, activation_bits: ActivationBits::default() }
    }

    /// These parameters on `device`. A GPU takes packed ones where it computes in bf16, in rows of whole vectors, and gets others
    /// dequantised. By value: on the device where they lie already they stay the only handle, and so can be written.
    ///
    /// # Panics
    /// If packed ones come back from a GPU.
    pub fn to(self, device: Device) -> Params {
        let packed = match (&self.packed, device) {
            (None, _) => None,
            (Some(packed), Device::Gpu(gpu)) if self.dtype() == DType::Bf16 && packed.go_to_gpus() => {
                Some(Arc::new(packed.to_gpu(gpu)))
            }
            (Some(_), Device::Gpu(_)) => return self.dequantised().to(device),
            (Some(packed), Device::Cpu) => {
                assert!(!self.device().is_gpu(), "packed parameters do not come back from a GPU");
                Some(packed.clone())
            }
        };
        let (master, rounded) = (self.master.to(device), self.rounded.map(|rounded| rounded.to(device)));
        Params { master, rounded, packed, ..self }
    }

    /// The same, where products with quantised weights see the other operand so finely.
    pub fn with_activation_bits(self, activation_bits: ActivationBits) -> Params {
        Params { activation_bits, ..self }
    }

    /// Whether some are packed.
    pub fn has_packed(&self) -> bool {
        self.packed.is_some()
    }

    /// A copy for inference on the processor in which all that products and look-ups read is packed, element by element in the type that
    /// ops compute with. A row of a product is then the same bit for bit whatever rows are beside it.
    ///
    /// # Panics
    /// If they lie on a GPU, are packed already, or in f64.
    pub fn packed(&self) -> Params {
        let kind = match self.dtype() {
            DType::F32 => BlockType::F32,
            DType::Bf16 => BlockType::Bf16,
            dtype => panic!("{dtype} is not packed"),
        };
        let ids = || (0..).map(ParamId).zip(self.layout.entries());
        let is_packed = |entry: &Entry| matches!(entry.role, Role::Matrix | Role::Embedding | Role::Head);
        let pack = |(id, entry): (ParamId, &Entry)| {
            let matrix = PackedMatrix::new(kind, entry.shape.dims(), self.view(id).as_bytes());
            (id, matrix.expect("a matrix of elements"))
        };
        let packed = ids().filter(|(_, entry)| is_packed(entry)).map(pack).collect();
        let params = Params::with_packed(self.layout.clone(), self.dtype(), packed);
        let mut params = params.expect("shapes are the layout's");
        for (id, _) in ids().filter(|(_, entry)| !is_packed(entry)) {
            params.set_master(id, &self.master_view(id).to_f64());
        }
        params.round();
        params
    }

    /// A copy with nothing packed: every matrix dequantised, rounded to the type that ops compute with.
    pub fn dequantised(&self) -> Params {
        let mut params = Params::zeros(self.layout.clone(), self.dtype());
        for (i, entry) in self.layout.entries().iter().enumerate() {
            let id = ParamId(i as u32);
            let values: Vec<f64> = match self.stack(id.into()) {
                Some(matrices) => matrices[0].to_f32().into_iter().map(f64::from).collect(),
                None => self.master_view(id).to_f64(),
            };
            debug_assert_eq!(values.len(), entry.shape.elems());
            params.set_master(id, &values);
        }
        params.round();
        params
    }

    /// What lies where.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Where they lie.
    pub fn device(&self) -> Device {
        self.master.device()
    }

    /// The storage type that ops see.
    pub fn dtype(&self) -> DType {
        self.rounded.as_ref().unwrap_or(&self.master).dtype()
    }

    /// A parameter, or several as one, in the type that ops compute with.
    ///
    /// # Panics
    /// If it is packed.
    pub fn view(&self, span: impl Into<Span>) -> Tensor {
        let (offset, shape) = self.place(span.into());
        self.rounded.as_ref().unwrap_or(&self.master).view(offset, shape)
    }

    /// A matrix, or several as one, as products take it.
    pub fn weight(&self, span: impl Into<Span>) -> Weight<'_> {
        let span = span.into();
        match self.stack(span) {
            Some(matrices) => Weight::Packed(PackedWeight { matrices, bits: self.activation_bits }),
            None => Weight::Dense(self.view(span)),
        }
    }

    fn stack(&self, span: Span) -> Option<&[PackedMatrix]> {
        self.packed.as_ref().and_then(|packed| packed.stack(&self.layout, span))
    }

    /// Offset in the flat buffer and shape of a span.
    fn place(&self, span: Span) -> (usize, Shape) {
        let (offset, shape) = self.layout.span(span);
        (self.packed.as_ref().map_or(offset, |packed| packed.offset_elems(&self.layout, span)), shape)
    }

    /// The first rows of a table.
    pub fn first_rows(&self, table: ParamId, rows: usize) -> Tensor {
        let table = self.view(table);
        let [_, cols] = table.dims();
        table.view(0, [rows, cols])
    }

    /// A parameter's master values: what is never rounded.
    pub fn master_view(&self, id: ParamId) -> Tensor {
        let (offset, shape) = self.place(id.into());
        self.master.view(offset, shape)
    }

    /// The master values, flat.
    pub fn master(&self) -> &Tensor {
        &self.master
    }

    /// The master values, to write; [`Params::round`] must follow before the next forward.
    pub fn master_mut(&mut self) -> &mut Tensor {
        &mut self.master
    }

    /// The master values of one parameter, to write.
    pub fn master_entry_mut(&mut self, id: ParamId) -> TensorMut<'_> {
        let (offset, shape) = self.place(id.into());
        self.master.view_mut(offset, shape)
    }

    /// Overwrites one parameter with `values`, wherever it lies; [`Params::round`] must follow before the next forward.
    pub fn set_master(&mut self, id: ParamId, values: &[f64]) {
        self.master_entry_mut(id).copy_from_f64(values);
    }

    /// Brings the rounded copy up to date with the master values.
    pub fn round(&mut self) {
        if let Some(rounded) = &mut self.rounded {
            self.master.cast_into(rounded);
        }
    }
}

/// The gradients of all parameters, flat, in the accumulator type.
pub struct Grads {
    layout: Arc<Layout>,
    flat: Tensor,
}

impl Grads {
    /// Zero gradients, on the host, for parameters that are computed with in `dtype`.
    pub fn zeros(layout: Arc<Layout>, dtype: DType) -> Grads {
        Grads::zeros_on(Device::Cpu, layout, dtype)
    }

    /// Zero gradients on `device`.
    pub fn zeros_on(device: Device, layout: Arc<Layout>, dtype: DType) -> Grads {
        let flat = Tensor::owned_on(device, [layout.elems()], dtype.accumulator());
        Grads { layout, flat }
    }

    /// The flat buffer.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// The flat buffer, to write.
    pub fn flat_mut(&mut self) -> &mut Tensor {
        &mut self.flat
    }

    /// Sets all to zero.
    pub fn clear(&mut self) {
        self.flat.clear();
    }

    /// The gradient of a parameter, or of several as one, to add to.
    pub fn view_mut(&mut self, span: impl Into<Span>) -> TensorMut<'_> {
        let (offset, shape) = self.layout.span(span.into());
        self.flat.view_mut(offset, shape)
    }

    /// The gradients of several parameters or stacks of them, no two of which overlap, to add to.
    pub fn disjoint_mut<const N: usize>(&mut self, spans: [Span; N]) -> [TensorMut<'_>; N] {
        let parts = spans.map(|span| self.layout.span(span));
        self.flat.view_mut_disjoint(parts)
    }

    /// The gradients of two parameters or stacks of them.
    pub fn pair_mut(&mut self, first: impl Into<Span>, second: impl Into<Span>) -> [TensorMut<'_>; 2] {
        self.disjoint_mut([first.into(), second.into()])
    }

    /// The gradients of a parameter and of the first rows of a table.
    pub fn with_first_rows_mut(&mut self, first: ParamId, table: ParamId, rows: usize) -> [TensorMut<'_>; 2] {
        let (offset, shape) = self.layout.span(table.into());
        let [_, cols] = shape.dims();
        self.flat.view_mut_disjoint([self.layout.span(first.into()), (offset, Shape::from([rows, cols]))])
    }

    /// The gradient of one parameter.
    pub fn view(&self, id: ParamId) -> Tensor {
        let (offset, shape) = self.layout.span(id.into());
        self.flat.view(offset, shape)
    }
}
