//! This machine: its GPU, the faces that sign, the folder of the cache.

use super::{
    ANSWER_TIMEOUT,
    finding::{Finding, blocking, size},
};
use crate::{
    cache::free_bytes,
    config::{DeviceKind, ModelConfig, StoreConfig},
    gpu::{Gpu, GpuError},
    signature::{self, Signature},
};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
    time::Duration,
};

/// The first use of a driver may bring it up.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(60);
/// A name in each of several scripts.
const NAMES: [&str; 8] = ["Ada Kowalska", "Ελένη", "Анна", "אדה", "عادل", "अदिति", "อาดา", "艾达"];

pub(super) async fn gpu(config: &ModelConfig) -> Finding {
    let what = "gpu";
    if config.device == DeviceKind::Cpu {
        return Finding::ok(what, "none, as --device cpu (EASEL_DEVICE) says: pictures take minutes");
    }
    match blocking(DRIVER_TIMEOUT, || describe().map_err(|error| error.to_string())).await.flatten() {
        Ok(found) => Finding::ok(what, found),
        Err(error) if config.device == DeviceKind::Cuda => {
            Finding::fail(what, format!("{error}; install what is missing, or give up --device cuda (EASEL_DEVICE)"))
        }
        Err(error) => Finding::warn(
            what,
            format!(
                "{error}; pictures are painted by the CPU and take minutes: --device cpu (EASEL_DEVICE) if that is wanted"
            ),
        ),
    }
}

fn describe() -> Result<String, GpuError> {
    let gpu = Gpu::open(0)?;
    gpu.open_libraries()?;
    let ((major, minor), memory) = (gpu.compute_capability()?, gpu.memory()?);
    let (free, total) = (size(memory.total - memory.used), size(memory.total));
    Ok(format!("{}, compute capability {major}.{minor}, {free} of {total} free", gpu.name()))
}

pub(super) fn fonts() -> Finding {
    let side = 512;
    let refused = NAMES.iter().find_map(|name| signature::check((side, side), name, &Signature::default()).err());
    match refused {
        None => Finding::ok("fonts", "built in"),
        Some(error) => {
            Finding::fail("fonts", format!("{error}; this build lacks a face: build it from a whole checkout"))
        }
    }
}

pub(super) async fn cache(config: &StoreConfig) -> Finding {
    let what = format!("cache {}", config.cache_dir.display());
    let folder = config.cache_dir.clone();
    let free = match blocking(ANSWER_TIMEOUT, move || free_after_writing(&folder).map_err(|e| e.to_string()))
        .await
        .flatten()
    {
        Ok(free) => free,
        Err(error) => {
            let advice = "choose a folder that can be written to by --cache-dir (EASEL_CACHE_DIR)";
            return Finding::fail(what, format!("{error}; {advice}"));
        }
    };
    let (reserve, largest) = (config.cache.cache_reserve_bytes, config.max_lora_bytes);
    let shown = format!("can be written to, {} free", size(free));
    if free < reserve {
        let reserve = size(reserve);
        Finding::fail(
            what,
            format!("{shown}, and {reserve} stay free (--cache-reserve-bytes): no LoRA fits; make room"),
        )
    } else if free - reserve < largest {
        Finding::warn(
            what,
            format!("{shown}, less than a LoRA of {} (--max-lora-bytes) needs; make room", size(largest)),
        )
    } else {
        Finding::ok(what, shown)
    }
}

/// Bytes that are free where a file could be written.
fn free_after_writing(folder: &Path) -> io::Result<u64> {
    fs::create_dir_all(folder)?;
    let probe = folder.join(format!(".easel-doctor-{}", std::process::id()));
    File::create(&probe).and_then(|mut file| file.write_all(b"easel\n")).and_then(|()| fs::remove_file(&probe))?;
    free_bytes(folder)
}
