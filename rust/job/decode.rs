//! Decodes an output: counts non-finite weights and measures the error against the source.

use crate::band::Matrix;
use crate::checkpoint::stream::{Pass, Reader};
use crate::checkpoint::{Checkpoint, Tensor, View};
use crate::codec::{Extent, Rows, Scheme, errors_of};
use crate::error::Result;
use crate::format::Format;
use crate::format::encoded::find_parts;
use crate::pass::{BandAt, BandJob, BandSelection};

/// A quantized tensor of an output, and the source views of its matrices if the source is available.
pub(crate) struct DecodeJob<'a> {
    /// Its parts, in the codec's order.
    pub parts: Vec<&'a Tensor>,
    pub scheme: Scheme,
    /// All rows of the tensor.
    pub matrix: Matrix,
    /// The source views, one per matrix, in row order; empty without a source.
    pub views: Vec<View>,
}

/// The result of decoding one matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Decoded {
    /// Number of NaN or infinite weights.
    pub not_finite: u64,
    /// `Σ (ŵ − w)²` against the source; 0 without a source.
    pub squared_error: f64,
}

/// The parts in `output` of tensor `target` in `scheme`, and all rows as one matrix. `None` if a part is missing or has
/// another type or shape.
#[must_use]
pub(crate) fn find<'a>(
    format: &dyn Format,
    output: &'a Checkpoint,
    target: &str,
    scheme: Scheme,
) -> Option<(Matrix, Vec<&'a Tensor>)> {
    let part = |name: &str| output.tensor(name).map(|found| (found, found.dtype, found.shape.as_slice()));
    find_parts(format, (target, scheme), part).map(|found| (found.matrix, found.parts))
}

/// Buffers that a thread reuses between bands.
#[derive(Default)]
struct Buffers {
    reader: Reader,
    parts: Vec<Vec<u8>>,
    decoded: Vec<f32>,
    ones: Vec<f32>,
}

/// Decodes `jobs` from the checkpoint `output`, together with the source that `pass` reads, if any. Returns the results
/// of each job, one per matrix.
///
/// # Errors
/// The errors of reading.
pub(crate) fn decode(pass: Pass<'_>, output: &Checkpoint, jobs: &[DecodeJob<'_>]) -> Result<Vec<Vec<Decoded>>> {
    // For each matrix: its job, its view, and the row of the job where it begins.
    let mut matrices: Vec<(usize, usize, u64)> = Vec::new();
    let mut bands: Vec<BandJob> = Vec::new();
    for (at, job) in jobs.iter().enumerate() {
        let mut first = 0;
        for view in 0..job.views.len().max(1) {
            let source = job.views.get(view).copied();
            let rows = source.map_or(job.matrix.rows, |view| view.rows);
            matrices.push((at, view, first));
            bands.push(BandJob { matrix: Matrix { rows, ..job.matrix }, view: source, selection: BandSelection::All });
            first += rows;
        }
    }
    let mut decoded: Vec<Vec<Decoded>> =
        jobs.iter().map(|job| vec![Decoded::default(); job.views.len().max(1)]).collect();
    pass.fold_bands(
        &bands,
        Buffers::default,
        |buffers, band| {
            let (job, _, first) = matrices[band.job];
            decode_band(pass, output, (&jobs[job], first), &band, buffers)
        },
        |at, found, _| {
            let (job, view, _) = matrices[at];
            let sum = &mut decoded[job][view];
            for band in found {
                sum.not_finite += band.not_finite;
                sum.squared_error += band.squared_error;
            }
            Ok(())
        },
    )?;
    Ok(decoded)
}

/// Decodes one band of a matrix that begins at row `first` of the job.
fn decode_band(
    pass: Pass<'_>,
    output: &Checkpoint,
    (DecodeJob { parts, scheme, matrix, .. }, first): (&DecodeJob<'_>, u64),
    BandAt { rows, band, .. }: &BandAt<'_>,
    buffers: &mut Buffers,
) -> Result<Decoded> {
    let Some(codec) = scheme.codec() else { return Ok(Decoded::default()) };
    let cols = matrix.cols as usize;
    buffers.parts.resize(parts.len(), Vec::new());
    let specs = codec.parts(*scheme, *matrix);
    for ((spec, part), data) in specs.iter().zip(parts).zip(&mut buffers.parts) {
        let range = match spec.extent {
            Extent::PerRow(_) => (first + rows.start) * spec.row_bytes()..(first + rows.end) * spec.row_bytes(),
            Extent::Fixed(_) => 0..part.bytes,
        };
        data.clear();
        data.extend_from_slice(buffers.reader.bytes(output, part, range)?);
    }
    buffers.decoded.resize(band.rows * cols, 0.0);
    let data: Vec<&[u8]> = buffers.parts.iter().map(Vec::as_slice).collect();
    codec.decode(*scheme, Rows { cols, float: matrix.float }, &data, &mut buffers.decoded);
    let not_finite = buffers.decoded.iter().filter(|weight| !weight.is_finite()).count() as u64;
    if band.columns.is_empty() {
        return Ok(Decoded { not_finite, squared_error: 0.0 });
    }
    let block = codec.block(*scheme, matrix.cols) as usize;
    buffers.ones.resize(cols, 1.0);
    let errors = errors_of(pass.isa, band.columns, &buffers.ones, &buffers.decoded, block);
    Ok(Decoded { not_finite, squared_error: errors.iter().take(band.rows).map(|row| row.plain).sum() })
}
