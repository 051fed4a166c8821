//! How fast a checkpoint is measured and encoded, beside what reading it takes.
//!
//!     python benches/synthetic.py /tmp/2gb --gigabytes 2
//!     cargo bench --bench speed -- /tmp/2gb [ROUNDS] [LEVEL] [--json [TASK ...]]
//!
//! Every round does each thing once, so that what else the machine does falls on all of them. Rates are of one thread, in
//! bytes of source for a second of processor, and the shares are those of the same round; with two threads and more, up to
//! the number of cores, the clock on the wall counts. The checkpoint is read once before, to have it in the page cache.
//! An instruction set is one that this CPU has (`portable`, `avx2`, ...); the best, if none is named. `--json` prints the rates of each
//! round for another program, of all tasks or of those named, and leaves the other threads out.

#![expect(clippy::print_stdout, reason = "a benchmark is read on a terminal")]

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

#[path = "common/clock.rs"]
mod clock;
#[path = "common/importance.rs"]
mod importance;
use clock::processor_seconds;
use importance::importance;
use ramrs::bench::{
    Affine, BAND_ROWS, CHUNK_BYTES, Checkpoint, Column, DeadWeights, Effort, Encoded, Encoder, EnergyJob, Float, Gain,
    GridEncoder, HELD_BYTES, Isa, Journal, Matrix, MatrixSensitivity, Member, Origin, PageBuffer, PartSpec, Pass,
    Progress, Reader, StackJob, Vectors, View, Workers, append, bands, chunk_bands, curves, cut, energies, pack,
    read_at, rows_of,
};

/// Bytes of memory that are read: far more than any cache holds.
const MEMORY_BYTES: usize = 1 << 30;

/// Rounds, unless the caller says otherwise.
const ROUNDS: usize = 5;

/// What is measured, in the order of a round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Task {
    Memory,
    Touch,
    Energies,
    Curves,
    Fast,
    Normal,
}

const TASKS: [Task; 6] = [Task::Memory, Task::Touch, Task::Energies, Task::Curves, Task::Fast, Task::Normal];

/// Those that are also done with more threads.
const SHARED: [Task; 2] = [Task::Curves, Task::Normal];

impl Task {
    /// For another program.
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Touch => "touch",
            Self::Energies => "energies",
            Self::Curves => "curves",
            Self::Fast => "fast",
            Self::Normal => "normal",
        }
    }

    /// For the reader.
    fn title(self) -> &'static str {
        match self {
            Self::Memory => "memory: read, sum of words",
            Self::Touch => "page cache: pread, sum of words",
            Self::Energies => "energies",
            Self::Curves => "18 schemes' errors, every band, fast",
            Self::Fast => "4g64: encode and pack, fast",
            Self::Normal => "4g64: encode and pack, normal",
        }
    }
}

/// Bytes of source, and the seconds they took: of processor, and on the wall.
#[derive(Clone, Copy)]
struct Took {
    bytes: u64,
    processor: f64,
    wall: f64,
}

impl Took {
    /// 10⁹ bytes for a second of processor.
    fn rate(self) -> f64 {
        self.bytes as f64 / self.processor / 1e9
    }
}

/// One matrix of the checkpoint.
struct Weight<'a> {
    name: &'a str,
    view: View,
    matrix: Matrix,
    /// All channels alike.
    measured: MatrixSensitivity,
}

struct Bench<'a> {
    checkpoint: &'a Checkpoint,
    isa: Isa,
    weights: Vec<Weight<'a>>,
    memory: Vec<u64>,
    progress: Progress,
}

impl<'a> Bench<'a> {
    fn new(checkpoint: &'a Checkpoint, isa: Isa) -> Self {
        let weight = |(index, tensor): (usize, &'a ramrs::bench::Tensor)| {
            let fits =
                |matrix: &Matrix| matrix.float == Float::BF16 && Affine::all().all(|it| it.scheme().fits(matrix.cols));
            let matrix = tensor.matrix().filter(fits)?;
            let k = importance(matrix.cols as usize).into();
            let vectors = Vectors { importance: k, gain: Gain::Same(1.0) };
            let measured = MatrixSensitivity {
                vectors,
                signal: 1.0,
                energy: 1.0,
                dead: DeadWeights::default(),
                origin: Origin::Flat,
            };
            Some(Weight { name: &tensor.name, view: View::whole(index, tensor), matrix, measured })
        };
        Self {
            checkpoint,
            isa,
            weights: checkpoint.tensors.iter().enumerate().filter_map(weight).collect(),
            memory: vec![1; MEMORY_BYTES / 8],
            progress: Progress::default(),
        }
    }

    fn bytes(&self) -> u64 {
        self.weights.iter().map(|weight| weight.matrix.rows * weight.matrix.row_bytes()).sum()
    }

    /// Does `task` once.
    fn time(&self, task: Task, workers: &Workers) -> Took {
        let pass = Pass {
            checkpoint: self.checkpoint,
            workers,
            progress: &self.progress,
            journal: Journal::NONE,
            isa: self.isa,
            chunk_bytes: CHUNK_BYTES,
            held_bytes: HELD_BYTES,
        };
        let (start, processor) = (Instant::now(), processor_seconds());
        let bytes = match task {
            Task::Memory => {
                black_box(sum(black_box(&self.memory)));
                MEMORY_BYTES as u64
            }
            Task::Touch => self.touch(),
            Task::Energies => self.energies(pass),
            Task::Curves => self.curves(pass),
            Task::Fast => self.pack(pass, Effort::Fast),
            Task::Normal => self.pack(pass, Effort::Normal),
        };
        Took { bytes, processor: processor_seconds() - processor, wall: start.elapsed().as_secs_f64() }
    }

    fn touch(&self) -> u64 {
        let mut buffer = PageBuffer::default();
        for shard in &self.checkpoint.shards {
            let file = shard.file().expect("a shard");
            for range in cut(shard.bytes, CHUNK_BYTES) {
                let bytes = buffer.get((range.end - range.start) as usize);
                read_at(&file, &shard.path, bytes, range.start).expect("a shard's bytes");
                black_box(sum(bytemuck::cast_slice(&bytes[..bytes.len() / 8 * 8])));
            }
        }
        self.checkpoint.shards.iter().map(|shard| shard.bytes).sum()
    }

    fn energies(&self, pass: Pass<'_>) -> u64 {
        let of = self.weights.iter();
        let asks: Vec<_> =
            of.map(|it| EnergyJob { view: it.view, matrix: it.matrix, k: &it.measured.vectors.importance }).collect();
        black_box(energies(pass, &asks).expect("energies"));
        self.bytes()
    }

    fn curves(&self, pass: Pass<'_>) -> u64 {
        let of = self.weights.iter();
        let asks: Vec<_> = of
            .map(|it| StackJob {
                name: it.name,
                matrices: vec![Member { view: it.view, matrix: it.matrix, measured: &it.measured }],
                schemes: Affine::all().map(Affine::scheme).collect(),
            })
            .collect();
        let encoder = Encoder { isa: pass.isa, effort: Effort::Fast };
        let asks: Vec<_> = asks.iter().collect();
        black_box(curves(pass, encoder, &asks, 0).expect("curves"));
        self.bytes()
    }

    /// Reads, encodes and packs into the parts of a chunk, and lets them go: nothing is hashed or written.
    fn pack(&self, pass: Pass<'_>, effort: Effort) -> u64 {
        let encoder = GridEncoder { isa: pass.isa, effort };
        let scheme = Affine::new(4, 64).expect("a scheme");
        let of = self.weights.iter();
        let pieces: Vec<_> = of
            .flat_map(|weight| {
                let ranges = cut(bands(weight.matrix), chunk_bands(weight.matrix, pass.chunk_bytes));
                ranges.map(move |range| (weight, range))
            })
            .collect();
        let pack = |(reader, encoded): &mut (Reader, Encoded),
                    (weight, range): &(&Weight<'_>, std::ops::Range<u64>)| {
            let (store, k) = (weight.matrix.float, &weight.measured.vectors.importance);
            let rows = rows_of(weight.matrix, range);
            let made = scheme.parts(weight.matrix);
            let room = |part: &PartSpec| Vec::with_capacity(part.bytes(rows.end - rows.start) as usize);
            let mut parts: Vec<Vec<u8>> = made.iter().map(room).collect();
            let mut encode = |source: &[u8], band: &[Column]| {
                encoder.encode(scheme, store, (source, band), k, encoded);
                let rows = source.len() / weight.matrix.row_bytes() as usize;
                let share = |all: usize| all / BAND_ROWS * rows;
                let Encoded { codes, scales, biases } = &*encoded;
                pack(pass.isa, scheme.bits(), &codes[..share(codes.len())], &mut parts[0]);
                append(pass.isa, store, &scales[..share(scales.len())], &mut parts[1]);
                append(pass.isa, store, &biases[..share(biases.len())], &mut parts[2]);
            };
            if effort == Effort::Fast {
                // It looks at no band: none is laid.
                let source = reader.rows(pass.checkpoint, weight.view, &rows)?;
                source.chunks(BAND_ROWS * weight.matrix.row_bytes() as usize).for_each(|source| encode(source, &[]));
            } else {
                reader.bands((pass.checkpoint, pass.isa), weight.view, range, |_, band, source| {
                    encode(source, band);
                    Ok(())
                })?;
            }
            Ok(parts)
        };
        let scratch = || (Reader::default(), Encoded::default());
        pass.workers
            .in_order(pass.progress, &pieces, scratch, pack, |_, parts| {
                black_box(parts);
                Ok(())
            })
            .expect("packed weights");
        self.bytes()
    }
}

/// The sum of `words`: as many additions under way as memory can feed.
fn sum(words: &[u64]) -> u64 {
    let (chunks, rest) = words.as_chunks::<32>();
    let mut sums = [0_u64; 32];
    for chunk in chunks {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().chain(rest).fold(0, |sum, word| sum.wrapping_add(*word))
}

/// Median, least and most.
fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let median = f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2]);
    format!("{median:.3} [{:.3} .. {:.3}]", values[0], values[values.len() - 1])
}

/// The table of `rounds`, each with one entry for every task.
fn print_rates(rounds: &[Vec<Took>]) {
    let rates = |at: usize| rounds.iter().map(move |round| round[at].rate());
    let share = |at: usize, of: usize| spread(rates(at).zip(rates(of)).map(|(rate, of)| rate / of).collect());
    println!("| one thread | GB/s and core | / memory | / page cache |\n|---|---|---|---|");
    for (at, task) in TASKS.into_iter().enumerate() {
        println!("| {} | {} | {} | {} |", task.title(), spread(rates(at).collect()), share(at, 0), share(at, 1));
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(model) = arguments.iter().find(|argument| Path::new(argument).is_dir()) else {
        println!("give the directory of a checkpoint: cargo bench --bench speed -- /tmp/2gb");
        return;
    };
    let rounds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(ROUNDS).max(1);
    let checkpoint = Checkpoint::open(Path::new(model)).expect("a checkpoint");
    let named = |isa: &Isa| arguments.iter().any(|argument| argument == isa.name());
    let isa = Isa::available().find(named).unwrap_or_else(Isa::detect);
    let bench = Bench::new(&checkpoint, isa);
    let workers = |threads| Workers::new(NonZeroUsize::new(threads)).expect("threads");
    let one = workers(1);
    bench.touch();
    if arguments.iter().any(|argument| argument == "--json") {
        let named = |task: &Task| arguments.iter().any(|argument| argument == task.name());
        let some = TASKS.iter().any(named);
        for _ in 0..rounds {
            let tasks = TASKS.into_iter().filter(|task| !some || named(task));
            let rates = tasks.map(|task| (task.name().to_owned(), bench.time(task, &one).rate().into()));
            println!("{}", serde_json::Value::Object(rates.collect()));
        }
        return;
    }
    println!(
        "{} matrices, {:.3} GB of bfloat16, {} rounds, {}\n",
        bench.weights.len(),
        bench.bytes() as f64 / 1e9,
        rounds,
        bench.isa.name()
    );
    let cores = std::thread::available_parallelism().map_or(2, NonZeroUsize::get).max(2);
    let teams: Vec<Workers> = (1..=cores.ilog2()).map(|power| workers(1 << power)).collect();
    let (mut single, mut shared) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        single.push(TASKS.map(|task| bench.time(task, &one)).to_vec());
        shared.push(teams.iter().map(|team| SHARED.map(|task| bench.time(task, team))).collect::<Vec<_>>());
    }
    print_rates(&single);
    println!("\n| wall | threads | s, of one thread | s | faster by |\n|---|---|---|---|---|");
    for (at, task) in SHARED.into_iter().enumerate() {
        let alone = TASKS.iter().position(|it| *it == task).expect("one of them");
        for (team, workers) in teams.iter().enumerate() {
            let rounds = single.iter().zip(&shared);
            let walls: Vec<_> = rounds.map(|(one, all)| (one[alone].wall, all[team][at].wall)).collect();
            println!(
                "| {} | {} | {} | {} | {} |",
                task.title(),
                workers.threads(),
                spread(walls.iter().map(|wall| wall.0).collect()),
                spread(walls.iter().map(|wall| wall.1).collect()),
                spread(walls.iter().map(|wall| wall.0 / wall.1).collect()),
            );
        }
    }
}
