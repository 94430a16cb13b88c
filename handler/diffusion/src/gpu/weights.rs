//! A component's weights on the GPU: where each tensor lies, and how its numbers come and change there.

use super::{
    Arg, Array, Dtype, Gpu, GpuError, Launch, Pinned, Result,
    arena::Arena,
    constants::{FOLD_ROWS, MERGE_TILE},
    lock,
    residency::Stay,
};
use rayon::prelude::*;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex},
};

/// Where numbers come from, by the name of their tensor.
pub(crate) trait Source: Sync {
    /// The tensor's dtype there.
    fn dtype(&self, name: &str) -> Result<Dtype>;
    /// Fills `into` from `from` bytes into the tensor.
    fn read(&self, name: &str, from: usize, into: &mut [u8]) -> Result<()>;
}

/// A tensor of `[rows, inner, area]`, a filter for example, that becomes `[rows, area, inner]`, with zeros up to
/// `inner_out` and `rows_out`. Filters of 3x3 may become `[rows, 4 phases, 4, inner]`: see [`PhasesShape`](super::conv::PhasesShape).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WeightLayout {
    /// Rows of the tensor.
    pub rows: usize,
    /// Second dimension of the tensor.
    pub inner: usize,
    /// Product of the other dimensions.
    pub area: usize,
    /// Rows here, at least as many.
    pub rows_out: usize,
    /// Last dimension here, at least as long.
    pub inner_out: usize,
    /// Whether filters, whose area is 9, become four phases.
    pub phased: bool,
}

/// Weights of a filter of 3x3, and of its phases.
const FILTER: usize = 9;
const PHASES: usize = 16;

impl WeightLayout {
    /// Numbers of a row here.
    fn width(&self) -> usize {
        self.inner_out * if self.phased { PHASES } else { self.area }
    }

    /// Whether rows lie here as in the tensor.
    pub(super) fn is_plain(&self) -> bool {
        self.area == 1 && self.inner == self.inner_out
    }
}

/// A product of `[rows, rank]` and `[rank, columns]`, to be added to a tensor.
pub(crate) struct Product {
    /// The tensor's name.
    pub name: String,
    /// Rows of the left factor.
    pub rows: usize,
    /// Columns of the right factor.
    pub columns: usize,
    /// Columns of the left factor and rows of the right one.
    pub rank: usize,
}

/// Writes both factors of the product with that index.
pub(crate) type WriteFactors<'a> = dyn Fn(usize, &mut [f32], &mut [f32]) -> Result<()> + Sync + 'a;

/// Changes some tensors, which are there meanwhile: names and slots.
type Change<'a> = dyn Fn(&[(&str, &Slot)]) -> Result<()> + 'a;

/// Rows of an array that one tensor fills.
pub(super) struct Slot {
    pub(super) target: Array,
    pub(super) first_row: usize,
    pub(super) layout: WeightLayout,
    /// If a layer norm is part of the array.
    pub(super) behind_norm: Option<BehindNormLayout>,
}

/// Names of tensors that [`Placed::place_behind_norm`] puts into one array.
pub(crate) struct BehindNorm {
    /// Weight and bias of the norm.
    pub norm: [String; 2],
    /// Weights of the layers behind it.
    pub weights: Vec<String>,
    /// Their biases, or none.
    pub biases: Vec<String>,
}

/// How an array lies that has a layer norm in it, in rows of as many numbers as the norm has channels: the weights of the layers behind
/// it, then weight and bias of the norm, the layers' biases if they have some, and the biases that come of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct BehindNormLayout {
    rows: usize,
    channels: usize,
    has_bias: bool,
}

impl BehindNormLayout {
    /// Rows of as many numbers as there are biases.
    fn bias_rows(&self) -> usize {
        self.rows / self.channels
    }

    fn norm_row(&self) -> usize {
        self.rows
    }

    fn bias_row(&self) -> usize {
        self.rows + 2
    }

    fn out_row(&self) -> usize {
        self.bias_row() + if self.has_bias { self.bias_rows() } else { 0 }
    }
}

/// Where the tensors of one component lie, or those of a section of it. Their pages have no memory before [`Placed::settle`].
pub(crate) struct Placed {
    arena: Arc<Mutex<Arena>>,
    component: Arc<Component>,
}

/// What the sections of a component share.
struct Component {
    gpu: Gpu,
    dtype: Dtype,
    page: usize,
    sections: Mutex<Vec<Arc<Mutex<Arena>>>>,
    slots: Mutex<HashMap<String, Vec<Slot>>>,
}

impl Placed {
    /// Without any tensors yet. `page` is the piece in which memory comes and goes, in bytes: a multiple of 2 MiB.
    pub(crate) fn new(gpu: &Gpu, dtype: Dtype, page: usize) -> Result<Arc<Self>> {
        let (sections, slots) = (Mutex::default(), Mutex::default());
        let component = Component { gpu: gpu.clone(), dtype, page, sections, slots };
        Self::of(component.into())
    }

    /// Another section of the component, which comes and leaves by itself.
    pub(crate) fn section(&self) -> Result<Arc<Self>> {
        Self::of(self.component.clone())
    }

    fn of(component: Arc<Component>) -> Result<Arc<Self>> {
        let arena = component.gpu.arena_of_pages(component.page)?;
        lock(&component.sections).push(arena.clone());
        Ok(Arc::new(Self { arena, component }))
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.component.gpu
    }

    pub(crate) fn dtype(&self) -> Dtype {
        self.component.dtype
    }

    /// Bytes of a page, and how many pages this section has.
    pub(crate) fn pages(&self) -> (usize, usize) {
        let arena = lock(&self.arena);
        (arena.page(), arena.end() / arena.page())
    }

    /// The first and last page of each array of this section that tensors fill, in order of address.
    pub(crate) fn spans(&self) -> Vec<(usize, usize)> {
        let slots = lock(&self.component.slots);
        let ours = slots.values().flatten().filter(|slot| slot.target.is_in(&self.arena));
        let mut spans: Vec<_> = ours.map(|slot| slot.target.pages()).collect();
        spans.sort_unstable();
        spans.dedup();
        spans
    }

    /// Gives every page of this section memory, or takes it away: see [`Stay`]. Numbers stay what they are. `places` are the pages of
    /// memory that streamed pages share.
    ///
    /// # Errors
    /// The driver's; memory is short. Then it must be settled again before anything else.
    pub(crate) fn settle(&self, stays: &[Stay], places: usize) -> Result<()> {
        let mut arena = lock(&self.arena);
        arena.residency().map_or(Ok(()), |residency| residency.settle(self.gpu(), stays, places))
    }

    /// All pages have memory from now on.
    #[cfg(all(test, feature = "cuda"))]
    pub(crate) fn keep(&self) -> Result<()> {
        self.settle(&vec![Stay::Kept; self.pages().1], 0)
    }

    /// Brings the pages that left, in the order of the GPU's work. After an error all are away.
    pub(crate) fn come(&self) -> Result<bool> {
        lock(&self.arena).residency().map_or(Ok(false), |residency| residency.come(self.gpu()))
    }

    /// Gives the memory of lent pages back until [`Placed::come`]. A kernel that uses them meanwhile fails, and the GPU is lost.
    pub(crate) fn leave(&self) -> Result<()> {
        lock(&self.arena).residency().map_or(Ok(()), |residency| residency.leave(self.gpu()))
    }

    /// Makes a recorded pass over the tensors possible: fills the window of those that are streamed.
    pub(crate) fn ready(&self) -> Result<()> {
        lock(&self.arena).residency().map_or(Ok(()), |residency| residency.ready(self.gpu()))
    }

    /// One pass over the tensors, in the order in which they were placed: streamed ones come ahead of their use.
    pub(crate) fn pass<T>(&self, work: impl FnOnce() -> candle_core::Result<T>) -> candle_core::Result<T> {
        lock(&self.arena).residency().map_or(Ok(()), |residency| residency.begin(self.gpu()))?;
        let done = work()?;
        lock(&self.arena).residency().map_or(Ok(()), |residency| residency.end(self.gpu()))?;
        Ok(done)
    }

    /// Makes room for tensors of one width, row under row: `[rows of all, area x inner_out]`, or `[rows of all, 16 x inner_out]`.
    ///
    /// # Errors
    /// Widths differ, or a tensor does not fit its room.
    pub(crate) fn place(&self, tensors: &[(String, WeightLayout)]) -> Result<Array> {
        let rows = tensors.iter().map(|(_, layout)| layout.rows_out).sum();
        let width = tensors.first().map_or(0, |(_, layout)| layout.width());
        let fits = |layout: &WeightLayout| {
            layout.width() == width
                && layout.rows <= layout.rows_out
                && layout.inner <= layout.inner_out
                && (!layout.phased || layout.area == FILTER)
        };
        if let Some((name, layout)) = tensors.iter().find(|(_, layout)| !fits(layout)) {
            return Err(GpuError::Unavailable(format!("{name} has no room in rows of {width}: {layout:?}")));
        }
        let target = Array::new(self.gpu(), &self.arena, &[rows, width], self.dtype())?;
        let (mut slots, mut first_row) = (lock(&self.component.slots), 0);
        for (name, layout) in tensors {
            let slot = Slot { target: target.clone(), first_row, layout: *layout, behind_norm: None };
            slots.entry(name.clone()).or_default().push(slot);
            first_row += layout.rows_out;
        }
        Ok(target)
    }

    /// Makes room for layers of `each` outputs behind a layer norm, of which `each` is a multiple. Returns the weight `[outputs of all,
    /// channels]` and the bias `[1, outputs of all]` that take the place of both: [`Placed::fill`] makes them.
    ///
    /// # Errors
    /// There is not enough memory.
    pub(crate) fn place_behind_norm(&self, names: &BehindNorm, each: usize, channels: usize) -> Result<[Array; 2]> {
        let layout =
            BehindNormLayout { rows: names.weights.len() * each, channels, has_bias: !names.biases.is_empty() };
        let all = layout.out_row() + layout.bias_rows();
        let target = Array::new(self.gpu(), &self.arena, &[all, channels], self.dtype())?;
        let weights = (each, 0, &names.weights[..]);
        let parts =
            [weights, (1, layout.norm_row(), &names.norm[..]), (each / channels, layout.bias_row(), &names.biases)];
        let mut slots = lock(&self.component.slots);
        for (rows, first_row, names) in parts {
            let of_one =
                WeightLayout { rows, inner: channels, area: 1, rows_out: rows, inner_out: channels, phased: false };
            for (index, name) in names.iter().enumerate() {
                let first_row = first_row + index * rows;
                let slot = Slot { target: target.clone(), first_row, layout: of_one, behind_norm: Some(layout) };
                slots.entry(name.clone()).or_default().push(slot);
            }
        }
        let bias = target.part(layout.out_row(), layout.bias_rows()).reshaped(&[1, layout.rows]);
        Ok([target.part(0, layout.rows), bias])
    }

    /// Whether there is a tensor of that name.
    pub(crate) fn has(&self, name: &str) -> bool {
        lock(&self.component.slots).contains_key(name)
    }

    /// Whether a tensor lies here as a plain matrix, to which products can be added.
    pub(crate) fn takes_products(&self, name: &str) -> bool {
        let slots = lock(&self.component.slots);
        slots.get(name).is_some_and(|slots| slots.iter().all(|slot| slot.layout.is_plain()))
    }

    /// Changes tensors of all sections, or those of some names, by `work`, which may be called several times, each time with some of
    /// them. Pages that are away come for it and leave afterwards; what is streamed comes as far as the window holds it.
    fn change(&self, only: Option<&[String]>, work: &Change) -> Result<()> {
        let slots = lock(&self.component.slots);
        let wanted: BTreeMap<&String, &Vec<Slot>> = match only {
            Some(names) => names.iter().filter_map(|name| slots.get_key_value(name)).collect(),
            None => slots.iter().collect(),
        };
        let wanted = wanted.into_iter().flat_map(|(name, slots)| slots.iter().map(|slot| (name.as_str(), slot)));
        let mut wanted: Vec<_> = wanted.collect();
        wanted.sort_by_key(|(_, slot)| (slot.target.address(), slot.first_row));
        for section in lock(&self.component.sections).iter() {
            let ours: Vec<_> = wanted.iter().copied().filter(|(_, slot)| slot.target.is_in(section)).collect();
            if !ours.is_empty() {
                self.change_section(section, &ours, work)?;
            }
        }
        Ok(())
    }

    fn change_section(&self, section: &Mutex<Arena>, mut rest: &[(&str, &Slot)], work: &Change) -> Result<()> {
        let gpu = self.gpu();
        let no_pages = || GpuError::Unavailable("weights in an arena without pages".into());
        let came = lock(section).residency().ok_or_else(no_pages)?.come(gpu)?;
        if came {
            gpu.synchronize()?;
        }
        let mut changed = Ok(());
        while changed.is_ok() && !rest.is_empty() {
            let spans: Vec<_> = rest.iter().map(|(_, slot)| slot.target.pages()).collect();
            let count = lock(section).residency().map_or(0, |residency| residency.at_once(&spans));
            let (now, later) = rest.split_at(count);
            let span = spans.into_iter().take(count).reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)));
            let Some(span) = span else {
                changed = Err(GpuError::Unavailable(format!("{} is longer than the window", rest[0].0)));
                break;
            };
            changed = self.change_pages(section, span, now, work);
            rest = later;
        }
        let left = if came { lock(section).residency().ok_or_else(no_pages)?.leave(gpu) } else { Ok(()) };
        changed.and(left)
    }

    fn change_pages(
        &self,
        section: &Mutex<Arena>,
        span: (usize, usize),
        slots: &[(&str, &Slot)],
        work: &Change,
    ) -> Result<()> {
        let opened = lock(section).residency().map_or(Ok(false), |residency| residency.open(self.gpu(), span))?;
        if opened {
            self.gpu().synchronize()?;
        }
        work(slots)?;
        let pages: HashSet<usize> = slots
            .iter()
            .flat_map(|(_, slot)| {
                let (first, last) = slot.target.pages();
                first..=last
            })
            .collect();
        let mut section = lock(section);
        section.residency().map_or(Ok(()), |residency| residency.store(self.gpu(), &pages))
    }

    /// Fills tensors of some names, and then adds products to tensors in place, in f32, and rounds once. All factors go to the GPU in one
    /// copy. Tensors to which products are added must be there as the source has them, or be filled. Returns when the numbers are there.
    pub(crate) fn rewrite(
        &self,
        source: &dyn Source,
        only: &[String],
        products: &[Product],
        write: &WriteFactors,
    ) -> Result<()> {
        let index_of: HashMap<&str, usize> =
            products.iter().enumerate().map(|(index, product)| (product.name.as_str(), index)).collect();
        let changed: Vec<String> = only.iter().chain(products.iter().map(|product| &product.name)).cloned().collect();
        let filled: HashSet<String> = only.iter().cloned().chain(self.behind_norms(&changed)).collect();
        let all: Vec<String> = changed.into_iter().chain(filled.iter().cloned()).collect();
        self.change(Some(&all), &|slots| {
            let (fills, adds): (Vec<_>, Vec<_>) = (
                slots.iter().copied().filter(|(name, _)| filled.contains(*name)).collect(),
                slots.iter().filter_map(|(name, slot)| Some((*index_of.get(name)?, *slot))).collect(),
            );
            self.upload(source, &fills)?;
            self.add_to(&adds, products, write)?;
            // What follows is on another stream.
            self.gpu().synchronize()?;
            self.put_norms_behind(slots)
        })
    }

    /// The tensors of all arrays with a layer norm in them, of which one of these is a part: if one changes, all are filled.
    fn behind_norms(&self, names: &[String]) -> Vec<String> {
        let slots = lock(&self.component.slots);
        let norms = |slot: &&Slot| slot.behind_norm.is_some();
        let of_names = names.iter().filter_map(|name| slots.get(name)).flatten().filter(norms);
        let targets: HashSet<u64> = of_names.map(|slot| slot.target.address()).collect();
        let is_part = |slot: &Slot| slot.behind_norm.is_some() && targets.contains(&slot.target.address());
        slots.iter().filter(|(_, slots)| slots.iter().any(is_part)).map(|(name, _)| name.clone()).collect()
    }

    /// Adds to each slot the product of that index.
    fn add_to(&self, slots: &[(usize, &Slot)], products: &[Product], write: &WriteFactors) -> Result<()> {
        let of = |&(index, _): &(usize, &Slot)| &products[index];
        let sizes = slots.iter().map(of).map(|product| (product.rows * product.rank, product.rank * product.columns));
        let count = sizes.clone().map(|(left, right)| left + right).sum::<usize>();
        if count == 0 {
            return Ok(());
        }
        let mut kept = lock(&self.gpu().0.staging);
        let pinned = Pinned::at_least(&mut kept, self.gpu(), 4 * count)?;
        let mut rest = &mut pinned.numbers(count)?[..];
        let mut factors = Vec::with_capacity(slots.len());
        for ((left, right), (index, _)) in sizes.zip(slots) {
            let (first, more) = std::mem::take(&mut rest).split_at_mut(left);
            let (second, more) = more.split_at_mut(right);
            factors.push((*index, first, second));
            rest = more;
        }
        factors.into_par_iter().map(|(index, left, right)| write(index, left, right)).collect::<Result<()>>()?;
        let on_gpu = self.gpu().scratch(&[count], Dtype::F32)?;
        on_gpu.fill_from(pinned)?;
        let mut at = on_gpu.address();
        for (index, slot) in slots {
            let Product { name, rows, columns, rank } = &products[*index];
            let (left, right) = (at, at + 4 * (rows * rank) as u64);
            at = right + 4 * (rank * columns) as u64;
            if (slot.layout.rows, slot.layout.inner) != (*rows, *columns) || !slot.layout.is_plain() {
                return Err(GpuError::Unavailable(format!("{name} is not {rows} x {columns}")));
            }
            let first = slot.first_row * columns * self.dtype().bytes();
            let target = Arg::At(slot.target.address() + first as u64);
            let sizes = [rows, columns, rank].map(|&size| Arg::Int(size));
            let args = [&[target, target, Arg::At(left), Arg::At(right)], &sizes[..], &[Arg::Float(1.0)]].concat();
            let name = format!("merge_low_rank_{}", self.dtype().name());
            let grid = [columns.div_ceil(MERGE_TILE), rows.div_ceil(MERGE_TILE), 1];
            let launch = Launch { name, grid, block: 256, shared: 0 };
            // SAFETY: the slot has that many rows, of that many columns as the layout is plain, and its pages have memory; both factors
            // lie one after the other in `on_gpu`, which has room for all of them.
            unsafe { self.gpu().launch(launch, &args)? };
        }
        Ok(())
    }

    /// Fills the padding of all tensors with zeros. To be called once, before or after they are filled.
    pub(crate) fn clear_padding(&self) -> Result<()> {
        let padded = |slot: &Slot| slot.layout.rows_out > slot.layout.rows;
        let names = lock(&self.component.slots)
            .iter()
            .filter(|(_, slots)| slots.iter().any(padded))
            .map(|(name, _)| name.clone())
            .collect::<Vec<_>>();
        self.change(Some(&names), &|slots| {
            slots.iter().filter(|(_, slot)| padded(slot)).try_for_each(|(_, slot)| {
                let WeightLayout { rows, rows_out, .. } = slot.layout;
                self.gpu().clear(&slot.target.part(slot.first_row + rows, rows_out - rows))
            })
        })
    }

    /// Fills every tensor of the component, or those of some names. Returns when the numbers are there.
    pub(crate) fn fill(&self, source: &dyn Source, only: Option<&[String]>) -> Result<()> {
        let only = only.map(|names| [names, &self.behind_norms(names)].concat());
        self.change(only.as_deref(), &|slots| {
            self.upload(source, slots)?;
            self.put_norms_behind(slots)
        })
    }

    /// Makes the weights and biases of layers behind a norm, of which these are all tensors, as they came from the source.
    fn put_norms_behind(&self, slots: &[(&str, &Slot)]) -> Result<()> {
        let mut arrays: Vec<_> = slots.iter().filter_map(|(_, slot)| Some((&slot.target, slot.behind_norm?))).collect();
        arrays.dedup_by_key(|(target, _)| target.address());
        let launches = arrays.into_iter().map(|(target, layout)| {
            let row = |row: usize| Arg::At(target.address() + (row * layout.channels * self.dtype().bytes()) as u64);
            let bias = if layout.has_bias { row(layout.bias_row()) } else { Arg::At(0) };
            let rows = [0, layout.norm_row(), layout.norm_row() + 1].map(row);
            let sizes = [layout.rows, layout.channels].map(Arg::Int);
            let name = format!("fold_layer_norm_{}", self.dtype().name());
            let launch =
                Launch { name, grid: [layout.rows.div_ceil(FOLD_ROWS), 1, 1], block: 32 * FOLD_ROWS, shared: 0 };
            (launch, [&rows[..], &[bias, row(layout.out_row())], &sizes].concat())
        });
        // SAFETY: all rows are in the array, whose pages have memory here, as `BehindNormLayout` counts them.
        unsafe { self.launch_beside(launches) }
    }
}
