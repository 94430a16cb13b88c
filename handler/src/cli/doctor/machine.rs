//! Checks this machine: its GPU, the fonts of signatures, the folder of the cache.

use super::{ANSWER_TIMEOUT, Finding, blocking, size};
use crate::{
    engine::options::{DeviceKind, ModelConfig},
    picture::signature,
    storage::{cache::free_bytes, options::StoreConfig},
    task::signature::Signature,
};
use diffusion::{
    error::PipelineError,
    gpu::{self, Gpu, GpuError},
    pipeline::Footprint,
};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
    time::Duration,
};

/// The first use of a driver may have to initialize it.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(60);
/// A name in each of several scripts.
const NAMES: [&str; 8] = ["Ada Kowalska", "Ελένη", "Анна", "אדה", "عادل", "अदिति", "อาดา", "艾达"];

/// `largest` is the width and height of the largest pictures to come.
pub(super) async fn gpu(config: &ModelConfig, largest: (usize, usize)) -> Vec<Finding> {
    let what = "gpu";
    if config.device == DeviceKind::Cpu {
        return vec![Finding::ok(what, "the CPU is used, as --device cpu (EASEL_DEVICE) says: pictures take minutes")];
    }
    let found = blocking(DRIVER_TIMEOUT, || describe().map_err(|error| error.to_string())).await.flatten();
    let (described, free) = found
        .map(|(text, free)| (text, Some(free)))
        .map_or_else(|error| (Err(error), None), |(text, free)| (Ok(text), free));
    let mut findings = vec![judge(config.device, described, gpu::device_of_machine())];
    if let Some(free) = free {
        let foreseen = config.foresee(free, crate::task::size(None), largest);
        // What is wrong with the model's folder is told elsewhere.
        findings.extend(memory(foreseen));
    }
    findings
}

/// The finding about how the model will lie in the GPU's memory.
fn memory(foreseen: Result<Footprint, PipelineError>) -> Option<Finding> {
    let what = "gpu.memory";
    match foreseen {
        Ok(Footprint { offload, needed, size: (width, height), free, streamed, .. }) => {
            let size = |bytes: usize| size(bytes as u64);
            let copied = if streamed > 0 { format!(", {} copied in each step", size(streamed)) } else { String::new() };
            let shown = format!(
                "{} of {} free are needed at most, for pictures up to {width}x{height}{copied}",
                size(needed),
                size(free)
            );
            Some(Finding::ok(what, format!("--offload {}: {shown}", offload.name())))
        }
        Err(PipelineError::Memory(shortage)) => Some(Finding::fail(what, shortage.to_string())),
        Err(_) => None,
    }
}

/// The finding for a GPU, or for the reason why none can be used. `device` is the device file, if the machine has an NVIDIA GPU.
fn judge(kind: DeviceKind, found: Result<String, String>, device: Option<String>) -> Finding {
    let what = "gpu";
    let seen = device.map(|device| format!("; the machine has an NVIDIA GPU ({device})"));
    let is_seen = seen.is_some();
    let seen = seen.unwrap_or_default();
    match found {
        Ok(found) => Finding::ok(what, format!("{found} is used")),
        Err(error) if kind == DeviceKind::Cuda => {
            let advice = "nothing can be painted: mend that, or give up --device cuda (EASEL_DEVICE)";
            Finding::fail(what, format!("{error}{seen}; {advice}"))
        }
        Err(error) => {
            let advice =
                if is_seen { "mend that, or --device cpu (EASEL_DEVICE)" } else { "--device cpu (EASEL_DEVICE)" };
            let cpu = "the CPU is used and pictures take minutes";
            Finding::warn(what, format!("{error}{seen}; {cpu}: {advice} if that is wanted"))
        }
    }
}

/// The GPU in words, and the bytes that are free for a model.
fn describe() -> Result<(String, usize), GpuError> {
    let gpu = Gpu::open(0)?;
    let left = gpu.free_bytes()?;
    let ((major, minor), memory) = (gpu.compute_capability()?, gpu.memory()?);
    let (free, total) = (size(memory.total - memory.used), size(memory.total));
    Ok((format!("{} (compute capability {major}.{minor}, {free} of {total} free)", gpu.name()), left))
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

/// Writes and removes a file. Returns the free bytes there.
fn free_after_writing(folder: &Path) -> io::Result<u64> {
    fs::create_dir_all(folder)?;
    let probe = folder.join(format!(".easel-doctor-{}", std::process::id()));
    File::create(&probe).and_then(|mut file| file.write_all(b"easel\n")).and_then(|()| fs::remove_file(&probe))?;
    free_bytes(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_doctor_says_which_device_is_used_and_why_not_the_gpu() {
        let device = || Some("/dev/nvidia0".to_string());
        let failed = || Err("no NVIDIA driver".to_string());
        let cases = [
            (
                DeviceKind::Auto,
                Ok("NVIDIA L4 (compute capability 8.9)".into()),
                device(),
                "ok",
                vec!["NVIDIA L4", "is used"],
            ),
            (DeviceKind::Auto, failed(), None, "warn", vec!["no NVIDIA driver", "the CPU is used"]),
            (DeviceKind::Auto, failed(), device(), "warn", vec!["/dev/nvidia0", "the CPU is used", "mend that"]),
            (DeviceKind::Cuda, failed(), device(), "FAIL", vec!["/dev/nvidia0", "nothing can be painted"]),
            (DeviceKind::Cuda, failed(), None, "FAIL", vec!["no NVIDIA driver", "EASEL_DEVICE"]),
        ];
        for (kind, found, device, level, words) in cases {
            let line = judge(kind, found, device).to_string();
            assert!(line.starts_with(level), "{line}");
            for word in words {
                assert!(line.contains(word), "{word} is not in {line}");
            }
        }
        let nothing = judge(DeviceKind::Auto, failed(), None).to_string();
        assert!(!nothing.contains("the machine has"), "{nothing}");
    }
}
