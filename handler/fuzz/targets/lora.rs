//! Bytes as a LoRA file. The properties are in `handler::fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    handler::fuzz::lora(bytes);
});
