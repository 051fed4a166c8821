//! Codecs: ways of storing rows of a matrix in fewer bits, one file or folder each.
//!
//! A [`Scheme`] is a codec with its parameters. A codec owns bytes: which rows it fits, what is stored for a matrix
//! ([`Codec::parts`]), how rows become those bytes ([`Encode`]), and what the bytes decode to. Nothing above this module
//! looks inside: which schemes a tensor may have is asked of the format, everything else of the scheme.
//!
//! A codec is a file here and one line of [`CODECS`].

pub(crate) mod affine;
pub(crate) mod error;
mod passthrough;
mod scheme;

use std::any::Any;
use std::fmt;
use std::str::FromStr;

pub(crate) use affine::Channels;
pub(crate) use error::{RowError, errors_of};
pub(crate) use scheme::Bits;
pub use scheme::Scheme;

use crate::band::Matrix;
use crate::dtype::{Dtype, Float};
use crate::simd::Isa;
use crate::simd::vector::{BAND_ROWS, Column};

/// The codecs there are. A scheme holds its codec's position; documents hold spelled schemes, so positions may change.
pub(crate) const CODECS: &[&dyn Codec] = &[
    &affine::AffineCodec,
    &passthrough::Int4,
    &passthrough::Mxfp4,
    #[cfg(test)]
    &crate::tests::toy::codec::ToyCodec,
];

/// A way of storing rows. Stateless; all that is hot is compiled inside, behind one virtual call for each band.
pub trait Codec: Sync {
    /// Schemes to choose from, by growing bytes; none if rows can only be passed through.
    fn schemes(&self) -> &'static [Scheme];

    /// The scheme, spelled.
    fn spell(&self, scheme: Scheme) -> String;

    /// What [`spell`](Self::spell) wrote.
    fn parse(&self, text: &str) -> Option<Scheme>;

    /// Weights of a row of `cols` that are encoded together.
    fn block(&self, scheme: Scheme, cols: u64) -> u64;

    /// Into what rows must divide, for messages: `groups of 32, 64 or 128`.
    fn blocks(&self) -> &'static str;

    /// Whether rows of `cols` weights can be stored so.
    fn fits(&self, scheme: Scheme, cols: u64) -> bool {
        cols > 0 && cols.is_multiple_of(self.block(scheme, cols))
    }

    /// Bits of a code alone, without scales and the like.
    fn code_bits(&self, scheme: Scheme) -> Bits;

    /// What is stored for `matrix`, in the order in which it is written.
    fn parts(&self, scheme: Scheme, matrix: Matrix) -> Vec<PartSpec>;

    /// The last dimension and the element type of the matrix whose parts have these element types and last dimensions;
    /// `None` if one that tells is missing. The inverse of [`parts`](Self::parts).
    fn row_of(&self, scheme: Scheme, part: &dyn Fn(&str) -> Option<(Dtype, u64)>) -> Option<(u64, Float)>;

    /// Data of a part of `matrix` that does not grow with rows ([`Extent::Fixed`]).
    fn fixed(&self, scheme: Scheme, matrix: Matrix, part: &str) -> Vec<u8> {
        unreachable!("{scheme} has no fixed part `{part}` for {matrix:?}")
    }

    /// Decodes as many rows as `out` has room for from the data of all parts, row after row. Fixed parts are given whole.
    fn decode(&self, scheme: Scheme, of: Rows, parts: &[&[u8]], out: &mut [f32]);

    /// The encoder, unless rows can only be passed through.
    fn encoder(&self) -> Option<&dyn Encode> {
        None
    }

    /// Appends rows that a release stores in this form to the parts' data.
    fn pass_through(&self, scheme: Scheme, float: Float, _rows: PassedRows<'_>, _parts: &mut [Vec<u8>]) {
        unreachable!("no release stores {scheme} with scales of {float:?}")
    }
}

/// The encoder of a codec: the code that measures is the code that writes.
pub trait Encode: Sync {
    /// Encodes `band`, appends its rows to the parts' data, and gives the error of each row as stored. Fixed parts are
    /// left alone.
    ///
    /// # Panics
    /// If the scheme does not fit the band, or `metric` is of another number of columns.
    fn encode(
        &self,
        scheme: Scheme,
        context: &mut Context<'_>,
        band: Band<'_>,
        metric: &Metric<'_>,
        parts: &mut [Vec<u8>],
    ) -> [RowError; BAND_ROWS];

    /// The errors that [`encode`](Self::encode) would leave, for several schemes of this codec at once.
    ///
    /// # Panics
    /// As [`encode`](Self::encode), or if a scheme is listed twice.
    fn errors(
        &self,
        schemes: &[Scheme],
        context: &mut Context<'_>,
        band: Band<'_>,
        metric: &Metric<'_>,
    ) -> Vec<[RowError; BAND_ROWS]> {
        let matrix = Matrix { rows: band.rows as u64, cols: band.columns.len() as u64, float: context.float };
        let of = |&scheme: &Scheme| {
            let mut parts = vec![Vec::new(); scheme.parts(matrix).len()];
            self.encode(scheme, context, band, metric, &mut parts)
        };
        schemes.iter().map(of).collect()
    }
}

/// What is stored of a matrix under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartSpec {
    /// What it is to the codec: `codes`, `scales`, …; a format makes a name of it.
    pub kind: &'static str,
    /// Its element type.
    pub dtype: Dtype,
    /// How much of it there is.
    pub extent: Extent,
}

/// How much is stored of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// So many elements for each row.
    PerRow(u64),
    /// A tensor of this shape for the whole matrix, whatever its rows.
    Fixed(Vec<u64>),
}

impl PartSpec {
    /// Bytes of it for `rows` rows.
    #[must_use]
    pub fn bytes(&self, rows: u64) -> u64 {
        match &self.extent {
            Extent::PerRow(_) => rows * self.row_bytes(),
            Extent::Fixed(shape) => shape.iter().product::<u64>() * self.dtype.bits() / 8,
        }
    }

    /// Bytes of one row of it; 0 if it does not grow with rows.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        match self.extent {
            Extent::PerRow(width) => width * self.dtype.bits() / 8,
            Extent::Fixed(_) => 0,
        }
    }
}

/// How hard the encoder tries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// The format's own rule; for MLX affine the bytes of `mx.quantize` on a CPU.
    Fast,
    /// Scale and bias of each group are searched for the least weighted error; never worse than `fast` on it.
    #[default]
    Normal,
}

impl FromStr for Effort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fast" => Ok(Self::Fast),
            "normal" => Ok(Self::Normal),
            _ => Err("is neither `fast` nor `normal`".to_owned()),
        }
    }
}

impl fmt::Display for Effort {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Fast => "fast",
            Self::Normal => "normal",
        })
    }
}

/// Up to [`BAND_ROWS`] rows: as they are stored, and side by side. Rows beyond `rows` are zeros side by side.
#[derive(Clone, Copy, Debug)]
pub struct Band<'a> {
    /// How many rows.
    pub rows: usize,
    /// Their bytes, row after row, aligned to the element type.
    pub stored: &'a [u8],
    /// Their columns.
    pub columns: &'a [Column],
}

/// Rows of a stored matrix.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Weights in each.
    pub cols: usize,
    /// The type that scales are stored in.
    pub float: Float,
}

/// Whole rows as a release packs them.
#[derive(Clone, Copy, Debug)]
pub struct PassedRows<'a> {
    /// Their codes.
    pub codes: &'a [u8],
    /// Their scales.
    pub scales: &'a [u8],
}

/// How an error in a matrix is weighed.
pub enum Metric<'a> {
    /// `Σ_j k_j Δw_j²` for each row, with the importance `k` of the input channels.
    Diagonal(Channels<'a>),
}

impl<'a> Metric<'a> {
    /// The one that weighs the columns by `importance`, none of which is negative.
    #[must_use]
    pub fn diagonal(importance: &'a [f32]) -> Self {
        Self::Diagonal(Channels::new(importance))
    }

    /// The weight of each column.
    #[must_use]
    pub fn importance(&self) -> &'a [f32] {
        match self {
            Self::Diagonal(channels) => channels.k,
        }
    }
}

/// Buffers of one thread, kept from band to band. Each codec has its own.
#[derive(Default)]
pub struct Scratch(Vec<Box<dyn Any + Send>>);

impl Scratch {
    /// The one of type `T`, made when it is first asked for.
    pub fn of<T: Default + Send + 'static>(&mut self) -> &mut T {
        let at = self.0.iter().position(|held| held.is::<T>()).unwrap_or_else(|| {
            self.0.push(Box::new(T::default()));
            self.0.len() - 1
        });
        self.0[at].downcast_mut().expect("found by its type")
    }
}

/// What an encoder works with.
pub struct Context<'a> {
    /// The instruction set.
    pub isa: Isa,
    /// How hard to try.
    pub effort: Effort,
    /// The type of the weights, and of the scales.
    pub float: Float,
    /// The thread's buffers.
    pub scratch: &'a mut Scratch,
}

/// Encodes bands by any scheme.
#[derive(Clone, Copy, Debug)]
pub struct Encoder {
    /// The instruction set.
    pub isa: Isa,
    /// How hard to try.
    pub effort: Effort,
}

impl Encoder {
    /// As [`Encode::encode`], for a matrix of elements of type `float`.
    ///
    /// # Panics
    /// As [`Encode::encode`], or if `scheme` has no encoder.
    pub fn encode(
        self,
        scheme: Scheme,
        (float, scratch): (Float, &mut Scratch),
        band: Band<'_>,
        metric: &Metric<'_>,
        parts: &mut [Vec<u8>],
    ) -> [RowError; BAND_ROWS] {
        let Self { isa, effort } = self;
        let encoder = scheme.encoder().unwrap_or_else(|| panic!("{scheme} cannot be encoded"));
        encoder.encode(scheme, &mut Context { isa, effort, float, scratch }, band, metric, parts)
    }

    /// As [`Encode::errors`], for schemes of any codecs.
    ///
    /// # Panics
    /// As [`Encode::errors`], or if a scheme has no encoder.
    pub fn errors(
        self,
        schemes: &[Scheme],
        (float, scratch): (Float, &mut Scratch),
        band: Band<'_>,
        metric: &Metric<'_>,
    ) -> Vec<[RowError; BAND_ROWS]> {
        let Self { isa, effort } = self;
        let context = &mut Context { isa, effort, float, scratch };
        let mut errors = Vec::with_capacity(schemes.len());
        for of_codec in schemes.chunk_by(|a, b| a.same_codec(*b)) {
            let encoder = of_codec[0].encoder().unwrap_or_else(|| panic!("{} cannot be encoded", of_codec[0]));
            errors.extend(encoder.errors(of_codec, context, band, metric));
        }
        errors
    }
}
