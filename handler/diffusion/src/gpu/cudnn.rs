//! cuDNN's graph API: handle, descriptors and their attributes. cudarc's safe layer has cuDNN's older API alone.

use super::error::{GpuError, Result};
use cudarc::{
    cudnn::sys::{
        self, cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Kind,
        cudnnBackendDescriptor_t as RawDescriptor, cudnnBackendDescriptorType_t as Type,
        cudnnBackendHeurMode_t as HeuristicsMode, cudnnConvolutionMode_t as ConvolutionMode,
        cudnnDataType_t as DataType, cudnnHandle_t as RawHandle, cudnnStatus_t as Status,
    },
    driver::CudaStream,
};
use std::{
    ffi::{CStr, c_void},
    fmt, ptr,
    sync::Arc,
};

/// An owned cuDNN handle, bound to a stream.
pub(super) struct Handle {
    pub(super) raw: RawHandle,
    _stream: Arc<CudaStream>,
}

impl Handle {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` outlives the call.
        check(unsafe { sys::cudnnCreate(&mut raw) }, || "cudnnCreate".into())?;
        let handle = Self { raw, _stream: stream.clone() };
        // SAFETY: the handle was just created, and keeps the stream; both stream types name the driver's opaque one.
        check(unsafe { sys::cudnnSetStream(raw, stream.cu_stream().cast()) }, || "cudnnSetStream".into())?;
        Ok(handle)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: created by `new` and destroyed once; what was built with it is gone. A failure leaves nothing to do.
        let _ = unsafe { sys::cudnnDestroy(self.raw) };
    }
}

pub(super) fn int(size: usize) -> Result<i64> {
    i64::try_from(size).map_err(|_| GpuError::Unavailable(format!("{size} is too large for a convolution")))
}

/// A status with the library's last message.
struct Failure {
    status: Status,
    message: String,
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.status)?;
        if self.message.is_empty() { Ok(()) } else { write!(f, " ({})", self.message) }
    }
}

pub(super) fn check(status: Status, call: impl FnOnce() -> String) -> Result<()> {
    if status == Status::CUDNN_STATUS_SUCCESS {
        return Ok(());
    }
    let mut text = [0_u8; 512];
    // SAFETY: the buffer has one byte more than cuDNN may write, which stays the closing zero.
    unsafe { sys::cudnnGetLastErrorString(text.as_mut_ptr().cast(), text.len() - 1) };
    let message = CStr::from_bytes_until_nul(&text).map(|text| text.to_string_lossy().trim().replace('\n', " "));
    Err(GpuError::call(call(), Failure { status, message: message.unwrap_or_default() }))
}

/// Address on the device, as an attribute's value.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Address(pub(super) u64);

/// A `cudnnBackendNumericalNote_t` read from cuDNN, which may know more notes than the bindings.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct NumericalNote(pub(super) u32);

/// A `cudnnBackendBehaviorNote_t` read from cuDNN, which may know more notes than the bindings.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct BehaviourNote(pub(super) u32);

// An address fills a pointer.
const _: () = assert!(size_of::<Address>() == size_of::<*mut c_void>());

/// A type of attribute values.
///
/// # Safety
///
/// The type has the layout of the C type that `KIND` stands for.
pub(super) unsafe trait Value: Copy {
    /// cuDNN's name of the type.
    const KIND: Kind;
}

/// A value that cuDNN may write.
///
/// # Safety
///
/// Any bits are valid.
pub(super) unsafe trait Readable: Value {}

// SAFETY: `int64_t`.
unsafe impl Value for i64 {
    const KIND: Kind = Kind::CUDNN_TYPE_INT64;
}
// SAFETY: an integer.
unsafe impl Readable for i64 {}

// SAFETY: `float`.
unsafe impl Value for f32 {
    const KIND: Kind = Kind::CUDNN_TYPE_FLOAT;
}

// SAFETY: `void *`, as wide as an address on the device.
unsafe impl Value for Address {
    const KIND: Kind = Kind::CUDNN_TYPE_VOID_PTR;
}

// SAFETY: the bindings' own type.
unsafe impl Value for RawDescriptor {
    const KIND: Kind = Kind::CUDNN_TYPE_BACKEND_DESCRIPTOR;
}
// SAFETY: a pointer.
unsafe impl Readable for RawDescriptor {}

// SAFETY: the bindings' own type.
unsafe impl Value for RawHandle {
    const KIND: Kind = Kind::CUDNN_TYPE_HANDLE;
}

// SAFETY: the bindings' own type.
unsafe impl Value for DataType {
    const KIND: Kind = Kind::CUDNN_TYPE_DATA_TYPE;
}

// SAFETY: the bindings' own type.
unsafe impl Value for ConvolutionMode {
    const KIND: Kind = Kind::CUDNN_TYPE_CONVOLUTION_MODE;
}

// SAFETY: the bindings' own type.
unsafe impl Value for HeuristicsMode {
    const KIND: Kind = Kind::CUDNN_TYPE_HEUR_MODE;
}

// SAFETY: a C enumeration, four bytes.
unsafe impl Value for NumericalNote {
    const KIND: Kind = Kind::CUDNN_TYPE_NUMERICAL_NOTE;
}
// SAFETY: an integer.
unsafe impl Readable for NumericalNote {}

// SAFETY: a C enumeration, four bytes.
unsafe impl Value for BehaviourNote {
    const KIND: Kind = Kind::CUDNN_TYPE_BEHAVIOR_NOTE;
}
// SAFETY: an integer.
unsafe impl Readable for BehaviourNote {}

/// An owned backend descriptor; `what` names it in errors.
pub(super) struct Descriptor {
    pub(super) raw: RawDescriptor,
    what: &'static str,
}

impl Descriptor {
    pub(super) fn new(kind: Type, what: &'static str) -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` outlives the call.
        let status = unsafe { sys::cudnnBackendCreateDescriptor(kind, &mut raw) };
        check(status, || format!("cudnnBackendCreateDescriptor: {what}"))?;
        Ok(Self { raw, what })
    }

    pub(super) fn set<T: Value>(&self, name: Name, values: &[T]) -> Result<()> {
        let count = int(values.len())?;
        // SAFETY: `values` has `count` elements of the type given, and cuDNN copies them.
        let status =
            unsafe { sys::cudnnBackendSetAttribute(self.raw, name, T::KIND, count, values.as_ptr().cast::<c_void>()) };
        check(status, || format!("cudnnBackendSetAttribute: {name:?} of {}", self.what))
    }

    pub(super) fn finalise(&self) -> Result<()> {
        // SAFETY: the descriptor lives.
        check(unsafe { sys::cudnnBackendFinalize(self.raw) }, || format!("cudnnBackendFinalize: {}", self.what))
    }

    /// How many values the attribute has.
    pub(super) fn count<T: Readable>(&self, name: Name) -> Result<usize> {
        self.read::<T>(name, 0, ptr::null_mut())
    }

    /// Fills `values` as far as the attribute goes, and returns how far; there is room for at least one.
    pub(super) fn get<T: Readable>(&self, name: Name, values: &mut [T]) -> Result<usize> {
        let count = self.read(name, int(values.len())?, values.as_mut_ptr())?;
        Ok(count.min(values.len()))
    }

    /// `values` must have room for `room` values, or be null and `room` 0.
    fn read<T: Readable>(&self, name: Name, room: i64, values: *mut T) -> Result<usize> {
        let mut count = 0_i64;
        // SAFETY: `values` has room for as many elements of the type given as cuDNN is asked for, and any bits are
        // valid in it; `count` outlives the call.
        let status = unsafe {
            sys::cudnnBackendGetAttribute(self.raw, name, T::KIND, room, &mut count, values.cast::<c_void>())
        };
        check(status, || format!("cudnnBackendGetAttribute: {name:?} of {}", self.what))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: created by `new` and destroyed once. A failure leaves nothing to do.
        let _ = unsafe { sys::cudnnBackendDestroyDescriptor(self.raw) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_repeat_cudnns_message() {
        let status = Status::CUDNN_STATUS_BAD_PARAM;
        let silent = Failure { status, message: String::new() };
        assert_eq!(format!("{silent:?}"), "CUDNN_STATUS_BAD_PARAM");
        let explained = Failure { status, message: "stride".into() };
        assert_eq!(format!("{explained:?}"), "CUDNN_STATUS_BAD_PARAM (stride)");
    }
}
