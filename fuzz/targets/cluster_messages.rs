#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gust_fuzz::cluster_messages(data));
