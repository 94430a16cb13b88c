//! A component's weights on the GPU, and their way there: several threads read them into pinned memory and copy them, and a kernel
//! puts them into dtype and layout.

use super::{
    Arg, Array, Dtype, Gpu, GpuError, Launch, Pinned, Result, arena::Arena, check, check_safe, constants::MERGE_TILE,
    lock,
};
use cudarc::driver::{CudaStream, sys};
use rayon::prelude::*;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Bytes copied at once.
const CHUNK: usize = 2 << 20;
/// The page of a component's arena, in bytes.
const PAGE: usize = 8 << 20;
/// More threads than this gain nothing, because the bus is saturated.
const MOST_THREADS: usize = 8;

/// Where numbers come from, by the name of their tensor.
pub(crate) trait Source: Sync {
    /// The tensor's dtype there.
    fn dtype(&self, name: &str) -> Result<Dtype>;
    /// Fills `into` from `from` bytes into the tensor.
    fn read(&self, name: &str, from: usize, into: &mut [u8]) -> Result<()>;
}

/// A tensor of `[rows, inner, area]`, a filter for example, that becomes `[rows, area, inner]`, with zeros up to
/// `inner_out` and `rows_out`.
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
}

impl WeightLayout {
    /// Whether rows lie here as in the tensor.
    fn is_plain(&self) -> bool {
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

/// Rows of an array that one tensor fills.
struct Slot {
    target: Array,
    first_row: usize,
    layout: WeightLayout,
}

/// Where the tensors of one component lie.
pub(crate) struct Placed {
    gpu: Gpu,
    dtype: Dtype,
    arena: Arc<Mutex<Arena>>,
    slots: Mutex<HashMap<String, Vec<Slot>>>,
}

/// What one thread needs: a stream, and two pairs of buffers, one of the host and one of the GPU. They live as long as the GPU.
pub(super) struct Lane {
    stream: Arc<CudaStream>,
    buffers: [(Pinned, Array); 2],
}

/// Some rows of one tensor.
struct Piece<'a> {
    name: &'a str,
    slot: &'a Slot,
    from: usize,
    rows: usize,
}

impl Placed {
    /// Without any tensors yet.
    pub(crate) fn new(gpu: &Gpu, dtype: Dtype) -> Result<Arc<Self>> {
        let arena = gpu.arena(PAGE)?;
        Ok(Arc::new(Self { gpu: gpu.clone(), dtype, arena, slots: Mutex::default() }))
    }

    /// Gives the memory back until [`Placed::restore`]. A kernel that uses the tensors meanwhile fails, and the GPU is lost.
    pub(crate) fn offload(&self) -> Result<()> {
        self.gpu.synchronize()?;
        lock(&self.arena).release()
    }

    /// Brings the tensors back if they were offloaded, to the same addresses. After an error they are offloaded again.
    pub(crate) fn restore(&self, source: &dyn Source) -> Result<()> {
        if lock(&self.arena).restore()? {
            // Or the next picture would be painted with half of the numbers.
            self.fill_again(source).or_else(|error| self.offload().and(Err(error)))?;
        }
        Ok(())
    }

    fn fill_again(&self, source: &dyn Source) -> Result<()> {
        for slot in lock(&self.slots).values().flatten() {
            if slot.layout.rows_out > slot.layout.rows {
                self.gpu.clear(&slot.target)?;
            }
        }
        self.gpu.synchronize()?;
        self.fill(source, None)
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Makes room for tensors of one width, row under row: `[rows of all, area x inner_out]`.
    ///
    /// # Errors
    /// Widths differ, or a tensor does not fit its room; memory is short.
    pub(crate) fn place(&self, tensors: &[(String, WeightLayout)]) -> Result<Array> {
        let rows = tensors.iter().map(|(_, layout)| layout.rows_out).sum();
        let width = tensors.first().map_or(0, |(_, layout)| layout.area * layout.inner_out);
        let fits = |layout: &WeightLayout| {
            layout.area * layout.inner_out == width
                && layout.rows <= layout.rows_out
                && layout.inner <= layout.inner_out
        };
        if let Some((name, layout)) = tensors.iter().find(|(_, layout)| !fits(layout)) {
            return Err(GpuError::Unavailable(format!("{name} has no room in rows of {width}: {layout:?}")));
        }
        let target = Array::new(&self.gpu, &self.arena, &[rows, width], self.dtype)?;
        if tensors.iter().any(|(_, layout)| layout.rows_out > layout.rows) {
            self.gpu.clear(&target)?;
        }
        let (mut slots, mut first_row) = (lock(&self.slots), 0);
        for (name, layout) in tensors {
            let slot = Slot { target: target.clone(), first_row, layout: *layout };
            slots.entry(name.clone()).or_default().push(slot);
            first_row += layout.rows_out;
        }
        Ok(target)
    }

    /// Whether there is a tensor of that name.
    pub(crate) fn has(&self, name: &str) -> bool {
        lock(&self.slots).contains_key(name)
    }

    /// Whether a tensor lies here as a plain matrix, to which products can be added.
    pub(crate) fn takes_products(&self, name: &str) -> bool {
        lock(&self.slots).get(name).is_some_and(|slots| slots.iter().all(|slot| slot.layout.is_plain()))
    }

    /// Adds products to tensors in place, in f32, and rounds once. All factors go to the GPU in one copy.
    pub(crate) fn add_products(&self, products: &[Product], write: &WriteFactors) -> Result<()> {
        let sizes = products.iter().map(|product| (product.rows * product.rank, product.rank * product.columns));
        let count = sizes.clone().map(|(left, right)| left + right).sum::<usize>();
        if count == 0 {
            return Ok(());
        }
        let mut kept = lock(&self.gpu.0.factors);
        let pinned = match kept.take().filter(|pinned| pinned.holds(count)) {
            Some(pinned) => kept.insert(pinned),
            None => kept.insert(Pinned::new(&self.gpu, 4 * count)?),
        };
        let mut rest = &mut pinned.numbers(count)?[..];
        let mut factors = Vec::with_capacity(products.len());
        for (left, right) in sizes {
            let (first, more) = std::mem::take(&mut rest).split_at_mut(left);
            let (second, more) = more.split_at_mut(right);
            factors.push((first, second));
            rest = more;
        }
        let written = factors.into_par_iter().enumerate().map(|(index, (left, right))| write(index, left, right));
        written.collect::<Result<()>>()?;
        let on_gpu = self.gpu.scratch(&[count], Dtype::F32)?;
        on_gpu.fill_from(pinned)?;
        let (slots, mut at) = (lock(&self.slots), on_gpu.address());
        for Product { name, rows, columns, rank } in products {
            let (left, right) = (at, at + 4 * (rows * rank) as u64);
            at = right + 4 * (rank * columns) as u64;
            for slot in slots.get(name).into_iter().flatten() {
                if (slot.layout.rows, slot.layout.inner) != (*rows, *columns) || !slot.layout.is_plain() {
                    return Err(GpuError::Unavailable(format!("{name} is not {rows} x {columns}")));
                }
                let first = slot.first_row * columns * self.dtype.bytes();
                let target = Arg::At(slot.target.address() + first as u64);
                let sizes = [rows, columns, rank].map(|&size| Arg::Int(size));
                let args = [&[target, target, Arg::At(left), Arg::At(right)], &sizes[..], &[Arg::Float(1.0)]].concat();
                let name = format!("merge_low_rank_{}", self.dtype.name());
                let grid = [columns.div_ceil(MERGE_TILE), rows.div_ceil(MERGE_TILE), 1];
                let launch = Launch { name, grid, block: 256, shared: 0 };
                // SAFETY: the slot has that many rows, of that many columns as the layout is plain; both factors lie one after the
                // other in `on_gpu`, which has room for all of them.
                unsafe { self.gpu.launch(launch, &args)? };
            }
        }
        Ok(())
    }

    /// Fills every tensor, or those of some names, on streams of its own. Returns when the numbers are there.
    pub(crate) fn fill(&self, source: &dyn Source, only: Option<&[String]>) -> Result<()> {
        let slots = lock(&self.slots);
        let wanted: BTreeMap<&String, &Vec<Slot>> = match only {
            Some(names) => names.iter().filter_map(|name| slots.get_key_value(name)).collect(),
            None => slots.iter().collect(),
        };
        let mut pieces = Vec::new();
        for (name, slots) in wanted {
            let dtype = source.dtype(name)?;
            for slot in slots {
                let row = slot.layout.inner * slot.layout.area * dtype.bytes();
                if row > CHUNK {
                    return Err(GpuError::Unavailable(format!("{name} has rows of {row} bytes, the limit is {CHUNK}")));
                }
                let at_once = CHUNK / row.max(1);
                let pieces_of = (0..slot.layout.rows).step_by(at_once);
                pieces.extend(pieces_of.map(|from| {
                    let rows = at_once.min(slot.layout.rows - from);
                    Piece { name: name.as_str(), slot, from, rows }
                }));
            }
        }
        self.upload(source, &pieces)
    }

    /// Shares pieces out among threads.
    fn upload(&self, source: &dyn Source, pieces: &[Piece]) -> Result<()> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = cores.min(MOST_THREADS).min(pieces.len());
        while lock(&self.gpu.0.lanes).len() < threads {
            let lane = Lane::new(&self.gpu)?;
            lock(&self.gpu.0.lanes).push(lane);
        }
        let mut lanes = std::mem::take(&mut *lock(&self.gpu.0.lanes));
        let next = AtomicUsize::new(0);
        let run = |lane: &mut Lane| -> Result<()> {
            self.gpu.enter()?;
            let mut turn = 0;
            let mut upload = || {
                while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    lane.upload(self, source, piece, turn)?;
                    turn = 1 - turn;
                }
                Ok(())
            };
            let uploaded = upload();
            // Also after an error: nothing may be on its way to memory that is given back then.
            let waited = check_safe("cuStreamSynchronize", lane.stream.synchronize());
            uploaded.and(waited)
        };
        let uploaded = thread::scope(|scope| {
            let running: Vec<_> = lanes.iter_mut().take(threads).map(|lane| scope.spawn(|| run(lane))).collect();
            let stopped = |_| Err(GpuError::Unavailable("a thread that carries weights stopped".into()));
            running.into_iter().map(|thread| thread.join().unwrap_or_else(stopped)).collect::<Vec<_>>()
        });
        *lock(&self.gpu.0.lanes) = lanes;
        uploaded.into_iter().collect()
    }
}

impl Lane {
    fn new(gpu: &Gpu) -> Result<Self> {
        let stream = check_safe("cuStreamCreate", gpu.0.context.new_stream())?;
        let buffers = || Ok::<_, GpuError>((Pinned::new(gpu, CHUNK)?, gpu.resident(&[CHUNK / 4], Dtype::F32)?));
        Ok(Self { stream, buffers: [buffers()?, buffers()?] })
    }

    fn upload(&mut self, placed: &Placed, source: &dyn Source, piece: &Piece, turn: usize) -> Result<()> {
        let Slot { target, first_row, layout } = piece.slot;
        let WeightLayout { inner, area, inner_out, .. } = *layout;
        let (pinned, staged) = &mut self.buffers[turn];
        let from = source.dtype(piece.name)?;
        let row = inner * area * from.bytes();
        // No more than there is room for in both buffers.
        let bytes = pinned.bytes(piece.rows * row)?;
        source.read(piece.name, piece.from * row, bytes)?;
        let first_row = first_row + piece.from;
        let plain = from == placed.dtype && layout.is_plain();
        let to = if plain { target.address() + (first_row * row) as u64 } else { staged.address() };
        let stream = self.stream.cu_stream();
        // SAFETY: the pinned bytes, which cannot be borrowed again until the stream has passed the mark below, go to this lane's own
        // buffer of the same size, or to the piece's rows of the target, which has room for them: see `Placed::place`.
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), stream) };
        check("cuMemcpyHtoDAsync", code)?;
        let arranged = if plain {
            Ok(())
        } else {
            let name = format!("place_{}_{}", from.name(), placed.dtype.name());
            let blocks = (piece.rows * area * inner_out).div_ceil(8 * 256).max(1);
            let (grid, block) = ([blocks, 1, 1], 256);
            let numbers =
                [Arg::Long(first_row), Arg::Long(piece.rows), Arg::Int(inner), Arg::Int(area), Arg::Int(inner_out)];
            let args = [&[Arg::At(to), Arg::At(target.address())], numbers.as_slice()].concat();
            // SAFETY: reads what was copied above, and writes the piece's rows of the target.
            unsafe { placed.gpu.0.kernels.launch(&self.stream, Launch { name, grid, block, shared: 0 }, &args) }
        };
        pinned.mark_used(&self.stream)?;
        arranged
    }
}
