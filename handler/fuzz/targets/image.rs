//! Bytes as a picture to begin from. The properties are in `handler::fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    handler::fuzz::image(bytes);
});
