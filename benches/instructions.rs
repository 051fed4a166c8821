//! Runs one kernel a number of times, for `benches/instructions.py` to count its instructions.
//!
//!     cargo bench --bench instructions -- KERNEL TIMES

use std::hint::black_box;

#[path = "common/importance.rs"]
mod importance;
#[path = "common/sample.rs"]
mod sample;
use importance::importance;
use ramrs::bench::{
    Affine, Channels, Column, Effort, Encoded, Float, GridEncoder, Isa, PageBuffer, energy, load, pack,
};
use sample::source;

const COLUMNS: usize = 1024;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let [kernel, times] = arguments.as_slice() else { panic!("give KERNEL TIMES") };
    let times: usize = times.parse().expect("a number of times");
    let (bytes, isa, k) = (source(COLUMNS), Isa::detect(), importance(COLUMNS));
    let (mut row, mut buffer) = (Vec::new(), PageBuffer::default());
    let band: &mut [Column] = buffer.elements(COLUMNS);
    load(isa, Float::BF16, &bytes, &mut row, band);
    let channels = Channels::new(&k);
    let schemes: Vec<Affine> = Affine::all().collect();
    let four = Affine::new(4, 64).expect("a scheme");
    let encoder = |effort| GridEncoder { isa, effort };
    let mut encoded = Encoded::default();
    encoder(Effort::Fast).encode(four, Float::BF16, (&bytes, band), &k, &mut encoded);
    let mut packed = Vec::new();
    for _ in 0..times {
        match kernel.as_str() {
            "load" => load(isa, Float::BF16, black_box(&bytes), &mut row, band),
            "energy" => {
                black_box(energy(isa, black_box(band), &k));
            }
            "encode-fast-4g64" => {
                encoder(Effort::Fast).encode(four, Float::BF16, black_box((&bytes, band)), &k, &mut encoded);
            }
            "encode-normal-4g64" => {
                encoder(Effort::Normal).encode(four, Float::BF16, black_box((&bytes, band)), &k, &mut encoded);
            }
            "errors-fast" => {
                black_box(encoder(Effort::Fast).errors(&schemes, Float::BF16, black_box(band), &channels));
            }
            "errors-normal" => {
                black_box(encoder(Effort::Normal).errors(&schemes, Float::BF16, black_box(band), &channels));
            }
            "pack-4" => {
                packed.clear();
                pack(isa, 4, black_box(&encoded.codes), &mut packed);
            }
            _ => panic!("no kernel is called {kernel}"),
        }
    }
}
