//! Kernels for CUDA GPUs, where candle's own are less exact than PyTorch's.

mod conv;

pub(super) use conv::Conv;
