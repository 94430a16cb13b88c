//! Weights on their way to the GPU: read by several threads into pinned memory, copied, and put into dtype and layout there.

use super::{Arg, Array, Dtype, Gpu, GpuError, Launch, Pinned, Result, arena::Arena, check, lock};
use cudarc::driver::sys::{self, CUevent, CUstream};
use rayon::prelude::*;
use std::{
    collections::{BTreeMap, HashMap},
    ffi::c_void,
    ptr::null_mut,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Bytes that travel at once.
const CHUNK: usize = 2 << 20;
/// Memory of a component comes in such pieces.
const PAGE: usize = 8 << 20;
/// More threads than this gain nothing: the bus is full.
const MOST_THREADS: usize = 8;

/// Where numbers come from, by the name of their tensor.
pub(crate) trait Source: Sync {
    /// The dtype they have there.
    fn dtype(&self, name: &str) -> Result<Dtype>;
    /// Fills `into` from `from` bytes into the tensor.
    fn read(&self, name: &str, from: usize, into: &mut [u8]) -> Result<()>;
}

/// A tensor of `[rows, inner, area]`, a filter for example, that becomes `[rows, area, inner]`, with zeros up to
/// `inner_out` and `rows_out`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
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

/// Writes both factors of the product of that number.
pub(crate) type WriteFactors<'a> = dyn Fn(usize, &mut [f32], &mut [f32]) -> Result<()> + Sync + 'a;

/// One tensor's place.
#[derive(Clone)]
struct Place {
    target: Array,
    first_row: usize,
    layout: Layout,
}

/// Where the tensors of one component lie.
pub(crate) struct Placed {
    gpu: Gpu,
    dtype: Dtype,
    arena: Arc<Mutex<Arena>>,
    places: Mutex<HashMap<String, Vec<Place>>>,
}

/// What one thread needs: a stream and two buffers on either side.
pub(super) struct Lane {
    stream: CUstream,
    pinned: [*mut u8; 2],
    staged: [Array; 2],
    free: [CUevent; 2],
}

// SAFETY: handles and buffers that one thread at a time uses.
unsafe impl Send for Lane {}

/// Some rows of one tensor.
struct Piece<'a> {
    name: &'a str,
    place: &'a Place,
    from: usize,
    rows: usize,
}

impl Placed {
    /// Nothing placed yet.
    pub(crate) fn new(gpu: &Gpu, dtype: Dtype) -> Result<Arc<Self>> {
        let arena = gpu.arena(PAGE)?;
        Ok(Arc::new(Self { gpu: gpu.clone(), dtype, arena, places: Mutex::default() }))
    }

    /// Gives the memory back until [`Placed::come`]; nothing may use the tensors meanwhile.
    pub(crate) fn leave(&self) -> Result<()> {
        self.gpu.synchronize()?;
        lock(&self.arena).leave()
    }

    /// Brings the tensors back if they left, to the same addresses. After an error they are away again.
    pub(crate) fn come(&self, source: &dyn Source) -> Result<()> {
        if lock(&self.arena).come()? {
            // Half of the numbers would be painted with next time.
            self.fill_again(source).or_else(|error| self.leave().and(Err(error)))?;
        }
        Ok(())
    }

    fn fill_again(&self, source: &dyn Source) -> Result<()> {
        for place in lock(&self.places).values().flatten() {
            if place.layout.rows_out > place.layout.rows {
                self.gpu.clear(&place.target)?;
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
    pub(crate) fn place(&self, tensors: &[(String, Layout)]) -> Result<Array> {
        let rows = tensors.iter().map(|(_, layout)| layout.rows_out).sum();
        let width = tensors.first().map_or(0, |(_, layout)| layout.area * layout.inner_out);
        let target = Array::new(&self.gpu, &self.arena, &[rows, width], self.dtype)?;
        if tensors.iter().any(|(_, layout)| layout.rows_out > layout.rows) {
            self.gpu.clear(&target)?;
        }
        let (mut places, mut first_row) = (lock(&self.places), 0);
        for (name, layout) in tensors {
            let place = Place { target: target.clone(), first_row, layout: *layout };
            places.entry(name.clone()).or_default().push(place);
            first_row += layout.rows_out;
        }
        Ok(target)
    }

    /// Whether a tensor of that name has a place.
    pub(crate) fn has(&self, name: &str) -> bool {
        lock(&self.places).contains_key(name)
    }

    /// Whether a tensor lies here as the plain matrix that it is.
    pub(crate) fn takes_products(&self, name: &str) -> bool {
        let plain = |layout: Layout| layout.area == 1 && layout.inner == layout.inner_out;
        lock(&self.places).get(name).is_some_and(|places| places.iter().all(|place| plain(place.layout)))
    }

    /// Adds products to tensors where they lie, in f32, and rounds once. All factors go to the GPU in one copy.
    pub(crate) fn add_products(&self, products: &[Product], write: &WriteFactors) -> Result<()> {
        let sizes = products.iter().map(|product| (product.rows * product.rank, product.rank * product.columns));
        let count = sizes.clone().map(|(left, right)| left + right).sum::<usize>();
        if count == 0 {
            return Ok(());
        }
        let mut kept = lock(&self.gpu.0.factors);
        let pinned = match kept.take().filter(|pinned| pinned.holds(count)) {
            Some(pinned) => kept.insert(pinned),
            None => kept.insert(Pinned::new(4 * count)?),
        };
        // The last copy from it is long done: every swap ends with a wait, or a picture.
        self.gpu.synchronize()?;
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
        let (places, mut at) = (lock(&self.places), on_gpu.address());
        for Product { name, rows, columns, rank } in products {
            let (left, right) = (at, at + 4 * (rows * rank) as u64);
            at = right + 4 * (rank * columns) as u64;
            for place in places.get(name).into_iter().flatten() {
                if (place.layout.rows, place.layout.inner) != (*rows, *columns) {
                    return Err(GpuError::Unavailable(format!("{name} is not {rows} x {columns}")));
                }
                let first = place.first_row * columns * self.dtype.bytes();
                let target = Arg::At(place.target.address() + first as u64);
                let sizes = [rows, columns, rank].map(|&size| Arg::Int(size));
                let args = [&[target, target, Arg::At(left), Arg::At(right)], &sizes[..], &[Arg::Float(1.0)]].concat();
                let name = format!("merge_low_rank_{}", self.dtype.name());
                let grid = [columns.div_ceil(64), rows.div_ceil(64), 1];
                self.gpu.launch(Launch { name, grid, block: 256, shared: 0 }, &args)?;
            }
        }
        Ok(())
    }

    /// Fills every place, or those of some names, on streams of its own. Returns when the numbers are there.
    pub(crate) fn fill(&self, source: &dyn Source, only: Option<&[String]>) -> Result<()> {
        let places = lock(&self.places);
        let wanted: BTreeMap<&String, &Vec<Place>> = match only {
            Some(names) => names.iter().filter_map(|name| places.get_key_value(name)).collect(),
            None => places.iter().collect(),
        };
        let mut pieces = Vec::new();
        for (name, places) in wanted {
            let dtype = source.dtype(name)?;
            for place in places {
                let row = place.layout.inner * place.layout.area * dtype.bytes();
                if row > CHUNK {
                    return Err(GpuError::Unavailable(format!("{name} has rows of {row} bytes, the limit is {CHUNK}")));
                }
                let at_once = CHUNK / row.max(1);
                let pieces_of = (0..place.layout.rows).step_by(at_once);
                pieces.extend(pieces_of.map(|from| {
                    let rows = at_once.min(place.layout.rows - from);
                    Piece { name: name.as_str(), place, from, rows }
                }));
            }
        }
        self.carry(source, &pieces)
    }

    fn carry(&self, source: &dyn Source, pieces: &[Piece]) -> Result<()> {
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
            let mut carry = || {
                while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    lane.carry(self, source, piece, turn)?;
                    turn = 1 - turn;
                }
                Ok(())
            };
            let carried = carry();
            // After an error, too: whoever gives the memory back then must find no copy on its way there.
            // SAFETY: the lane's own stream.
            let waited = check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(lane.stream) });
            carried.and(waited)
        };
        let carried = thread::scope(|scope| {
            let running: Vec<_> = lanes.iter_mut().take(threads).map(|lane| scope.spawn(|| run(lane))).collect();
            let stopped = |_| Err(GpuError::Unavailable("a thread that carries weights stopped".into()));
            running.into_iter().map(|thread| thread.join().unwrap_or_else(stopped)).collect::<Vec<_>>()
        });
        *lock(&self.gpu.0.lanes) = lanes;
        carried.into_iter().collect()
    }
}

impl Lane {
    fn new(gpu: &Gpu) -> Result<Self> {
        let mut stream = null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes the stream's handle.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, flags) })?;
        let mut pinned = [null_mut(); 2];
        let mut free = [null_mut(); 2];
        for index in 0..2 {
            let mut memory: *mut c_void = null_mut();
            // SAFETY: writes the address of new pinned memory; it lives as long as the process.
            check("cuMemAllocHost", unsafe { sys::cuMemAllocHost_v2(&mut memory, CHUNK) })?;
            pinned[index] = memory.cast();
            let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
            // SAFETY: writes the event's handle.
            check("cuEventCreate", unsafe { sys::cuEventCreate(&mut free[index], flags) })?;
        }
        let staged = || gpu.resident(&[CHUNK / 4], Dtype::F32);
        Ok(Self { stream, pinned, staged: [staged()?, staged()?], free })
    }

    fn carry(&mut self, placed: &Placed, source: &dyn Source, piece: &Piece, turn: usize) -> Result<()> {
        let Layout { inner, area, inner_out, .. } = piece.place.layout;
        let from = source.dtype(piece.name)?;
        let row = inner * area * from.bytes();
        let bytes = piece.rows * row;
        // SAFETY: an event of this lane; one that was never recorded counts as done.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.free[turn]) })?;
        // SAFETY: pinned memory of at least that length, which no copy reads any more.
        let pinned = unsafe { std::slice::from_raw_parts_mut(self.pinned[turn], bytes) };
        source.read(piece.name, piece.from * row, pinned)?;
        let target = &piece.place.target;
        let first_row = piece.place.first_row + piece.from;
        let plain = from == placed.dtype && area == 1 && inner == inner_out;
        let to = if plain { target.address() + (first_row * row) as u64 } else { self.staged[turn].address() };
        // SAFETY: the pinned buffer above; the target, or this lane's own staging buffer, is at least as long.
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to, pinned.as_ptr().cast(), bytes, self.stream) };
        check("cuMemcpyHtoDAsync", code)?;
        if !plain {
            let name = format!("place_{}_{}", from.name(), placed.dtype.name());
            let blocks = (piece.rows * area * inner_out).div_ceil(8 * 256).max(1);
            let (grid, block) = ([blocks, 1, 1], 256);
            let numbers =
                [Arg::Long(first_row), Arg::Long(piece.rows), Arg::Int(inner), Arg::Int(area), Arg::Int(inner_out)];
            let args = [&[Arg::At(to), Arg::At(target.address())], numbers.as_slice()].concat();
            placed.gpu.0.kernels.launch(self.stream, Launch { name, grid, block, shared: 0 }, &args)?;
        }
        // SAFETY: an event and a stream of this lane.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.free[turn], self.stream) })
    }
}
