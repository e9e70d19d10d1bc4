#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gust_fuzz::handover_messages(data));
