//! For tests: a GPU of which somebody else holds nearly all memory.

use super::{Arg, Array, Dtype, Gpu, Launch, Result, arena::Arena, lock};
use std::sync::{Arc, Mutex};

/// Memory that is held until this is dropped.
pub struct Shortage {
    arena: Arc<Mutex<Arena>>,
    _held: Array,
}

impl Shortage {
    /// Leaves `bytes` of what is free.
    ///
    /// # Errors
    /// The driver.
    pub fn leaving(gpu: &Gpu, bytes: usize) -> Result<Self> {
        gpu.enter()?;
        Self::holding(gpu, gpu.free_bytes()?.saturating_sub(bytes))
    }

    /// Holds `bytes`, in whole pages.
    ///
    /// # Errors
    /// The driver; there are not that many.
    pub fn holding(gpu: &Gpu, bytes: usize) -> Result<Self> {
        gpu.enter()?;
        let arena = gpu.arena(super::arena::PAGE)?;
        let held = bytes / super::arena::PAGE * super::arena::PAGE;
        let held = Array::new(gpu, &arena, &[held / 4], Dtype::F32)?;
        Ok(Self { arena, _held: held })
    }
}

impl Drop for Shortage {
    fn drop(&mut self) {
        if let Err(error) = lock(&self.arena).release() {
            eprintln!("the memory stays held: {error}");
        }
    }
}

impl Gpu {
    /// Breaks it for this process: a kernel that reads where nothing is, which the GPU's own protection stops.
    ///
    /// # Errors
    /// The driver's, which is what it is for.
    #[doc(hidden)]
    pub fn break_it(&self) -> Result<()> {
        self.enter()?;
        let launch = Launch { name: "leave_pixels_f16".into(), grid: [1, 1, 1], block: 256, shared: 0 };
        // SAFETY: it is not, on purpose. No memory of anybody's lies at this address, and the GPU stops every access to it.
        unsafe { self.launch(launch, &[Arg::At(1 << 46), Arg::At(1 << 46), Arg::Long(256)]) }
    }
}
