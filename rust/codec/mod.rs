//! Codecs: ways of storing the rows of a matrix in fewer bits. Each is a file or folder.
//!
//! A [`Scheme`] is a codec with its parameters. A codec owns bytes: which row lengths it accepts, which parts it stores
//! for a matrix ([`Codec::parts`]), how it encodes rows ([`Encode`]), and how it decodes them. Modules above this one
//! treat schemes as opaque: the format decides which schemes a tensor may have, and the scheme answers everything else.
//!
//! To add a codec, add a file here and a line to [`CODECS`].

pub(crate) mod affine;
pub(crate) mod error;
pub(crate) mod feedback;
pub(crate) mod float;
mod ggml;
mod scheme;
pub(crate) mod symmetric;

use std::any::Any;
use std::fmt;
use std::str::FromStr;

pub(crate) use affine::Channels;
pub(crate) use error::{RowError, SUM_COLUMNS, errors_of};
pub(crate) use scheme::Bits;
pub use scheme::Scheme;

use crate::band::Matrix;
use crate::dtype::{Dtype, Float};
use crate::simd::Isa;
use crate::simd::vector::{BAND_ROWS, Column};

/// The registry. A scheme holds its codec's position, which may change: documents contain schemes as text.
pub(crate) const CODECS: &[&dyn Codec] = &[
    &affine::AffineCodec,
    &symmetric::SymmetricCodec,
    &float::mxfp4::Mxfp4,
    &float::nvfp4::Nvfp4,
    &float::fp8::Fp8,
    &ggml::q4_0::Q4_0,
    &ggml::q4_1::Q4_1,
    &ggml::q5_0::Q5_0,
    &ggml::q5_1::Q5_1,
    &ggml::q8_0::Q8_0,
    &ggml::iq4_nl::Iq4Nl,
    &ggml::q2_k::Q2K,
    &ggml::q3_k::Q3K,
    &ggml::q4_k::Q4K,
    &ggml::q5_k::Q5K,
    &ggml::q6_k::Q6K,
    &ggml::iq4_xs::Iq4Xs,
    &ggml::mxfp4::Mxfp4Block,
    &ggml::iq3_s::Iq3S,
    &ggml::iq3_xxs::Iq3Xxs,
    &ggml::iq2_s::Iq2S,
    &ggml::iq2_xs::Iq2Xs,
    &ggml::iq2_xxs::Iq2Xxs,
    &ggml::nvfp4::Nvfp4Block,
    #[cfg(test)]
    &crate::tests::toy::codec::ToyCodec,
];

/// A way of storing rows. Stateless. Each band costs one virtual call; all loops over weights are compiled inside.
pub trait Codec: Sync {
    /// The schemes that can be chosen, by increasing bytes; empty if rows can only be passed through.
    fn schemes(&self) -> &'static [Scheme];

    fn spell(&self, scheme: Scheme) -> String;

    /// Parses the text that [`spell`](Self::spell) returns.
    fn parse(&self, text: &str) -> Option<Scheme>;

    /// Number of weights, in a row of `cols`, that are encoded together, or at least measured together: their squared errors
    /// are summed in `f32`, and the sums in `f64`.
    fn block(&self, scheme: Scheme, cols: u64) -> u64;

    /// The row lengths that the codec accepts, for messages: `groups of 32, 64 or 128`.
    fn blocks(&self) -> &'static str;

    /// Whether rows of `cols` weights can be stored in `scheme`.
    fn fits(&self, scheme: Scheme, cols: u64) -> bool {
        cols > 0 && cols.is_multiple_of(self.block(scheme, cols))
    }

    /// Bits of a code, without scales and biases.
    fn code_bits(&self, scheme: Scheme) -> Bits;

    /// The stored parts of `matrix`, in the order in which they are written.
    fn parts(&self, scheme: Scheme, matrix: Matrix) -> Vec<PartSpec>;

    /// The number of columns and the element type of the matrix whose parts have these element types and last
    /// dimensions; `None` if a required part is missing. The inverse of [`parts`](Self::parts).
    fn row_of(&self, scheme: Scheme, part: &dyn Fn(&str) -> Option<(Dtype, u64)>) -> Option<(u64, Float)>;

    /// The data of a part of fixed size ([`Extent::Fixed`]).
    fn fixed(&self, scheme: Scheme, matrix: Matrix, part: &str) -> Vec<u8> {
        unreachable!("{scheme} has no fixed part `{part}` for {matrix:?}")
    }

    /// Decodes rows until `out` is full, in row order. Fixed parts are given whole.
    fn decode(&self, scheme: Scheme, of: Rows, parts: &[&[u8]], out: &mut [f32]);

    /// The encoder; `None` if rows can only be passed through.
    fn encoder(&self) -> Option<&dyn Encode> {
        None
    }

    /// The encoder with error feedback; `None` if codes cannot make up for the errors of others.
    fn feedback(&self) -> Option<&dyn feedback::Feedback> {
        None
    }

    /// Appends rows of a release in this form to the parts' data.
    fn pass_through(&self, scheme: Scheme, float: Float, _rows: PassedRows<'_>, _parts: &mut [Vec<u8>]) {
        unreachable!("no release stores {scheme} with scales of {float:?}")
    }
}

/// The encoder of a codec. The same code measures and writes.
pub trait Encode: Sync {
    /// Encodes `band`, appends its rows to the parts' data, and returns the error of each row as stored. Leaves fixed
    /// parts unchanged.
    ///
    /// # Panics
    /// If the scheme does not fit the band, or `metric` has another number of columns.
    fn encode(
        &self,
        scheme: Scheme,
        context: &mut Context<'_>,
        band: Band<'_>,
        metric: &Metric<'_>,
        parts: &mut [Vec<u8>],
    ) -> [RowError; BAND_ROWS];

    /// The errors that [`encode`](Self::encode) would return, for several schemes of this codec.
    ///
    /// # Panics
    /// As [`encode`](Self::encode), or if a scheme occurs twice.
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

/// A stored part of a matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartSpec {
    /// The codec's name for the part, such as `codes` or `scales`; the format turns it into a tensor name.
    pub kind: &'static str,
    /// Element type.
    pub dtype: Dtype,
    /// Number of elements.
    pub extent: Extent,
}

/// The size of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// This many elements per row.
    PerRow(u64),
    /// A tensor of this shape for the whole matrix, independent of the number of rows.
    Fixed(Vec<u64>),
}

impl PartSpec {
    /// Bytes of the part for `rows` rows.
    #[must_use]
    pub fn bytes(&self, rows: u64) -> u64 {
        match &self.extent {
            Extent::PerRow(_) => rows * self.row_bytes(),
            Extent::Fixed(shape) => self.bytes_of(shape.iter().product()),
        }
    }

    /// Bytes of one row; 0 for a part of fixed size.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        match self.extent {
            Extent::PerRow(width) => self.bytes_of(width),
            Extent::Fixed(_) => 0,
        }
    }

    fn bytes_of(&self, elements: u64) -> u64 {
        self.dtype.bytes(elements).unwrap_or_else(|| panic!("{elements} elements fill blocks of {}", self.dtype))
    }
}

/// Effort of the encoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// The format's own rule; for MLX affine the bytes of `mx.quantize` on a CPU.
    Fast,
    /// Searches the scale and bias of each group for the least weighted error, which never exceeds that of `fast`.
    #[default]
    Normal,
    /// The search of `normal`, and error feedback under the covariance of the layer's inputs where the model can be run.
    High,
}

impl FromStr for Effort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fast" => Ok(Self::Fast),
            "normal" => Ok(Self::Normal),
            "high" => Ok(Self::High),
            _ => Err("is none of `fast`, `normal`, `high`".to_owned()),
        }
    }
}

impl fmt::Display for Effort {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Fast => "fast",
            Self::Normal => "normal",
            Self::High => "high",
        })
    }
}

/// Up to [`BAND_ROWS`] rows, as stored and transposed. Missing rows are zeros in the transposed form.
#[derive(Clone, Copy, Debug)]
pub struct Band<'a> {
    /// Number of rows, at most [`BAND_ROWS`].
    pub rows: usize,
    /// The stored bytes of the rows, in row order, aligned to the element type.
    pub stored: &'a [u8],
    /// The columns: element `i` of a column is in row `i`.
    pub columns: &'a [Column],
}

/// Rows of a stored matrix.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Weights per row.
    pub cols: usize,
    /// Element type of the scales.
    pub float: Float,
}

/// Rows in the prequantized form of a release.
#[derive(Clone, Copy, Debug)]
pub struct PassedRows<'a> {
    /// Number of rows.
    pub rows: usize,
    pub codes: &'a [u8],
    /// The scales of the rows, or the one scale of all of them.
    pub scales: &'a [u8],
}

/// The weighting of errors in a matrix.
pub enum Metric<'a> {
    /// `Σ_j k_j Δw_j²` for each row, with the importance `k` of the input channels.
    Diagonal(Channels<'a>),
}

impl<'a> Metric<'a> {
    /// Weights columns by `importance`, which must not contain negative values.
    #[must_use]
    pub fn diagonal(importance: &'a [f32]) -> Self {
        Self::Diagonal(Channels::new(importance))
    }

    /// The importance of each column.
    #[must_use]
    pub fn importance(&self) -> &'a [f32] {
        match self {
            Self::Diagonal(channels) => channels.k,
        }
    }
}

/// Buffers of one thread, reused for all its bands. Each codec has its own type.
#[derive(Default)]
pub struct Scratch(Vec<Box<dyn Any + Send>>);

impl Scratch {
    /// The buffers of type `T`, created at the first call.
    ///
    /// # Panics
    /// Never: buffers are found by their type.
    pub fn of<T: Default + Send + 'static>(&mut self) -> &mut T {
        let at = self.0.iter().position(|held| held.is::<T>()).unwrap_or_else(|| {
            self.0.push(Box::new(T::default()));
            self.0.len() - 1
        });
        self.0[at].downcast_mut().expect("found by its type")
    }
}

/// The environment of an encoder.
pub struct Context<'a> {
    pub isa: Isa,
    pub effort: Effort,
    /// Element type of the weights and of the scales.
    pub float: Float,
    pub scratch: &'a mut Scratch,
}

/// Encodes bands in schemes of any codec.
#[derive(Clone, Copy, Debug)]
pub struct Encoder {
    /// Instruction set.
    pub isa: Isa,
    /// Effort of the search.
    pub effort: Effort,
}

impl Encoder {
    /// As [`Encode::encode`], for a matrix with elements of type `float`.
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
