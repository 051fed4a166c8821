//! Opens a checkpoint whose `config.json` is the input.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ramrs_fuzz::Folder;

fuzz_target!(|bytes: &[u8]| Folder::open().inspect_with("config.json", bytes));
