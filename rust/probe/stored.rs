//! Products of activations with matrices of the checkpoint, which are read when they are needed and not kept.
//!
//! A matrix is stored with the weights of one output contiguous, or with those of one input ([`Linear::transposed`]), and
//! used in both directions: forward sums over inputs, backward over outputs. A sum runs either along a row of the file
//! ([`along`]: each row is read once, by one thread) or across rows ([`across`]: a block of rows is read once, and every
//! thread traverses all of it for columns of its own). Both give the same bits ([`crate::matmul::kernel`]).

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::arch::Linear;
use crate::band::widen;
use crate::checkpoint::stream::{Block, Reader, cut};
use crate::dtype::Float;
use crate::error::Result;
use crate::matmul::kernel::{
    PANEL, PackedRows, PanelStep, STEPS, TILE, TileSums, Tiles, ZERO_SUMS, accumulate_across, accumulate_along,
    accumulate_few, pack_step, unpack_across, unpack_along,
};
use crate::probe::Session;
use crate::probe::activations::Activations;
use crate::simd::Isa;
use crate::simd::vector::BAND_ROWS;

/// Panels that are one unit of work of [`across`].
const PANELS: usize = 2;

/// Tiles that are one unit of work of [`along`].
const TILES: usize = 4;

/// Bytes of rows that [`across`] holds in memory.
pub(super) const BLOCK_BYTES: u64 = 16 << 20;

/// Bytes of rows that are read at a time.
const READ_BYTES: u64 = 1 << 20;

/// The direction in which a linear layer is traversed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From inputs to outputs.
    Forward,
    /// From gradients of the outputs to gradients of the inputs.
    Back,
}

/// The activations, or gradients, that a matrix is multiplied with.
#[derive(Clone, Copy)]
pub(super) enum Input<'p> {
    Whole(&'p Activations),
    /// Computed on demand, for a range of the summation index. Rows are as long as the range.
    Computed(&'p (dyn Fn(Range<usize>) -> Activations + Sync)),
}

/// One term of a [`Product`]: a layer and its input.
#[derive(Clone, Copy)]
pub(super) struct Operand<'p, 'a> {
    pub(super) linear: Linear<'a>,
    pub(super) input: Input<'p>,
}

impl<'p, 'a> Operand<'p, 'a> {
    pub(super) fn new(linear: Linear<'a>, input: &'p Activations) -> Self {
        Self { linear, input: Input::Whole(input) }
    }

    /// The input in memory.
    fn whole_input(&self) -> Cow<'p, Activations> {
        match self.input {
            Input::Whole(rows) => Cow::Borrowed(rows),
            Input::Computed(compute) => Cow::Owned(compute(0..self.linear.matrix.cols as usize)),
        }
    }

    fn outputs(&self, direction: Direction) -> usize {
        match direction {
            Direction::Forward => self.linear.outputs(),
            Direction::Back => self.linear.inputs(),
        }
    }
}

/// A sum of products of matrices with their inputs, and the rows of the result.
pub(super) struct Product<'p, 'a> {
    pub(super) operands: Vec<Operand<'p, 'a>>,
    pub(super) out: &'p mut Activations,
}

/// The terms of a sum of `count` rows.
struct Sum<'p, 'a> {
    operands: Vec<Operand<'p, 'a>>,
    count: usize,
}

impl Sum<'_, '_> {
    /// Whether the sum runs along rows of the file, not across them.
    fn is_along(&self, direction: Direction) -> bool {
        self.operands.iter().all(|operand| operand.linear.transposed == (direction == Direction::Back))
    }
}

/// Inputs in the kernel's layout. Each is packed once, for any number of uses.
struct Packer<'p, const N: usize> {
    distinct: Vec<&'p Activations>,
}

impl<'p, const N: usize> Packer<'p, N> {
    /// The index that `rows` will have among the packed ones.
    fn add(&mut self, rows: &'p Activations) -> usize {
        let known = self.distinct.iter().position(|other| std::ptr::eq(*other, rows));
        known.unwrap_or_else(|| {
            self.distinct.push(rows);
            self.distinct.len() - 1
        })
    }

    fn pack(self, session: &Session<'_>) -> Result<Vec<PackedRows<N>>> {
        let pass = session.pass;
        let pack = |(): &mut (), rows: &&Activations| Ok(PackedRows::pack(&rows.values, rows.width));
        pass.workers.map(pass.progress, &self.distinct, || (), pack)
    }
}

/// Adds up the operands of one product into rows of their own.
pub(super) fn product(
    session: &Session<'_>,
    direction: Direction,
    count: usize,
    operands: Vec<Operand<'_, '_>>,
) -> Result<Activations> {
    let width = operands.first().map_or(0, |operand| operand.outputs(direction));
    let mut out = Activations::zeros(count, width);
    products(session, direction, vec![Product { operands, out: &mut out }])?;
    Ok(out)
}

/// Computes `products`. Biases are not added.
pub(super) fn products(session: &Session<'_>, direction: Direction, products: Vec<Product<'_, '_>>) -> Result<()> {
    let (mut along_rows, mut across_rows) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for Product { operands, out } in products {
        for Operand { linear, .. } in &operands {
            session.count(out.count() * linear.inputs() * linear.outputs());
        }
        let sum = Sum { operands, count: out.count() };
        let kind = if sum.is_along(direction) { &mut along_rows } else { &mut across_rows };
        if sum.count > 0 {
            kind.0.push(sum);
            kind.1.push(out);
        }
    }
    along(session, &along_rows.0, &mut along_rows.1)?;
    across(session, &across_rows.0, &mut across_rows.1)
}

/// Some columns of the result of a [`Sum`].
struct SumColumns {
    sum: usize,
    columns: Range<usize>,
}

fn cut_columns(out: &[&mut Activations], step: usize) -> Vec<SumColumns> {
    let of = |(sum, out): (usize, &&mut Activations)| {
        let width = out.width;
        (0..width).step_by(step).map(move |from| SumColumns { sum, columns: from..(from + step).min(width) })
    };
    out.iter().enumerate().flat_map(of).collect()
}

/// Sums within rows of the file.
fn along(session: &Session<'_>, sums: &[Sum<'_, '_>], out: &mut [&mut Activations]) -> Result<()> {
    let pass = session.pass;
    let inputs: Vec<Vec<Cow<'_, Activations>>> =
        sums.iter().map(|sum| sum.operands.iter().map(Operand::whole_input).collect()).collect();
    let mut packer = Packer::<PANEL> { distinct: Vec::new() };
    let terms: Vec<Vec<(Linear<'_>, usize)>> = sums
        .iter()
        .zip(&inputs)
        .map(|(sum, inputs)| {
            sum.operands.iter().zip(inputs).map(|(operand, rows)| (operand.linear, packer.add(rows))).collect()
        })
        .collect();
    let packed = packer.pack(session)?;
    pass.workers.in_order(
        pass.progress,
        &cut_columns(out, TILES * TILE),
        || (Reader::default(), Vec::new(), Vec::new()),
        |(reader, totals, wide), SumColumns { sum, columns }| {
            let (tiles, count) = (columns.len().div_ceil(TILE), sums[*sum].count);
            totals.clear();
            totals.resize(count.div_ceil(PANEL) * tiles, ZERO_SUMS);
            for &(linear, input) in &terms[*sum] {
                let x = &packed[input];
                let matrix = linear.matrix;
                let (row_bytes, length) = (matrix.row_bytes(), matrix.cols as usize);
                let [from, to] = [columns.start, columns.end].map(|row| linear.offset() + row as u64 * row_bytes);
                let rows = match session.held(linear.weight, from..to) {
                    Some(rows) => rows,
                    None => reader.bytes(pass.checkpoint, linear.weight, from..to)?,
                };
                if count <= BAND_ROWS {
                    // With so few rows a weight is used once: whole rows are widened, not blocks of columns.
                    wide.resize(columns.len() * length, 0.0);
                    widen(pass.isa, matrix.float, rows, wide);
                    for from in (0..length).step_by(STEPS) {
                        accumulate_few(pass.isa, &wide[from..], length, x, from, totals);
                    }
                } else {
                    for from in (0..length).step_by(STEPS) {
                        let steps = (length - from).min(STEPS);
                        widen_columns(pass.isa, matrix.float, (rows, row_bytes as usize), from..from + steps, wide);
                        accumulate_along(pass.isa, wide, steps, x, from, totals);
                    }
                }
                session.visited(columns.len() as u64 * row_bytes);
            }
            let mut y = vec![0.0; count * columns.len()];
            unpack_along(totals, tiles, &mut y, columns.len());
            Ok(y)
        },
        |SumColumns { sum, columns }, y| {
            let width = out[*sum].width;
            let rows = out[*sum].values.chunks_exact_mut(width);
            for (row, y) in rows.zip(y.chunks_exact(columns.len())) {
                row[columns.clone()].copy_from_slice(y);
            }
            Ok(())
        },
    )
}

/// Widens the elements `which` of each of `rows`, which are `row_bytes` long.
fn widen_columns(isa: Isa, float: Float, (rows, row_bytes): (&[u8], usize), which: Range<usize>, wide: &mut Vec<f32>) {
    let size = float.bytes();
    wide.resize(rows.len() / row_bytes * which.len(), 0.0);
    for (row, place) in rows.chunks_exact(row_bytes).zip(wide.chunks_exact_mut(which.len())) {
        widen(isa, float, &row[which.start * size..which.end * size], place);
    }
}

/// Some rows of the matrix of one operand.
struct RowRead {
    sum: usize,
    operand: usize,
    rows: Range<u64>,
}

/// Adjacent panels, and a buffer for the widened weights that are packed into them.
#[derive(Default)]
struct PanelBuffer {
    wide: Vec<f32>,
    panels: [Vec<PanelStep>; PANELS],
}

impl PanelBuffer {
    /// Packs the elements `columns` of each of `rows`, which are `row_bytes` long. Each row is a step.
    fn pack_columns(&mut self, isa: Isa, float: Float, (rows, row_bytes): (&[u8], usize), columns: &Range<usize>) {
        let size = float.bytes();
        let columns_of = columns.clone().step_by(PANEL).map(|from| from..(from + PANEL).min(columns.end));
        for (panel, columns) in self.panels.iter_mut().zip(columns_of) {
            panel.resize(rows.len() / row_bytes, PanelStep::default());
            self.wide.resize(columns.len(), 0.0);
            for (step, row) in panel.iter_mut().zip(rows.chunks_exact(row_bytes)) {
                widen(isa, float, &row[columns.start * size..columns.end * size], &mut self.wide);
                pack_step(step, &self.wide);
            }
        }
    }
}

/// The input of the rows of a [`RowRead`].
enum RowInput {
    /// The packed input of this index. Its first step belongs to the first of these rows.
    Shared(usize),
    /// Computed for these rows.
    Own(Tiles),
}

/// Sums across rows of the file.
fn across(session: &Session<'_>, sums: &[Sum<'_, '_>], out: &mut [&mut Activations]) -> Result<()> {
    let pass = session.pass;
    let mut packer = Packer::<TILE> { distinct: Vec::new() };
    let terms: Vec<Vec<Term<'_, '_>>> =
        sums.iter().map(|sum| sum.operands.iter().map(|operand| Term::new(operand, &mut packer)).collect()).collect();
    let packed = packer.pack(session)?;
    let pieces = cut_columns(out, PANELS * PANEL);
    let empty = |piece: &SumColumns| {
        Mutex::new(vec![ZERO_SUMS; sums[piece.sum].count.div_ceil(TILE) * piece.columns.len().div_ceil(PANEL)])
    };
    let totals: Vec<Mutex<Vec<TileSums>>> = pieces.iter().map(empty).collect();
    for batch in batches(sums) {
        let held = pass.workers.map(pass.progress, &batch, Reader::default, |reader, read| {
            terms[read.sum][read.operand].read(session, reader, &read.rows)
        })?;
        let sums_here: BTreeSet<usize> = batch.iter().map(|read| read.sum).collect();
        let here: Vec<usize> = (0..pieces.len()).filter(|&at| sums_here.contains(&pieces[at].sum)).collect();
        pass.workers.map(pass.progress, &here, PanelBuffer::default, |buffer, &at| {
            let SumColumns { sum, columns } = &pieces[at];
            let panels = columns.len().div_ceil(PANEL);
            let mut totals = totals[at].lock().unwrap_or_else(PoisonError::into_inner);
            for (read, (block, input)) in batch.iter().zip(&held).filter(|(read, _)| read.sum == *sum) {
                let matrix = terms[*sum][read.operand].linear.matrix;
                let (x, first) = match input {
                    RowInput::Own(tiles) => (tiles, 0),
                    RowInput::Shared(index) => (&packed[*index], read.rows.start as usize),
                };
                let row_bytes = matrix.row_bytes() as usize;
                for (at, rows) in block.bytes().chunks(STEPS * row_bytes).enumerate() {
                    buffer.pack_columns(pass.isa, matrix.float, (rows, row_bytes), columns);
                    let both: [&[PanelStep]; PANELS] = [&buffer.panels[0], &buffer.panels[1]];
                    accumulate_across(pass.isa, x, first + at * STEPS, &both[..panels], &mut totals);
                }
            }
            Ok(())
        })?;
    }
    for (SumColumns { sum, columns }, totals) in pieces.iter().zip(totals) {
        let Activations { width, values } = &mut *out[*sum];
        let totals = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
        unpack_across(&totals, columns.len().div_ceil(PANEL), values, *width, columns);
    }
    Ok(())
}

/// An operand of a sum across rows.
struct Term<'p, 'a> {
    linear: Linear<'a>,
    input: TermInput<'p>,
}

enum TermInput<'p> {
    /// Index among the packed ones.
    Packed(usize),
    Computed(&'p (dyn Fn(Range<usize>) -> Activations + Sync)),
}

impl<'p, 'a> Term<'p, 'a> {
    fn new(operand: &Operand<'p, 'a>, packer: &mut Packer<'p, TILE>) -> Self {
        let input = match operand.input {
            Input::Whole(rows) => TermInput::Packed(packer.add(rows)),
            Input::Computed(compute) => TermInput::Computed(compute),
        };
        Self { linear: operand.linear, input }
    }

    /// Reads `rows` of the matrix, and prepares their input.
    fn read(&self, session: &Session<'_>, reader: &mut Reader, rows: &Range<u64>) -> Result<(Block, RowInput)> {
        let row_bytes = self.linear.matrix.row_bytes();
        let bytes = self.linear.offset() + rows.start * row_bytes..self.linear.offset() + rows.end * row_bytes;
        session.visited(bytes.end - bytes.start);
        let block = reader.block(session.pass.checkpoint, self.linear.weight, bytes)?;
        let input = match &self.input {
            TermInput::Packed(index) => RowInput::Shared(*index),
            TermInput::Computed(compute) => {
                let rows = compute(rows.start as usize..rows.end as usize);
                RowInput::Own(PackedRows::pack(&rows.values, rows.width))
            }
        };
        Ok((block, input))
    }
}

/// The rows that [`across`] reads before it works on them: at most [`BLOCK_BYTES`] in one batch, of each sum in the order
/// of its rows.
fn batches(sums: &[Sum<'_, '_>]) -> Vec<Vec<RowRead>> {
    let mut batches: Vec<Vec<RowRead>> = Vec::new();
    let mut held = BLOCK_BYTES;
    for (sum, Sum { operands, .. }) in sums.iter().enumerate() {
        for (operand, Operand { linear, .. }) in operands.iter().enumerate() {
            let row_bytes = linear.matrix.row_bytes();
            // Whole blocks of steps, so that no block but the last of a matrix is partly filled.
            let rows = (READ_BYTES / row_bytes / STEPS as u64 * STEPS as u64).max(STEPS as u64);
            for rows in cut(linear.matrix.rows, rows) {
                held += (rows.end - rows.start) * row_bytes;
                if held > BLOCK_BYTES {
                    batches.push(Vec::new());
                    held = (rows.end - rows.start) * row_bytes;
                }
                if let Some(batch) = batches.last_mut() {
                    batch.push(RowRead { sum, operand, rows });
                }
            }
        }
    }
    batches
}
