//! Bytes as the body of a message. The properties are in `handler::fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    handler::fuzz::task(bytes);
});
