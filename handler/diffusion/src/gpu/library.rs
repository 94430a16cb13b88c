//! CUDA's libraries are large: they are opened on a thread of their own while the driver makes a context.

use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL};
use std::{mem, thread};

/// By the names that the dynamic linker knows them by.
const LIBRARIES: [&[&str]; 2] = [&["libcublasLt.so", "libcublasLt.so.13"], &["libcudnn.so", "libcudnn.so.9"]];

/// Begins to open them, and keeps them open. What is missing is for its first user to say.
pub(super) fn open_ahead() {
    for names in LIBRARIES {
        thread::spawn(move || {
            for name in names {
                // SAFETY: the vendor's libraries, whose initialisers only set their own tables up.
                if let Ok(library) = unsafe { Library::open(Some(*name), RTLD_LAZY | RTLD_LOCAL) } {
                    mem::forget(library);
                    return;
                }
            }
        });
    }
}
