//! The NVIDIA driver: whether it is new enough for this build, what its errors at the start mean, and whether the machine has an
//! NVIDIA GPU at all.

use super::{GpuError, Result, check, check_safe};
use cudarc::driver::{
    DriverError,
    sys::{self, CUresult},
};
use std::{fs, path::Path};

/// The CUDA version of this build, as the driver counts: 1000 times the major version plus ten times the minor one.
const CUDA: i32 = 13_000;
/// The oldest driver with that version.
const DRIVER: u32 = 580;
/// NVIDIA's vendor id on the PCI bus, and the class of GPUs.
const VENDOR: &str = "0x10de";
const DISPLAY: &str = "0x03";

/// Checks that the driver has the CUDA version that this build needs. May be called before the driver is initialised.
///
/// # Errors
/// The driver is older; the message has both versions and the remedy.
pub(super) fn check_version() -> Result<()> {
    let mut version = 0;
    // SAFETY: writes one number.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) })?;
    too_old(version, installed(Path::new("/")).as_deref()).map_or(Ok(()), |why| Err(GpuError::Unavailable(why)))
}

/// What is wrong with a driver of that CUDA version.
fn too_old(version: i32, driver: Option<&str>) -> Option<String> {
    let shown = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
    let driver = driver.map(|driver| format!(" {driver}")).unwrap_or_default();
    (version < CUDA).then(|| {
        format!(
            "the NVIDIA driver{driver} has CUDA {}, and this build needs CUDA {}: install driver {DRIVER} or newer; where that cannot be, \
             NVIDIA's package cuda-compat-{}-{} on a data-centre GPU, with its folder first in LD_LIBRARY_PATH",
            shown(version),
            shown(CUDA),
            CUDA / 1000,
            CUDA % 1000 / 10,
        )
    })
}

/// The version of the driver's kernel module, such as 535.183.01.
fn installed(root: &Path) -> Option<String> {
    let text = fs::read_to_string(root.join("proc/driver/nvidia/version")).ok()?;
    let is_version = |word: &&str| {
        word.contains('.') && word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') && !word.starts_with('.')
    };
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_string)
}

/// The same as [`check_safe`] for a call while a GPU is opened, with advice in the message.
pub(super) fn check_opening<T>(call: &str, result: std::result::Result<T, DriverError>) -> Result<T> {
    let advice = result.as_ref().err().and_then(|&DriverError(code)| Some((code, advice(code)?)));
    match advice {
        Some((code, advice)) => Err(GpuError::Unavailable(format!("{call}: {code:?}: {advice}"))),
        None => check_safe(call, result),
    }
}

/// Advice for an error of the driver while a GPU is opened.
fn advice(code: CUresult) -> Option<String> {
    use CUresult as C;
    let text = match code {
        C::CUDA_ERROR_NO_DEVICE | C::CUDA_ERROR_INVALID_DEVICE => {
            "the driver sees no GPU; give the container one (`--gpus all`, or nvidia.com/gpu in the pod's limits), and look at \
             CUDA_VISIBLE_DEVICES and NVIDIA_VISIBLE_DEVICES"
        }
        C::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "libcuda.so.1 and the kernel's module are of different drivers; restart the machine after the driver's update, and let no \
             libcuda.so.1 of the image's own come first"
        }
        C::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            return Some(format!(
                "cuda-compat works on data-centre GPUs only; take its folder out of LD_LIBRARY_PATH and install driver {DRIVER} or newer"
            ));
        }
        C::CUDA_ERROR_SYSTEM_NOT_READY => "the GPUs of this machine are joined by NVSwitch; start nvidia-fabricmanager",
        C::CUDA_ERROR_DEVICE_UNAVAILABLE => {
            "another process has the GPU for itself; end that, or let the GPU's compute mode be Default"
        }
        C::CUDA_ERROR_UNKNOWN | C::CUDA_ERROR_OPERATING_SYSTEM | C::CUDA_ERROR_NOT_PERMITTED => {
            "the driver's files cannot be opened; /dev/nvidia0, /dev/nvidiactl and /dev/nvidia-uvm must be there and be open to this user"
        }
        C::CUDA_ERROR_NO_BINARY_FOR_GPU | C::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | C::CUDA_ERROR_INVALID_PTX => {
            return Some(format!(
                "this build has kernels for compute capability {}; build it with EASEL_CUDA_ARCHS for this GPU, or install a newer driver",
                super::kernels::ARCHITECTURES
            ));
        }
        _ => return None,
    };
    Some(text.into())
}

/// Where this machine shows an NVIDIA GPU, whether or not it can be used; `None` if it has none.
pub fn device_of_machine() -> Option<String> {
    device_under(Path::new("/"))
}

fn device_under(root: &Path) -> Option<String> {
    let names = |folder: &str| {
        let entries = fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    };
    // /dev/dxg is a GPU of any vendor under WSL. NVIDIA's has its library beside it.
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let file = names("dev").into_iter().find(|name| name.strip_prefix("nvidia").is_some_and(is_number));
    let windows = || {
        let both = ["dev/dxg", "usr/lib/wsl/lib/libcuda.so.1"].iter().all(|path| root.join(path).exists());
        both.then(|| "/dev/dxg".to_string())
    };
    let known =
        || names("proc/driver/nvidia/gpus").into_iter().next().map(|at| format!("/proc/driver/nvidia/gpus/{at}"));
    let on_the_bus = || {
        names("sys/bus/pci/devices").into_iter().find_map(|at| {
            let says = |what: &str| fs::read_to_string(root.join("sys/bus/pci/devices").join(&at).join(what)).ok();
            let is_gpu = says("vendor")?.trim() == VENDOR && says("class")?.starts_with(DISPLAY);
            is_gpu.then(|| format!("PCI device {at}"))
        })
    };
    file.map(|name| format!("/dev/{name}")).or_else(windows).or_else(known).or_else(on_the_bus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_is_too_old_is_reported_with_both_versions_and_the_remedy() {
        let text = too_old(12_040, Some("550.54.15")).unwrap();
        for part in ["driver 550.54.15 has CUDA 12.4", "needs CUDA 13.0", "driver 580 or newer", "cuda-compat-13-0"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(too_old(12_080, None).unwrap().starts_with("the NVIDIA driver has CUDA 12.8,"));
        for enough in [13_000, 13_010, 14_000] {
            assert_eq!(too_old(enough, Some("580.65.06")), None);
        }
    }

    #[test]
    fn the_drivers_version_is_read_from_proc() {
        let cases = [
            (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n",
                Some("535.183.01"),
            ),
            (
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\nGCC version: 12.2\n",
                Some("580.159.04"),
            ),
            ("NVRM version: unknown\n", None),
            ("", None),
        ];
        for (text, version) in cases {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join("proc/driver/nvidia")).unwrap();
            fs::write(root.path().join("proc/driver/nvidia/version"), text).unwrap();
            assert_eq!(installed(root.path()).as_deref(), version, "{text}");
        }
        assert_eq!(installed(tempfile::tempdir().unwrap().path()), None);
    }

    #[test]
    fn errors_while_opening_come_with_advice_except_out_of_memory() {
        let cases = [
            (CUresult::CUDA_ERROR_NO_DEVICE, "nvidia.com/gpu"),
            (CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "restart"),
            (CUresult::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE, "driver 580"),
            (CUresult::CUDA_ERROR_UNKNOWN, "/dev/nvidia-uvm"),
            (CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU, "EASEL_CUDA_ARCHS"),
        ];
        for (code, part) in cases {
            let text = check_opening("cuInit", code.result()).unwrap_err().to_string();
            let begins = format!("cuInit: {code:?}: ");
            assert!(text.starts_with(&begins) && text.contains(part), "{part} is not in {text}");
        }
        assert!(check_opening("cuInit", CUresult::CUDA_SUCCESS.result()).is_ok());
        let memory =
            check_opening("cuDevicePrimaryCtxRetain", CUresult::CUDA_ERROR_OUT_OF_MEMORY.result()).unwrap_err();
        assert!(memory.is_out_of_memory());
    }

    #[test]
    fn an_nvidia_gpu_is_found_wherever_the_machine_shows_it_and_nothing_else_is() {
        let pci = |vendor: &'static str, class: &'static str| {
            let at = "sys/bus/pci/devices/0000:00:1e.0";
            vec![(format!("{at}/vendor"), vendor), (format!("{at}/class"), class)]
        };
        let file = |path: &str| vec![(path.to_string(), "")];
        let cases = [
            (file("dev/nvidia0"), Some("/dev/nvidia0")),
            (file("dev/nvidia12"), Some("/dev/nvidia12")),
            // These are there without a GPU, too, once the driver is loaded.
            (file("dev/nvidiactl"), None),
            (file("dev/nvidia-uvm"), None),
            (file("dev/dxg"), None),
            ([file("dev/dxg"), file("usr/lib/wsl/lib/libcuda.so.1")].concat(), Some("/dev/dxg")),
            (file("proc/driver/nvidia/gpus/0000:01:00.0/information"), Some("/proc/driver/nvidia/gpus/0000:01:00.0")),
            (pci("0x10de\n", "0x030200\n"), Some("PCI device 0000:00:1e.0")),
            (pci("0x10de\n", "0x030000\n"), Some("PCI device 0000:00:1e.0")),
            // An NVSwitch, and another vendor's GPU.
            (pci("0x10de\n", "0x068000\n"), None),
            (pci("0x1002\n", "0x030000\n"), None),
            (vec![], None),
        ];
        for (files, seen) in cases {
            let root = tempfile::tempdir().unwrap();
            for (path, text) in &files {
                let path = root.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            assert_eq!(device_under(root.path()).as_deref(), seen, "{files:?}");
        }
    }
}
