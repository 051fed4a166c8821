//! Products of activations with matrices of the checkpoint, which are read as they are needed and not kept.
//!
//! A matrix is stored with the numbers of one output one after the other, or of one input ([`Linear::transposed`]), and
//! used in both directions: forward sums over inputs, back over outputs. What is summed over either lies within a row of
//! the file ([`along`]: rows are read and forgotten, each by one thread) or across rows ([`across`]: a block of rows is
//! read once, and every thread walks through all of it for columns of its own). The result is the same
//! ([`crate::probe::matmul::kernel`]).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::arch::Linear;
use crate::band::widen;
use crate::checkpoint::stream::{Block, Reader, cut};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::probe::Session;
use crate::probe::matmul::kernel::{
    PANEL, PackedRows, PanelStep, STEPS, TILE, TileSums, Tiles, ZERO_SUMS, accumulate_across, accumulate_along,
    accumulate_few, lay_step, unpack_across, unpack_along,
};
use crate::probe::rows::Rows;
use crate::simd::Isa;
use crate::simd::vector::BAND_ROWS;

/// Panels that a thread works on at a time, across rows.
const PANELS: usize = 2;

/// Tiles that it works on at a time, along them.
const TILES: usize = 4;

/// Bytes of rows that [`across`] holds in memory.
const BLOCK_BYTES: u64 = 16 << 20;

/// Bytes of rows that are read at a time.
const READ_BYTES: u64 = 1 << 20;

/// Which way a linear layer is gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::probe) enum Direction {
    /// From inputs to outputs.
    Forward,
    /// From gradients of the outputs to those of the inputs.
    Back,
}

/// What goes into a layer.
#[derive(Clone, Copy)]
pub(in crate::probe) enum Input<'p> {
    /// All of it.
    Whole(&'p Rows),
    /// Made as it is needed, for a range of what is summed over: rows as long as that.
    Made(&'p (dyn Fn(Range<usize>) -> Rows + Sync)),
}

/// A layer, and what goes into it.
#[derive(Clone, Copy)]
pub(in crate::probe) struct Part<'p, 'a> {
    pub(in crate::probe) linear: Linear<'a>,
    pub(in crate::probe) x: Input<'p>,
}

/// A sum of products: the parts follow each other as if their matrices were one.
pub(in crate::probe) struct Job<'p, 'a> {
    pub(in crate::probe) parts: Vec<Part<'p, 'a>>,
    /// Rows that go in, and come out.
    pub(in crate::probe) count: usize,
}

impl<'p, 'a> Job<'p, 'a> {
    /// One layer, and what goes into it.
    pub(in crate::probe) fn one(linear: Linear<'a>, x: &'p Rows) -> Self {
        Self { parts: vec![Part { linear, x: Input::Whole(x) }], count: x.count() }
    }

    fn width(&self, direction: Direction) -> usize {
        self.parts.first().map_or(0, |part| match direction {
            Direction::Forward => part.linear.outputs(),
            Direction::Back => part.linear.inputs(),
        })
    }

    /// Whether what is summed over lies within rows of the file.
    fn is_along(&self, direction: Direction) -> bool {
        self.parts.iter().all(|part| part.linear.transposed == (direction == Direction::Back))
    }
}

/// Inputs as products want them, those that are the same once: for each job and part, which; and all.
struct Inputs<const N: usize> {
    of: BTreeMap<(usize, usize), usize>,
    packed: Vec<PackedRows<N>>,
}

impl<const N: usize> Inputs<N> {
    fn new(session: &Session<'_>, jobs: &[Job<'_, '_>], which: &[usize]) -> Result<Self> {
        let (mut of, mut distinct): (BTreeMap<_, _>, Vec<&Rows>) = Default::default();
        for &job in which {
            for (part, Part { x, .. }) in jobs[job].parts.iter().enumerate() {
                if let Input::Whole(rows) = x {
                    let seen = distinct.iter().position(|other| std::ptr::eq(*other, *rows));
                    of.insert((job, part), seen.unwrap_or(distinct.len()));
                    if seen.is_none() {
                        distinct.push(rows);
                    }
                }
            }
        }
        let pass = session.pass;
        let packed = pass.workers.map(
            pass.progress,
            &distinct,
            || (),
            |(), rows| Ok(PackedRows::pack(&rows.values, rows.width)),
        )?;
        Ok(Self { of, packed })
    }

    fn get(&self, job: usize, part: usize) -> Option<&PackedRows<N>> {
        self.of.get(&(job, part)).map(|&at| &self.packed[at])
    }
}

/// The rows that come out of each of `jobs`.
pub(in crate::probe) fn products(
    session: &Session<'_>,
    direction: Direction,
    jobs: &[Job<'_, '_>],
) -> Result<Vec<Rows>> {
    let mut out: Vec<Rows> = jobs.iter().map(|job| Rows::zeros(job.count, job.width(direction))).collect();
    for job in jobs {
        for Part { linear, .. } in &job.parts {
            session.count(job.count * linear.inputs() * linear.outputs());
        }
    }
    let of_kind = |along: bool| -> Vec<usize> {
        (0..jobs.len()).filter(|&at| jobs[at].count > 0 && jobs[at].is_along(direction) == along).collect()
    };
    along(session, jobs, &of_kind(true), &mut out)?;
    across(session, jobs, &of_kind(false), &mut out)?;
    Ok(out)
}

/// Some columns of what comes out of a job.
struct Piece {
    job: usize,
    columns: Range<usize>,
}

fn pieces(which: &[usize], out: &[Rows], step: usize) -> Vec<Piece> {
    let of = |&job: &usize| {
        let width = out[job].width;
        (0..width).step_by(step).map(move |from| Piece { job, columns: from..(from + step).min(width) })
    };
    which.iter().flat_map(of).collect()
}

/// Products that sum within rows of the file.
fn along(session: &Session<'_>, jobs: &[Job<'_, '_>], which: &[usize], out: &mut [Rows]) -> Result<()> {
    let pass = session.pass;
    let inputs = Inputs::<PANEL>::new(session, jobs, which)?;
    pass.workers.in_order(
        pass.progress,
        &pieces(which, out, TILES * TILE),
        || (Reader::default(), Vec::new(), Vec::new()),
        |(reader, sums, wide), Piece { job, columns }| {
            let tiles = columns.len().div_ceil(TILE);
            sums.clear();
            sums.resize(jobs[*job].count.div_ceil(PANEL) * tiles, ZERO_SUMS);
            for (part, Part { linear, .. }) in jobs[*job].parts.iter().enumerate() {
                let x = inputs.get(*job, part).ok_or_else(|| Error::Bug("an input is not there".to_owned()))?;
                let matrix = linear.matrix;
                let (row_bytes, length) = (matrix.row_bytes(), matrix.cols as usize);
                let [from, to] = [columns.start, columns.end].map(|row| linear.offset() + row as u64 * row_bytes);
                let rows = match session.held(linear.weight, from..to) {
                    Some(rows) => rows,
                    None => reader.bytes(pass.checkpoint, linear.weight, from..to)?,
                };
                if jobs[*job].count <= BAND_ROWS {
                    // What is used once is read from the beginning to the end.
                    wide.resize(columns.len() * length, 0.0);
                    widen(pass.isa, matrix.float, rows, wide);
                    for from in (0..length).step_by(STEPS) {
                        accumulate_few(pass.isa, &wide[from..], length, x, from, sums);
                    }
                } else {
                    for from in (0..length).step_by(STEPS) {
                        let steps = (length - from).min(STEPS);
                        widen_columns(pass.isa, matrix.float, (rows, row_bytes as usize), from..from + steps, wide);
                        accumulate_along(pass.isa, wide, steps, x, from, sums);
                    }
                }
                session.visited(columns.len() as u64 * row_bytes);
            }
            let mut y = vec![0.0; jobs[*job].count * columns.len()];
            unpack_along(sums, tiles, &mut y, columns.len());
            Ok(y)
        },
        |Piece { job, columns }, y| {
            let rows = out[*job].values.chunks_exact_mut(out[*job].width);
            for (row, y) in rows.zip(y.chunks_exact(columns.len())) {
                row[columns.clone()].copy_from_slice(y);
            }
            Ok(())
        },
    )
}

/// The elements `which` of rows that have so many bytes each, one row after the other.
fn widen_columns(isa: Isa, float: Float, (rows, row_bytes): (&[u8], usize), which: Range<usize>, wide: &mut Vec<f32>) {
    let size = float.bytes();
    wide.resize(rows.len() / row_bytes * which.len(), 0.0);
    for (row, place) in rows.chunks_exact(row_bytes).zip(wide.chunks_exact_mut(which.len())) {
        widen(isa, float, &row[which.start * size..which.end * size], place);
    }
}

/// Some rows of one of a job's matrices.
struct Read {
    job: usize,
    part: usize,
    rows: Range<u64>,
}

/// Panels side by side, and room to widen what is laid into them.
#[derive(Default)]
struct Laid {
    wide: Vec<f32>,
    panels: [Vec<PanelStep>; PANELS],
}

impl Laid {
    /// Elements `columns` of rows that have so many bytes each; each row is a step.
    fn lay(&mut self, isa: Isa, float: Float, (rows, row_bytes): (&[u8], usize), columns: &Range<usize>) {
        let size = float.bytes();
        let columns_of = columns.clone().step_by(PANEL).map(|from| from..(from + PANEL).min(columns.end));
        for (panel, columns) in self.panels.iter_mut().zip(columns_of) {
            panel.resize(rows.len() / row_bytes, PanelStep::default());
            self.wide.resize(columns.len(), 0.0);
            for (step, row) in panel.iter_mut().zip(rows.chunks_exact(row_bytes)) {
                widen(isa, float, &row[columns.start * size..columns.end * size], &mut self.wide);
                lay_step(step, &self.wide);
            }
        }
    }
}

/// Products that sum across rows of the file.
fn across(session: &Session<'_>, jobs: &[Job<'_, '_>], which: &[usize], out: &mut [Rows]) -> Result<()> {
    let pass = session.pass;
    let inputs = Inputs::<TILE>::new(session, jobs, which)?;
    let pieces = pieces(which, out, PANELS * PANEL);
    let empty = |piece: &Piece| {
        Mutex::new(vec![ZERO_SUMS; jobs[piece.job].count.div_ceil(TILE) * piece.columns.len().div_ceil(PANEL)])
    };
    let sums: Vec<Mutex<Vec<TileSums>>> = pieces.iter().map(empty).collect();
    for batch in batches(jobs, which) {
        let held: Vec<(Block, Option<Tiles>)> =
            pass.workers.map(pass.progress, &batch, Reader::default, |reader, read| {
                let Part { linear, x } = &jobs[read.job].parts[read.part];
                let row_bytes = linear.matrix.row_bytes();
                let bytes = linear.offset() + read.rows.start * row_bytes..linear.offset() + read.rows.end * row_bytes;
                session.visited(bytes.end - bytes.start);
                let block = reader.block(pass.checkpoint, linear.weight, bytes)?;
                let made = match x {
                    Input::Whole(_) => None,
                    Input::Made(make) => {
                        let rows = make(read.rows.start as usize..read.rows.end as usize);
                        Some(PackedRows::pack(&rows.values, rows.width))
                    }
                };
                Ok((block, made))
            })?;
        let jobs_here: BTreeSet<usize> = batch.iter().map(|read| read.job).collect();
        let here: Vec<usize> = (0..pieces.len()).filter(|&at| jobs_here.contains(&pieces[at].job)).collect();
        pass.workers.map(pass.progress, &here, Laid::default, |laid, &at| {
            let Piece { job, columns } = &pieces[at];
            let panels = columns.len().div_ceil(PANEL);
            let mut sums = sums[at].lock().unwrap_or_else(PoisonError::into_inner);
            for (read, (block, made)) in batch.iter().zip(&held).filter(|(read, _)| read.job == *job) {
                let matrix = jobs[*job].parts[read.part].linear.matrix;
                let (x, first) = match (made, inputs.get(*job, read.part)) {
                    (Some(made), _) => (made, 0),
                    (None, Some(whole)) => (whole, read.rows.start as usize),
                    (None, None) => return Err(Error::Bug("an input is not there".to_owned())),
                };
                let row_bytes = matrix.row_bytes() as usize;
                for (at, rows) in block.bytes().chunks(STEPS * row_bytes).enumerate() {
                    laid.lay(pass.isa, matrix.float, (rows, row_bytes), columns);
                    let both: [&[PanelStep]; PANELS] = [&laid.panels[0], &laid.panels[1]];
                    accumulate_across(pass.isa, x, first + at * STEPS, &both[..panels], &mut sums);
                }
            }
            Ok(())
        })?;
    }
    for (Piece { job, columns }, sums) in pieces.iter().zip(sums) {
        let Rows { width, values } = &mut out[*job];
        let sums = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
        unpack_across(&sums, columns.len().div_ceil(PANEL), values, *width, columns);
    }
    Ok(())
}

/// What [`across`] reads before it works on it: so many bytes at a time, of each job in the order of its rows.
fn batches(jobs: &[Job<'_, '_>], which: &[usize]) -> Vec<Vec<Read>> {
    let mut batches: Vec<Vec<Read>> = Vec::new();
    let mut held = BLOCK_BYTES;
    for &job in which {
        for (part, Part { linear, .. }) in jobs[job].parts.iter().enumerate() {
            let row_bytes = linear.matrix.row_bytes();
            // Whole panels, so that cuts do not leave some half full.
            let rows = (READ_BYTES / row_bytes / STEPS as u64 * STEPS as u64).max(STEPS as u64);
            for rows in cut(linear.matrix.rows, rows) {
                held += (rows.end - rows.start) * row_bytes;
                if held > BLOCK_BYTES {
                    batches.push(Vec::new());
                    held = (rows.end - rows.start) * row_bytes;
                }
                if let Some(batch) = batches.last_mut() {
                    batch.push(Read { job, part, rows });
                }
            }
        }
    }
    batches
}
