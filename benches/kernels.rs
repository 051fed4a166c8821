//! Kernels on random weights, on one core: bytes of source per second with each instruction set, and of a plain read of the same
//! memory for comparison.
//!
//!     cargo bench --bench kernels

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

#[path = "common/importance.rs"]
mod importance;
#[path = "common/sample.rs"]
mod sample;
use importance::importance;
use ramrs::Scheme;
use ramrs::bench::{
    Affine, BAND_ROWS, Band, Blocks, Column, Effort, Encoded, Encoder, Float, Float8, GridEncoder, Isa, Metric,
    Packing, PageBuffer, Scratch, energy, load,
};
use sample::source;

const COLUMNS: usize = 4096;
const BYTES: usize = BAND_ROWS * COLUMNS * 2;

fn kernels(criterion: &mut Criterion) {
    let bytes = source(COLUMNS);
    let (mut row, mut buffer) = (Vec::new(), PageBuffer::default());
    let band: &mut [Column] = buffer.elements(COLUMNS);
    load(Isa::detect(), Float::BF16, &bytes, &mut row, band);
    let k = importance(COLUMNS);

    let mut group = criterion.benchmark_group("band");
    group.throughput(Throughput::Bytes(BYTES as u64));
    group.bench_function("read", |bench| {
        let words: &[u64] = bytemuck::cast_slice(&bytes);
        bench.iter(|| black_box(words).iter().fold(0_u64, |sum, word| sum ^ word));
    });
    for isa in Isa::available() {
        group.bench_function(BenchmarkId::new("load", isa.name()), |bench| {
            bench.iter(|| load(isa, Float::BF16, black_box(&bytes), &mut row, band));
        });
        group.bench_function(BenchmarkId::new("energy", isa.name()), |bench| {
            bench.iter(|| energy(isa, black_box(band), black_box(&k)));
        });
    }
    group.finish();

    for (name, effort) in [("encode fast", Effort::Fast), ("encode normal", Effort::Normal)] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(BYTES as u64));
        for scheme in ["2g64", "3g64", "4g64", "8g64", "4g32", "4g128"] {
            let scheme = Affine::all().find(|affine| affine.to_string() == scheme).expect("a scheme");
            for isa in Isa::available() {
                let encoder = GridEncoder { isa, effort };
                let mut out = Encoded::default();
                group.bench_function(BenchmarkId::new(scheme.to_string(), isa.name()), |bench| {
                    bench.iter(|| {
                        encoder.encode(scheme, Float::BF16, black_box((&bytes, &*band)), black_box(&k), &mut out);
                    });
                });
            }
        }
        group.finish();
    }
}

/// Encoding in the block types of GGUF.
fn blocks(criterion: &mut Criterion) {
    let bytes = source(COLUMNS);
    let (mut row, mut buffer) = (Vec::new(), PageBuffer::default());
    let columns: &mut [Column] = buffer.elements(COLUMNS);
    load(Isa::detect(), Float::BF16, &bytes, &mut row, columns);
    let k = importance(COLUMNS);
    let (band, metric) = (Band { rows: BAND_ROWS, stored: &bytes, columns }, Metric::diagonal(&k));
    for (name, effort) in [("encode blocks fast", Effort::Fast), ("encode blocks normal", Effort::Normal)] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(BYTES as u64));
        let codebooks = ["iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"];
        let others = ["q4_0", "q4_1", "q5_1", "q8_0", "iq4_nl", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs"];
        for scheme in others.into_iter().chain(codebooks) {
            let scheme: Scheme = scheme.parse().expect("a scheme");
            for isa in Isa::available() {
                let (mut scratch, mut parts) = (Scratch::default(), [Vec::new()]);
                group.bench_function(BenchmarkId::new(scheme.to_string(), isa.name()), |bench| {
                    bench.iter(|| {
                        parts[0].clear();
                        let of = (Float::BF16, &mut scratch);
                        Encoder { isa, effort }.encode(scheme, of, black_box(band), &metric, &mut parts)
                    });
                });
            }
        }
        group.finish();
    }
}

/// Loading rows of each type into a band, and decoding prequantized rows.
fn sources(criterion: &mut Criterion) {
    let (brain, mut values) = (source(COLUMNS), vec![0.0; BAND_ROWS * COLUMNS]);
    Float::BF16.widen(&brain, &mut values);
    let (mut row, mut buffer) = (Vec::new(), PageBuffer::default());
    let band: &mut [Column] = buffer.elements(COLUMNS);
    let mut group = criterion.benchmark_group("band of other types");
    for float in [Float::F16, Float::F32] {
        let mut bytes = Vec::new();
        float.append(&values, &mut bytes);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        for isa in Isa::available() {
            group.bench_function(BenchmarkId::new(format!("load {float:?}"), isa.name()), |bench| {
                bench.iter(|| load(isa, float, black_box(&bytes), &mut row, band));
            });
        }
    }
    group.finish();

    let blocks = Blocks { matrix_rows: BAND_ROWS as u64, rows: 128, cols: 128 };
    let packings = [
        ("fp8-e4m3", Packing::Fp8 { codes: Float8::E4M3, scales: 0, blocks }),
        ("mxfp4", Packing::Mxfp4 { scales: 0 }),
        ("int4", Packing::Int4 { scales: 0, group_size: 128, shape: None }),
    ];
    // Bytes of the decoded rows, which other stages count too.
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Bytes(BYTES as u64));
    for (name, packing) in packings {
        let needed = packing.decode_range(COLUMNS as u64, &(0..(BAND_ROWS * COLUMNS) as u64));
        let codes: Vec<u8> = (0..needed.codes.end).map(|at| (at * 37 % 120) as u8).collect();
        let scales = vec![0.01; needed.scales.end as usize];
        // Aligned as elements of 16 bits.
        let mut out = vec![0_u16; BAND_ROWS * COLUMNS];
        group.bench_function(name, |bench| {
            bench.iter(|| {
                let out = bytemuck::cast_slice_mut(&mut out);
                packing.decode(Float::BF16, COLUMNS as u64, &needed, black_box(&codes), black_box(&scales), out);
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).without_plots();
    targets = kernels, blocks, sources
}
criterion_main!(benches);
