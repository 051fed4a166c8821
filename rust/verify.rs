//! Reading an output back: is every byte what was written, and does it decode to what was claimed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use crate::checkpoint::header::Entry;
use crate::checkpoint::shard::Shard;
use crate::checkpoint::stream::{Pass, Reader, bands, chunk_bands, cut, rows_of};
use crate::checkpoint::{Checkpoint, Matrix, Tensor, View};
use crate::codec::affine::RowError;
use crate::codec::encoder::{Encoded, Encoder};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::progress::Progress;
use crate::schema::manifest::{FileDigest, Manifest};
use crate::scheme::Affine;

/// Bytes read at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// The digest of a file and, if it is a safetensors file, of each tensor in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileContent {
    /// Of the whole file.
    pub file: FileDigest,
    /// Of each tensor, in the order of their data.
    pub tensors: Vec<(Entry, String)>,
    /// Of those tensors that were written slice by slice, all of whose slices are as they were written.
    pub stacks: Vec<(String, String)>,
}

/// Length and digest of each slice that a tensor was written in, by name.
pub type Slices = BTreeMap<String, Vec<(u64, String)>>;

/// Slices of a tensor as they are read back.
#[derive(Default)]
struct Sliced<'a> {
    rest: &'a [(u64, String)],
    /// Bytes left of the slice that is read.
    left: u64,
    digest: Digest,
    differs: bool,
}

impl<'a> Sliced<'a> {
    fn new(slices: &'a [(u64, String)]) -> Self {
        Self { rest: slices, left: slices.first().map_or(0, |slice| slice.0), ..Self::default() }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while let Some(((_, expected), rest)) = self.rest.split_first() {
            let now = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            self.digest.update(&bytes[..now]);
            (bytes, self.left) = (&bytes[now..], self.left - now as u64);
            if self.left > 0 {
                return;
            }
            self.differs |= std::mem::take(&mut self.digest).finish() != *expected;
            self.rest = rest;
            self.left = rest.first().map_or(0, |slice| slice.0);
        }
    }

    fn is_as_written(&self) -> bool {
        self.rest.is_empty() && !self.differs
    }
}

/// Reads `dir`/`name` from beginning to end; tensors of `slices` are compared slice by slice, too.
///
/// # Errors
/// [`Error::Io`], and those of [`Shard::open`].
pub fn content(dir: &Path, name: &str, slices: &Slices, progress: &Progress) -> Result<FileContent> {
    let path = dir.join(name);
    let entries =
        if name.ends_with(".safetensors") { Shard::open(path.clone(), name.to_owned())?.1.entries } else { Vec::new() };
    let mut file = File::open(&path).map_err(Error::io("opening", &path))?;
    let (mut whole, mut bytes) = (Digest::default(), 0_u64);
    let mut tensors: Vec<(Entry, String)> = Vec::with_capacity(entries.len());
    let mut stacks = Vec::new();
    let slices_of = |entry: Option<&Entry>| {
        Sliced::new(entry.and_then(|entry| slices.get(&entry.name)).map(Vec::as_slice).unwrap_or_default())
    };
    let mut entries = entries.into_iter().peekable();
    let mut current = Digest::default();
    let mut sliced = slices_of(entries.peek());
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        progress.check()?;
        // Tensors without data end where they begin.
        while let Some(entry) = entries.next_if(|entry| entry.offset + entry.bytes == bytes) {
            let sha256 = std::mem::take(&mut current).finish();
            sliced.update(&[]);
            if slices.contains_key(&entry.name) && sliced.is_as_written() {
                stacks.push((entry.name.clone(), sha256.clone()));
            }
            tensors.push((entry, sha256));
            sliced = slices_of(entries.peek());
        }
        // No read goes beyond the end of a tensor.
        let wanted = entries.peek().map_or(u64::MAX, |entry| {
            let edge = if bytes < entry.offset { entry.offset } else { entry.offset + entry.bytes };
            edge - bytes
        });
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX).min(BUFFER_BYTES);
        let read = file.read(&mut buffer[..wanted]).map_err(Error::io("reading", &path))?;
        if read == 0 {
            break;
        }
        whole.update(&buffer[..read]);
        if entries.peek().is_some_and(|entry| bytes >= entry.offset) {
            current.update(&buffer[..read]);
            sliced.update(&buffer[..read]);
        }
        bytes += read as u64;
        progress.advance(read as u64);
    }
    let file = FileDigest { name: name.to_owned(), bytes, sha256: whole.finish() };
    Ok(FileContent { file, tensors, stacks })
}

/// Something that is not as the manifest says.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// In which file.
    pub file: String,
    /// About which tensor.
    pub tensor: Option<String>,
    /// What.
    pub what: String,
}

impl Problem {
    /// One about a file.
    #[must_use]
    pub fn file(file: &str, what: impl Into<String>) -> Self {
        Self { file: file.to_owned(), tensor: None, what: what.into() }
    }

    /// One about a tensor.
    #[must_use]
    pub fn tensor(file: &str, tensor: &str, what: impl Into<String>) -> Self {
        Self { file: file.to_owned(), tensor: Some(tensor.to_owned()), what: what.into() }
    }
}

/// Compares what was read of the files with what `manifest` says of them.
#[must_use]
pub fn compare(manifest: &Manifest, found: &[FileContent]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let found_files: BTreeMap<&str, &FileContent> =
        found.iter().map(|found| (found.file.name.as_str(), found)).collect();
    for expected in &manifest.files {
        match found_files.get(expected.name.as_str()) {
            None => problems.push(Problem::file(&expected.name, "is missing")),
            Some(found) if found.file.bytes != expected.bytes => {
                let what = format!("is {} bytes long, and was written with {}", found.file.bytes, expected.bytes);
                problems.push(Problem::file(&expected.name, what));
            }
            Some(found) if found.file.sha256 != expected.sha256 => {
                problems.push(Problem::file(&expected.name, "has another SHA-256 than was written"));
            }
            Some(_) => {}
        }
    }
    let mut found_tensors: BTreeMap<&str, (&str, &Entry, &str)> = BTreeMap::new();
    for file in found {
        for (entry, sha256) in &file.tensors {
            found_tensors.insert(&entry.name, (&file.file.name, entry, sha256));
        }
    }
    for expected in &manifest.tensors {
        let Some((file, entry, sha256)) = found_tensors.remove(expected.name.as_str()) else {
            problems.push(Problem::tensor(&expected.file, &expected.name, "is missing"));
            continue;
        };
        let same = file == expected.file && entry.dtype.name() == expected.dtype && entry.shape == expected.shape;
        if !same {
            let what = format!("is {} {:?}, not {} {:?}", entry.dtype, entry.shape, expected.dtype, expected.shape);
            problems.push(Problem::tensor(file, &expected.name, what));
        } else if sha256 != expected.sha256 {
            problems.push(Problem::tensor(file, &expected.name, "has another SHA-256 than was written"));
        }
    }
    problems.extend(
        found_tensors.into_iter().map(|(name, (file, ..))| Problem::tensor(file, name, "is not in the manifest")),
    );
    problems
}

/// A quantized tensor of an output: its parts, and the matrices of the source if those are at hand.
pub struct Stored<'a> {
    /// The parts, in the format's order.
    pub parts: Vec<&'a Tensor>,
    /// Its scheme.
    pub scheme: Affine,
    /// All its rows.
    pub matrix: Matrix,
    /// What they were made of, one after the other; empty without a source.
    pub views: Vec<View>,
}

/// Some bands of one of the matrices of a tensor, whose first row is that row of the tensor.
struct Piece {
    stored: usize,
    view: usize,
    matrix: Matrix,
    first: u64,
    bands: Range<u64>,
}

/// What decoding a matrix showed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Decoded {
    /// Scales, biases and weights that are not finite numbers.
    pub not_finite: u64,
    /// `Σ (ŵ − w)²` against the source, 0 without one.
    pub squared_error: f64,
}

/// Decodes `stored` tensors of the checkpoint `output`, beside the source's if `pass` reads one; for each, what each of its
/// matrices showed.
///
/// # Errors
/// Those of reading.
pub fn decode(
    pass: Pass<'_>,
    output: &Checkpoint,
    format: &dyn Format,
    stored: &[Stored<'_>],
) -> Result<Vec<Vec<Decoded>>> {
    let mut pieces: Vec<Piece> = Vec::new();
    for (at, stored) in stored.iter().enumerate() {
        let mut first = 0;
        for view in 0..stored.views.len().max(1) {
            let rows = stored.views.get(view).map_or(stored.matrix.rows, |view| view.rows);
            let matrix = Matrix { rows, ..stored.matrix };
            let step = chunk_bands(matrix, pass.chunk_bytes);
            pieces.extend(cut(bands(matrix), step).map(|bands| Piece { stored: at, view, matrix, first, bands }));
            first += rows;
        }
    }
    let mut decoded: Vec<Vec<Decoded>> =
        stored.iter().map(|stored| vec![Decoded::default(); stored.views.len().max(1)]).collect();
    pass.workers.in_order(
        pass.progress,
        &pieces,
        || (Reader::default(), Reader::default(), Encoded::default()),
        |(of_output, of_source, encoded), piece| {
            let found = decode_piece(pass, output, format, stored, piece, (of_output, of_source, encoded))?;
            let rows = rows_of(piece.matrix, &piece.bands);
            pass.progress.advance(piece.matrix.row_bytes() * (rows.end - rows.start));
            Ok(found)
        },
        |piece, bands| {
            let sum = &mut decoded[piece.stored][piece.view];
            for band in bands {
                sum.not_finite += band.not_finite;
                sum.squared_error += band.squared_error;
            }
            Ok(())
        },
    )?;
    Ok(decoded)
}

/// What each band of a piece shows.
fn decode_piece(
    pass: Pass<'_>,
    output: &Checkpoint,
    format: &dyn Format,
    stored: &[Stored<'_>],
    piece: &Piece,
    (of_output, of_source, encoded): (&mut Reader, &mut Reader, &mut Encoded),
) -> Result<Vec<Decoded>> {
    let Stored { parts, scheme, matrix, views } = &stored[piece.stored];
    let encoder = Encoder { isa: pass.isa, effort: crate::codec::encoder::Effort::Fast };
    let ones = vec![1.0; matrix.cols as usize];
    let mut found = Vec::new();
    for band in piece.bands.clone() {
        let rows = rows_of(piece.matrix, &(band..band + 1));
        let mut data = Vec::with_capacity(parts.len());
        for part in parts {
            let row_bytes = part.bytes / matrix.rows;
            let [from, to] = [rows.start, rows.end].map(|row| (piece.first + row) * row_bytes);
            data.push(of_output.bytes(output, part, from..to)?.to_vec());
        }
        let count = (rows.end - rows.start) as usize;
        format.extract(*scheme, matrix.float, &data.iter().map(Vec::as_slice).collect::<Vec<_>>(), count, encoded);
        let unsound = |max_code: f32| {
            let of_band = encoded.scales.iter().zip(&encoded.biases);
            of_band.filter(|(scale, bias)| !(*scale * max_code + *bias).is_finite() || !bias.is_finite()).count()
        };
        let mut decoded = Decoded { not_finite: unsound(f32::from(scheme.max_code())) as u64, squared_error: 0.0 };
        if let Some(view) = views.get(piece.view) {
            of_source.bands((pass.checkpoint, pass.isa), *view, &(band..band + 1), |_, band, _| {
                let errors = encoder.error(*scheme, band, &ones, encoded);
                decoded.squared_error += errors.iter().take(count).map(|RowError { plain, .. }| plain).sum::<f64>();
                Ok(())
            })?;
        }
        found.push(decoded);
    }
    Ok(found)
}
