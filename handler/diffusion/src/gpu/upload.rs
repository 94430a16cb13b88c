//! The way of weights to a GPU: several threads read them into pinned memory and copy them, and a kernel puts them into dtype and
//! layout.

use super::{
    Arg, Array, Dtype, Gpu, GpuError, Launch, Pinned, Result, check, check_safe, lock,
    weights::{Placed, Slot, Source, WeightLayout},
};
use cudarc::driver::{CudaStream, sys};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Bytes copied at once.
const CHUNK: usize = 2 << 20;
/// More threads than this gain nothing, because the bus is saturated.
const MOST_THREADS: usize = 8;

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
    /// Fills slots with the numbers of their tensors, on streams of its own. Returns when they are there.
    pub(super) fn upload(&self, source: &dyn Source, slots: &[(&str, &Slot)]) -> Result<()> {
        let mut pieces = Vec::new();
        for &(name, slot) in slots {
            let row = slot.layout.inner * slot.layout.area * source.dtype(name)?.bytes();
            if row > CHUNK {
                return Err(GpuError::Unavailable(format!("{name} has rows of {row} bytes, the limit is {CHUNK}")));
            }
            let at_once = CHUNK / row.max(1);
            let pieces_of = (0..slot.layout.rows).step_by(at_once);
            pieces.extend(pieces_of.map(|from| {
                let rows = at_once.min(slot.layout.rows - from);
                Piece { name, slot, from, rows }
            }));
        }
        self.carry(source, &pieces)
    }

    /// Runs kernels on a stream of its own, as weights are filled while others are at work on the GPU's. Returns when they are done.
    ///
    /// # Safety
    /// As for [`Gpu::launch`], of kernels that touch nothing that is in use.
    pub(super) unsafe fn launch_beside(&self, launches: impl Iterator<Item = (Launch, Vec<Arg>)>) -> Result<()> {
        let mut launches = launches.peekable();
        if launches.peek().is_none() {
            return Ok(());
        }
        let gpu = self.gpu();
        let lane = lock(&gpu.0.lanes).pop().map_or_else(|| Lane::new(gpu), Ok)?;
        // SAFETY: as the caller promises.
        let run = |(launch, args): (Launch, Vec<Arg>)| unsafe { gpu.0.kernels.launch(&lane.stream, launch, &args) };
        let launched = launches.try_for_each(run);
        let waited = check_safe("cuStreamSynchronize", lane.stream.synchronize());
        lock(&gpu.0.lanes).push(lane);
        launched.and(waited)
    }

    /// Shares pieces out among threads.
    fn carry(&self, source: &dyn Source, pieces: &[Piece]) -> Result<()> {
        let gpu = self.gpu();
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = cores.min(gpu.most_lanes()).min(pieces.len());
        while lock(&gpu.0.lanes).len() < threads {
            let lane = Lane::new(gpu)?;
            lock(&gpu.0.lanes).push(lane);
        }
        let mut lanes = std::mem::take(&mut *lock(&gpu.0.lanes));
        let next = AtomicUsize::new(0);
        let run = |lane: &mut Lane| -> Result<()> {
            gpu.enter()?;
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
        *lock(&gpu.0.lanes) = lanes;
        uploaded.into_iter().collect()
    }
}

impl Gpu {
    /// How many threads carry weights.
    fn most_lanes(&self) -> usize {
        match self.0.few_lanes.load(Ordering::Relaxed) {
            true => MOST_THREADS / 4,
            false => MOST_THREADS,
        }
    }

    /// Carries weights by a quarter of the threads from now on, with a quarter of the memory for them.
    pub(crate) fn carry_by_few(&self) {
        self.0.few_lanes.store(true, Ordering::Relaxed);
        lock(&self.0.lanes).truncate(MOST_THREADS / 4);
    }
}

impl Lane {
    fn new(gpu: &Gpu) -> Result<Self> {
        let stream = gpu.new_stream()?;
        let buffers = || Ok::<_, GpuError>((Pinned::new(gpu, CHUNK)?, gpu.resident(&[CHUNK / 4], Dtype::F32)?));
        Ok(Self { stream, buffers: [buffers()?, buffers()?] })
    }

    fn upload(&mut self, placed: &Placed, source: &dyn Source, piece: &Piece, turn: usize) -> Result<()> {
        let Slot { target, first_row, layout, .. } = piece.slot;
        let WeightLayout { inner, area, inner_out, phased, .. } = *layout;
        let (pinned, staged) = &mut self.buffers[turn];
        let from = source.dtype(piece.name)?;
        let row = inner * area * from.bytes();
        // No more than there is room for in both buffers.
        let bytes = pinned.bytes(piece.rows * row)?;
        source.read(piece.name, piece.from * row, bytes)?;
        let first_row = first_row + piece.from;
        let plain = from == placed.dtype() && layout.is_plain();
        let to = if plain { target.address() + (first_row * row) as u64 } else { staged.address() };
        let stream = self.stream.cu_stream();
        // SAFETY: the pinned bytes, which cannot be borrowed again until the stream has passed the mark below, go to this lane's own
        // buffer of the same size, or to the piece's rows of the target, which has room for them: see `Placed::place`.
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), stream) };
        check("cuMemcpyHtoDAsync", code)?;
        let arranged = if plain {
            Ok(())
        } else {
            let name = format!("place_{}_{}", from.name(), placed.dtype().name());
            let blocks = (piece.rows * area * inner_out).div_ceil(8 * 256).max(1);
            let (grid, block) = ([blocks, 1, 1], 256);
            let sizes = [inner, area, inner_out, usize::from(phased)].map(Arg::Int);
            let numbers = [&[Arg::Long(first_row), Arg::Long(piece.rows)], &sizes[..]].concat();
            let args = [&[Arg::At(to), Arg::At(target.address())], numbers.as_slice()].concat();
            // SAFETY: reads what was copied above, and writes the piece's rows of the target.
            unsafe { placed.gpu().0.kernels.launch(&self.stream, Launch { name, grid, block, shared: 0 }, &args) }
        };
        pinned.mark_used(&self.stream)?;
        arranged
    }
}
