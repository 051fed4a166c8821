//! Decoding an output: do its bytes decode to finite numbers, and how far are these from the source.

use crate::band::Matrix;
use crate::checkpoint::stream::{Pass, Reader};
use crate::checkpoint::{Checkpoint, Tensor, View};
use crate::codec::{Extent, Rows, Scheme, errors_of};
use crate::error::Result;
use crate::format::{Format, stored_tensors};
use crate::pass::{BandAt, BandJob, BandSelection};

/// A quantized tensor of an output: its parts, and the matrices of the source if those are at hand.
pub(crate) struct DecodeJob<'a> {
    /// The parts, in the codec's order.
    pub parts: Vec<&'a Tensor>,
    /// Its scheme.
    pub scheme: Scheme,
    /// All its rows.
    pub matrix: Matrix,
    /// What they were made of, one after the other; empty without a source.
    pub views: Vec<View>,
}

/// What decoding a matrix showed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Decoded {
    /// Weights that are not finite numbers.
    pub not_finite: u64,
    /// `Σ (ŵ − w)²` against the source, 0 without one.
    pub squared_error: f64,
}

/// The parts in `output` of the tensor called `target` in `scheme`, and all its rows as one matrix; `None` if they are
/// not all there, of the right types and shapes.
#[must_use]
pub(crate) fn find<'a>(
    format: &dyn Format,
    output: &'a Checkpoint,
    target: &str,
    scheme: Scheme,
) -> Option<(Matrix, Vec<&'a Tensor>)> {
    let codec = scheme.codec()?;
    let part = |kind: &str| output.tensor(&format.part_name(target, kind));
    let (cols, float) = codec.row_of(scheme, &|kind| {
        let tensor = part(kind)?;
        Some((tensor.dtype, *tensor.shape.last()?))
    })?;
    // The dimensions above the rows' are those of any part that grows with rows.
    let one_row = codec.parts(scheme, Matrix { rows: 1, cols, float });
    let of_rows = one_row.iter().find(|part| matches!(part.extent, Extent::PerRow(_)))?;
    let (_, above) = part(of_rows.kind)?.shape.split_last()?;
    let matrix = Matrix { rows: above.iter().product(), cols, float };
    let shape: Vec<u64> = above.iter().copied().chain([cols]).collect();
    let parts = stored_tensors(format, (target, &shape), matrix, scheme);
    let found = parts
        .iter()
        .map(|part| output.tensor(&part.name).filter(|found| (found.dtype, &found.shape) == (part.dtype, &part.shape)));
    let found = found.collect::<Option<Vec<_>>>()?;
    (scheme.fits(cols) && matrix.rows > 0).then_some((matrix, found))
}

/// What a thread keeps between bands.
#[derive(Default)]
struct Buffers {
    reader: Reader,
    parts: Vec<Vec<u8>>,
    decoded: Vec<f32>,
    ones: Vec<f32>,
}

/// Decodes `jobs` of the checkpoint `output`, next to the source's if `pass` reads one; for each, what each of its
/// matrices showed.
///
/// # Errors
/// Those of reading.
pub(crate) fn decode(pass: Pass<'_>, output: &Checkpoint, jobs: &[DecodeJob<'_>]) -> Result<Vec<Vec<Decoded>>> {
    // Each matrix: of which job, which of its views, and which row of the job is its first.
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

/// What one band of a matrix, whose first row is row `first` of the job, shows.
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
