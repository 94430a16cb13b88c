//! For tests: a GPU with nearly no free memory, and one that is lost.

use super::{Arg, Array, Dtype, Gpu, Launch, Result, arena::Arena, lock};
use std::sync::{Arc, Mutex};

/// It is held in multiples of the least that the driver gives, so that no more is left than must be.
const PAGE: usize = 2 << 20;

/// Memory that is held until this is dropped.
pub struct Shortage {
    arena: Arc<Mutex<Arena>>,
    held: Option<Array>,
}

impl Shortage {
    /// Leaves `bytes` free, or the next larger number that the driver can leave: it does not give all that it calls free.
    ///
    /// # Errors
    /// The driver's.
    pub fn leaving(gpu: &Gpu, bytes: usize) -> Result<Self> {
        gpu.enter()?;
        let mut wanted = gpu.free_bytes()?.saturating_sub(bytes);
        loop {
            match Self::holding(gpu, wanted) {
                Err(error) if error.is_out_of_memory() && wanted > PAGE => wanted -= PAGE,
                held => return held,
            }
        }
    }

    /// Holds `bytes`, in whole pages.
    ///
    /// # Errors
    /// The driver's; there are not that many.
    pub fn holding(gpu: &Gpu, bytes: usize) -> Result<Self> {
        gpu.enter()?;
        let arena = gpu.arena(PAGE)?;
        let held = bytes / PAGE * PAGE;
        let held = Array::new(gpu, &arena, &[held / 4], Dtype::F32)?;
        Ok(Self { arena, held: Some(held) })
    }
}

impl Drop for Shortage {
    fn drop(&mut self) {
        self.held = None;
        if let Err(error) = lock(&self.arena).trim(0) {
            eprintln!("the memory stays held: {error}");
        }
    }
}

impl Gpu {
    /// Makes this process lose the GPU, by a kernel that reads an unmapped address.
    ///
    /// # Errors
    /// The driver's.
    #[doc(hidden)]
    pub fn break_it(&self) -> Result<()> {
        self.enter()?;
        let launch = Launch { name: "leave_pixels_f16".into(), grid: [1, 1, 1], block: 256, shared: 0 };
        // SAFETY: nothing is mapped at this address: the GPU stops the access, and no memory changes.
        unsafe { self.launch(launch, &[Arg::At(1 << 46), Arg::At(1 << 46), Arg::Long(256)]) }
    }
}
