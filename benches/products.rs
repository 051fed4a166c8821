//! Sums of products, as a share of what this machine's multiply-adds allow: the products of activations with weights, Gram
//! matrices, their factorization, and encoding with error feedback.
//!
//!     cargo bench --bench products [-- ORDER]
//!
//! All on one core, processor time, the best of several turns. The rate of multiply-adds in registers is measured in the same
//! turns. `ORDER` is a multiple of 64. A factorization counts the `n³ / 6` multiply-adds of the formula, a Gram matrix those of
//! its lower half.

#![expect(clippy::print_stdout, reason = "a benchmark is read on a terminal")]

use std::hint::black_box;
use std::num::NonZeroUsize;

#[path = "common/clock.rs"]
mod clock;
#[path = "common/peak.rs"]
mod peak;
use clock::processor_seconds;
use peak::multiply_adds_per_second;
use ramrs::Scheme;
use ramrs::bench::{
    BAND_ROWS, Column, Compute, Factor, FeedbackTarget, Float, Isa, Progress, SLAB_ROWS, Slab, SymmetricMatrix,
    Workers, encode_slab, matmul_nn, matmul_nt,
};

/// Rows of activations.
const TOKENS: usize = 2048;

/// Turns of which the best counts.
const TURNS: usize = 5;

/// Numbers in `[−1, 1)`.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

/// A computation, and how many multiply-adds it takes.
struct Case<'a> {
    name: String,
    multiply_adds: f64,
    run: Box<dyn Fn() + 'a>,
}

fn main() {
    let order = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1536_usize);
    let workers = Workers::new(NonZeroUsize::new(1)).expect("a thread");
    let progress = Progress::default();
    let isa = Isa::detect();
    let compute = Compute { workers: &workers, progress: &progress, isa };
    let (tokens, weights) = (numbers(TOKENS * order, 1), numbers(order * order, 2));
    let mut gram = SymmetricMatrix::zeros(order);
    gram.add_products(compute, &tokens, &tokens).expect("products");
    gram.for_each_row(|at, row| row[at] += TOKENS as f32 / 10.0);
    let factor = Factor::of(compute, gram.clone()).expect("no cancellation").expect("a positive definite matrix");
    let rows = numbers(SLAB_ROWS * order, 3);
    let column = |at: usize, band: usize| -> Column {
        std::array::from_fn(|row| Float::BF16.round(rows[(band * BAND_ROWS + row) * order + at]))
    };
    let bands: Vec<Vec<Column>> =
        (0..SLAB_ROWS / BAND_ROWS).map(|band| (0..order).map(|at| column(at, band)).collect()).collect();
    let size = order as f64;
    let mut cases = vec![
        Case {
            name: "activations × weightsᵀ".to_owned(),
            multiply_adds: TOKENS as f64 * size * size,
            run: Box::new(|| drop(black_box(matmul_nt(isa, &tokens, &weights, order)))),
        },
        Case {
            name: "activations × weights".to_owned(),
            multiply_adds: TOKENS as f64 * size * size,
            run: Box::new(|| drop(black_box(matmul_nn(isa, &tokens, &weights, order)))),
        },
        Case {
            name: "Gram matrix".to_owned(),
            multiply_adds: TOKENS as f64 * size * (size + 1.0) / 2.0,
            run: Box::new(|| {
                let mut sum = SymmetricMatrix::zeros(order);
                sum.add_products(compute, &tokens, &tokens).expect("products");
                black_box(sum);
            }),
        },
        Case {
            name: "factorization".to_owned(),
            multiply_adds: size * size * size / 6.0,
            run: Box::new(|| drop(black_box(gram.clone().factor(compute)))),
        },
    ];
    for scheme in ["3g64", "4g32", "int4g64"] {
        let scheme: Scheme = scheme.parse().expect("a scheme");
        let target = FeedbackTarget { isa, float: Float::BF16 };
        let (factor, slab) = (&factor, Slab { bands: &bands, rows: SLAB_ROWS });
        cases.push(Case {
            name: format!("feedback {scheme}"),
            multiply_adds: SLAB_ROWS as f64 * size * size / 2.0,
            run: Box::new(move || {
                let codec = scheme.codec().and_then(|codec| codec.feedback()).expect("a codec with feedback");
                let mut parts = vec![Vec::new(); 3];
                black_box(encode_slab((scheme, target), codec, factor, &slab, &mut parts));
            }),
        });
    }
    report(&cases, SLAB_ROWS * order);
}

/// Runs `cases` by turns, and prints the best of each. A slab has `slab` weights.
fn report(cases: &[Case<'_>], slab: usize) {
    let mut peak: f64 = 0.0;
    let mut best = vec![f64::INFINITY; cases.len()];
    for _ in 0..TURNS {
        peak = peak.max(multiply_adds_per_second());
        for (case, best) in cases.iter().zip(&mut best) {
            let before = processor_seconds();
            (case.run)();
            *best = best.min(processor_seconds() - before);
        }
    }
    println!("in registers: {:.1} billion multiply-adds a second", peak / 1e9);
    for (case, seconds) in cases.iter().zip(best) {
        let rate = case.multiply_adds / seconds;
        let of_weight = 1e9 * seconds / slab as f64;
        println!(
            "{:24} {:8.2} ms, {:5.1} billion a second, {:3.0} % of that{}",
            case.name,
            1e3 * seconds,
            rate / 1e9,
            100.0 * rate / peak,
            if case.name.starts_with("feedback") { format!(", {of_weight:.1} ns a weight") } else { String::new() },
        );
    }
}
