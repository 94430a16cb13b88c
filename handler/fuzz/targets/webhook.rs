//! Bytes as a list of hosts, a line break, and a webhook's address. The properties are in `handler::fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    handler::fuzz::webhook(bytes);
});
