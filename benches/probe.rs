//! The probe, as a share of what this machine's multiply-adds allow.
//!
//!     cargo bench --bench probe -- MODEL [--threads N] [--mode random|self] [--tokens N]
//!
//! Prints the rate of fused multiply-adds in the widest registers of one core, measured before and after in the same run; and of
//! each probe the multiplications with additions, the processor time, the rate per core second and its share. Then what larger
//! models would take at that rate: extrapolated, with the assumptions beside it.

#![expect(clippy::print_stdout, reason = "a benchmark is read on a terminal")]

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

#[path = "common/clock.rs"]
mod clock;
#[path = "common/peak.rs"]
mod peak;
use clock::processor_seconds;
use peak::multiply_adds_per_second;
use ramrs::bench::{
    CHUNK_BYTES, Checkpoint, HELD_BYTES, Isa, Journal, Mode, Options, Pass, Progress, Tensor, Workers, probe, runnable,
};

fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}

fn main() {
    let model = std::env::args().skip(1).find(|argument| Path::new(argument).is_dir());
    let Some(model) = model else {
        println!("give the directory of a model: cargo bench --bench probe -- models/smollm2-135m");
        return;
    };
    let number = |name: &str, default: usize| argument(name).map_or(default, |text| text.parse().expect(name));
    let (threads, tokens) = (number("--threads", 2), number("--tokens", 512));
    let modes = match argument("--mode").as_deref() {
        Some("random") => vec![Mode::Random],
        Some("self") => vec![Mode::Written],
        _ => vec![Mode::Random, Mode::Written],
    };
    let checkpoint = Checkpoint::open(Path::new(&model)).expect("a checkpoint");
    let runnable = runnable(&checkpoint).expect("a model that can be run");
    let workers = Workers::new(NonZeroUsize::new(threads)).expect("threads");
    let rate = multiply_adds_per_second();
    println!("one core: {:.1} billion multiply-adds a second in registers", rate / 1e9);
    let elements: u64 = checkpoint.tensors.iter().map(Tensor::elements).sum();
    let mut random = None;
    for mode in modes {
        let progress = Progress::default();
        let pass = Pass {
            checkpoint: &checkpoint,
            workers: &workers,
            progress: &progress,
            journal: Journal::NONE,
            isa: Isa::detect(),
            chunk_bytes: CHUNK_BYTES,
            held_bytes: HELD_BYTES,
        };
        let (start, processor) = (Instant::now(), processor_seconds());
        let found = probe(pass, &runnable, Options { tokens, mode, ..Options::default() }).expect("a probe");
        let (wall, processor) = (start.elapsed().as_secs_f64(), processor_seconds() - processor);
        let reached = found.multiply_adds as f64 / processor;
        println!(
            "{mode:?}, {} tokens, {threads} threads: {:.1} billion multiply-adds, {wall:.2} s, {processor:.2} s of \
             processor, {:.1} billion a second and core, {:.0} % of the rate",
            found.tokens.len(),
            found.multiply_adds as f64 / 1e9,
            reached / 1e9,
            100.0 * reached / rate,
        );
        if mode == Mode::Random {
            random = Some((reached, found.multiply_adds as f64 / (elements as f64 * found.tokens.len() as f64)));
        }
    }
    println!("one core, again: {:.1} billion", multiply_adds_per_second() / 1e9);
    if let Some((rate, each)) = random {
        extrapolate(rate, each, tokens);
    }
}

/// What larger models take, random tokens, at `rate` multiply-adds a second and core, `each` for a weight and token.
fn extrapolate(rate: f64, each: f64, tokens: usize) {
    println!(
        "\nextrapolated: weights that a token goes through × {tokens} tokens × {each:.2}, as here (forward, again for what \
         is not held, back, products of tokens), linear over cores, weights from memory:",
    );
    for (name, active, of_all) in [("8B", 8e9, 8e9), ("70B", 70e9, 70e9), ("400B, 17B a token", 17e9, 400e9)] {
        let seconds = active * tokens as f64 * each / rate;
        println!(
            "{name}: {:.0} s on 2 cores, {:.0} s on 24, {:.0} s on 64; {:.0} GB of bfloat16 to read twice",
            seconds / 2.0,
            seconds / 24.0,
            seconds / 64.0,
            of_all * 2.0 / 1e9
        );
    }
    println!("A mixture takes up to 8 times the tokens, until its experts have seen enough.");
}
