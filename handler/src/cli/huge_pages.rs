//! Huge pages for what the CPU paints with. A step writes hundreds of megabytes of new maps; in pages of 4 KiB a fifth of its time
//! goes to page faults.

use diffusion::gpu;
use std::{env, ffi::OsString, fs, io::Error, os::unix::process::CommandExt, process::Command};

/// Read by glibc before `main`, once: see "Memory Allocation Tunables" in its manual.
const VARIABLE: &str = "GLIBC_TUNABLES";
/// Large allocations are given to `madvise(MADV_HUGEPAGE)`.
const VALUE: &str = "glibc.malloc.hugetlb=1";
/// What the kernel does by itself, such as `always [madvise] never`.
const KERNEL: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Starts this program anew, as the same process, with glibc told to ask for huge pages, if that helps: where the kernel gives them
/// only to those who ask, and there is no GPU to paint with. Whoever sets the variable is left alone, so it does not start twice.
/// If it cannot be started, the pages stay small.
pub fn ask() {
    let kernel = fs::read_to_string(KERNEL).unwrap_or_default();
    if help(env::var_os(VARIABLE), &kernel, gpu::device_of_machine().is_some()) {
        let _: Option<Error> = again();
    }
}

fn help(tunables: Option<OsString>, kernel: &str, has_gpu: bool) -> bool {
    cfg!(target_env = "gnu") && tunables.is_none() && kernel.contains("[madvise]") && !has_gpu
}

/// Returns only if it failed.
fn again() -> Option<Error> {
    let mut arguments = env::args_os();
    let mut command = Command::new(env::current_exe().ok()?);
    command.arg0(arguments.next()?).args(arguments).env(VARIABLE, VALUE);
    Some(command.exec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_asked_for_once_and_only_where_the_kernel_waits_to_be_asked() {
        let asked = "always [madvise] never\n";
        assert!(help(None, asked, false));
        // A second time, a GPU, and kernels that give them to all or to none, or do not have them.
        assert!(!help(Some(VALUE.into()), asked, false));
        assert!(!help(None, asked, true));
        for kernel in ["[always] madvise never\n", "always madvise [never]\n", ""] {
            assert!(!help(None, kernel, false), "{kernel}");
        }
    }
}
