//! One kernel, a few times over: what `benches/instructions.py` counts the instructions of.
//!
//!     cargo bench --bench instructions -- KERNEL TIMES

use std::hint::black_box;

use ramrs::dtype::Float;
use ramrs::kernel::Level;
use ramrs::kernel::band::{energy, load};
use ramrs::kernel::vector::{Lane, ROWS};
use ramrs::pack;
use ramrs::quant::{Effort, Encoded, Encoder};
use ramrs::scheme::{Affine, Scheme};

const COLUMNS: usize = 1024;

/// A band of bfloat16 weights that look random.
fn source() -> Vec<u8> {
    let mut state = 1_u64;
    let mut unit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u32 << 24) as f32
    };
    let values: Vec<f32> = (0..ROWS * COLUMNS).map(|_| 0.02 * ((0..12).map(|_| unit()).sum::<f32>() - 6.0)).collect();
    let mut bytes = Vec::new();
    Float::BF16.append(&values, &mut bytes);
    bytes
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let [kernel, times] = arguments.as_slice() else { panic!("give KERNEL TIMES") };
    let times: usize = times.parse().expect("a number of times");
    let (bytes, level, k) = (source(), Level::detect(), vec![1.0; COLUMNS]);
    let (mut row, mut band): (Vec<f32>, Vec<Lane>) = Default::default();
    load(level, Float::BF16, &bytes, COLUMNS, &mut row, &mut band);
    let schemes: Vec<Affine> = Affine::all().collect();
    let Ok(Scheme::Affine(four)) = "4g64".parse() else { panic!("a scheme") };
    let encoder = |effort| Encoder { level, effort };
    let mut encoded = Encoded::default();
    encoder(Effort::Fast).encode(four, Float::BF16, &band, &k, &mut encoded);
    let mut packed = Vec::new();
    for _ in 0..times {
        match kernel.as_str() {
            "load" => load(level, Float::BF16, black_box(&bytes), COLUMNS, &mut row, &mut band),
            "energy" => {
                black_box(energy(level, black_box(&band), &k));
            }
            "encode-fast-4g64" => encoder(Effort::Fast).encode(four, Float::BF16, black_box(&band), &k, &mut encoded),
            "encode-normal-4g64" => {
                encoder(Effort::Normal).encode(four, Float::BF16, black_box(&band), &k, &mut encoded);
            }
            "errors-fast" => {
                black_box(encoder(Effort::Fast).errors(&schemes, Float::BF16, black_box(&band), &k));
            }
            "errors-normal" => {
                black_box(encoder(Effort::Normal).errors(&schemes, Float::BF16, black_box(&band), &k));
            }
            "pack-4" => {
                packed.clear();
                pack::band(4, black_box(&encoded.codes), ROWS, &mut packed);
            }
            _ => panic!("no kernel is called {kernel}"),
        }
    }
}
