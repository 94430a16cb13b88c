//! Bytes as a LoRA's file. What must hold is in `handler::fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    handler::fuzz::lora(bytes);
});
