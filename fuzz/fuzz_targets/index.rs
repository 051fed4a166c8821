//! Opens a checkpoint whose `model.safetensors.index.json` is the input.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ramrs_fuzz::Folder;

fuzz_target!(|bytes: &[u8]| Folder::open().inspect_with("model.safetensors.index.json", bytes));
