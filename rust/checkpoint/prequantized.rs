//! Prequantized weights: recognises codes with their scales, and decodes them.
//!
//! A checkpoint may store its weights in 8 or 4 bits, in one of the forms below. The parts of one weight are matched by
//! name and element type; they may lie in different shards. The rest of ramrs sees one tensor of the decoded type, as if
//! the release had stored that. Products are computed in `f32` and rounded once.
//!
//! | form | codes | scales | decoded type and value |
//! |---|---|---|---|
//! | FP8 | `P` E4M3 or E5M2 `[…, rows, cols]` | `P_scale_inv` or `P_scale`: one, one per row, or one per block; float or E8M0 | BF16: code · scale |
//! | MXFP4 | `P_blocks` U8 `[…, cols/32, 16]`, the low half first | `P_scales` U8 (E8M0) `[…, cols/32]` | BF16: code · scale, exactly |
//! | INT4 | `P.weight_packed` I32 `[rows, cols/8]`, the lowest bits first | `P.weight_scale` `[rows, cols/group]` | the scale's type: (code − 8) · scale |

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::{Map, Value};

use super::encoded::EncodedTensor;
use super::{Config, Part, Tensor};
use crate::dtype::{Dtype, Float, Float8, e2m1_values, e8m0};

/// Elements per MXFP4 block.
const BLOCK: u64 = 32;

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Not encoded: the part's bytes are the elements.
    Plain,
    /// 8-bit floats, with one scale per block of rows and columns.
    Fp8 {
        /// Type of the codes.
        codes: Float8,
        /// The part that holds the scales.
        scales: usize,
        /// Elements that share a scale.
        blocks: Blocks,
    },
    /// E2M1 codes with E8M0 scales, in blocks of 32 along the rows.
    Mxfp4 {
        /// The part that holds the scales.
        scales: usize,
    },
    /// 4-bit integers from −8 to 7, in groups along the rows.
    Int4 {
        /// The part that holds the scales.
        scales: usize,
        /// Elements that share a scale.
        group_size: u64,
        /// The part that declares the shape of the weight, if there is one.
        shape: Option<usize>,
    },
    /// In a scheme of a codec, as outputs are.
    Encoded(EncodedTensor),
}

/// Which elements of a stack of matrices share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Rows of one matrix of the stack.
    pub matrix_rows: u64,
    /// Rows of one matrix that share a scale.
    pub rows: u64,
    /// Columns that share a scale.
    pub cols: u64,
}

/// How a part of a checkpoint is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartUse {
    /// It holds the elements of this tensor.
    Elements(usize),
    /// It holds the scales or the shape of this tensor, and is read together with it.
    Companion(usize),
    /// The weights do not need it, for this reason.
    Unused(&'static str),
}

/// Parts grouped into tensors.
#[derive(Debug, Default)]
pub(crate) struct Paired {
    /// The tensors, in the order of the parts that hold their elements.
    pub tensors: Vec<Tensor>,
    /// The use of each part.
    pub uses: Vec<PartUse>,
    /// Parts that do not fit together, and why. They become plain tensors.
    pub faults: Vec<(usize, String)>,
}

impl Paired {
    /// Every part as a tensor of its own.
    pub(crate) fn as_stored(parts: &[Part]) -> Self {
        let tensors = parts.iter().enumerate().map(|(at, part)| plain(at, part)).collect();
        Self { tensors, uses: (0..parts.len()).map(PartUse::Elements).collect(), faults: Vec::new() }
    }
}

/// Suffixes of the names of scales that weights do not need, and what such a scale is.
const UNUSED_SUFFIXES: [(&str, &str); 11] = [
    (".input_scale", ACTIVATION),
    (".input_scale_ub", ACTIVATION),
    (".input_global_scale", ACTIVATION),
    (".input_zero_point", ACTIVATION),
    (".activation_scale", ACTIVATION),
    (".output_scale", ACTIVATION),
    (".q_scale", ACTIVATION),
    (".prob_scale", ACTIVATION),
    (".k_scale", CACHE),
    (".v_scale", CACHE),
    (".kv_scale", CACHE),
];
const ACTIVATION: &str = "the scale of an activation";
const CACHE: &str = "the scale of a cache";

/// Groups `parts` into tensors.
#[must_use]
pub(crate) fn pair(parts: &[Part], config: Option<&Config>) -> Paired {
    let by_name: BTreeMap<&str, usize> = parts.iter().enumerate().map(|(at, part)| (part.name.as_str(), at)).collect();
    let pairing = Pairing { parts, by_name, block_size: block_size(config) };
    let mut paired = Paired { uses: vec![PartUse::Unused(""); parts.len()], ..Paired::default() };
    let mut companions: BTreeMap<usize, usize> = BTreeMap::new();
    let mut found: Vec<(usize, Tensor)> = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        match pairing.tensor(at) {
            Ok((tensor, with)) => {
                companions.extend(with.into_iter().map(|other| (other, at)));
                found.push((at, tensor));
            }
            Err(reason) => {
                paired.faults.push((at, reason));
                found.push((at, plain(at, part)));
            }
        }
    }
    let mut number: BTreeMap<usize, usize> = BTreeMap::new();
    for (at, tensor) in found {
        let unused = UNUSED_SUFFIXES.iter().find(|(end, _)| tensor.name.ends_with(end)).map(|(_, why)| *why);
        if let Some(why) = unused {
            paired.uses[at] = PartUse::Unused(why);
        } else if !companions.contains_key(&at) {
            paired.uses[at] = PartUse::Elements(paired.tensors.len());
            number.insert(at, paired.tensors.len());
            paired.tensors.push(tensor);
        }
    }
    for (other, at) in companions {
        if let Some(&tensor) = number.get(&at) {
            paired.uses[other] = PartUse::Companion(tensor);
        }
    }
    let mut orphans = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let PartUse::Elements(tensor) = paired.uses[at] else { continue };
        if paired.tensors[tensor].packing != Packing::Plain || paired.faults.iter().any(|(other, _)| *other == at) {
            continue;
        }
        orphans.extend(orphan(part).map(|reason| (at, reason.to_owned())));
    }
    paired.faults.extend(orphans);
    paired.with_blocks(parts)
}

/// Whether `name` ends in one of `ends`.
fn has_end(name: &str, ends: &[&str]) -> bool {
    ends.iter().any(|end| name.ends_with(end))
}

/// Returns what an unmatched part lacks, if it holds codes without scales, or scales without codes.
fn orphan(part: &Part) -> Option<&'static str> {
    let is_block_scale = part.dtype == Dtype::U8 && part.name.ends_with("_scales");
    if part.name.ends_with(".weight_packed") {
        Some("codes of this type are not read")
    } else if has_end(&part.name, &["_scale_inv", ".weight_scale"]) || is_block_scale {
        Some("the weight of these scales is not there, or not stored as codes")
    } else {
        None
    }
}

/// Makes a tensor of a part that is not encoded.
fn plain(at: usize, part: &Part) -> Tensor {
    Tensor {
        name: part.name.clone(),
        dtype: part.dtype,
        shape: part.shape.clone(),
        part: at,
        bytes: part.bytes,
        packing: Packing::Plain,
        unneeded: None,
    }
}

/// Rows and columns of an FP8 block: `weight_block_size` of the configuration, or `block_structure` of its groups.
fn block_size(config: Option<&Config>) -> Option<(u64, u64)> {
    let block = config?.get("quantization_config")?;
    let groups = block.get("config_groups").and_then(Value::as_object).into_iter().flat_map(Map::values);
    let mut of_groups = groups.filter_map(|group| group.get("weights")?.get("block_structure")?.as_array());
    let size = block.get("weight_block_size").and_then(Value::as_array).or(of_groups.next())?;
    match size.as_slice() {
        [rows, cols] => Some((rows.as_u64().filter(|rows| *rows > 0)?, cols.as_u64().filter(|cols| *cols > 0)?)),
        _ => None,
    }
}

struct Pairing<'a> {
    parts: &'a [Part],
    by_name: BTreeMap<&'a str, usize>,
    block_size: Option<(u64, u64)>,
}

/// A tensor and its companion parts, or why a part does not fit with them.
type Recognised = Result<(Tensor, Vec<usize>), String>;

impl Pairing<'_> {
    /// Recognises the tensor whose elements part `at` holds. The part may still be the companion of another tensor.
    fn tensor(&self, at: usize) -> Recognised {
        let part = &self.parts[at];
        if let Some(base) = part.name.strip_suffix("_blocks").filter(|_| part.dtype == Dtype::U8) {
            return self.mxfp4(at, base);
        }
        if let Some(base) = part.name.strip_suffix("_packed").filter(|_| part.dtype == Dtype::I32) {
            return self.int4(at, base);
        }
        if let Some(codes) = Float8::of(part.dtype).filter(|_| !part.name.ends_with("_scale")) {
            return self.fp8(at, codes);
        }
        Ok((plain(at, part), Vec::new()))
    }

    fn named(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Makes a tensor of part `at` that decodes to elements of type `float` in this shape.
    fn packed(&self, at: usize, float: Float, shape: Vec<u64>, packing: Packing) -> Result<Tensor, String> {
        let elements = shape.iter().try_fold(1_u64, |product, &length| product.checked_mul(length));
        let bytes = elements.and_then(|elements| float.dtype().bytes(elements)).ok_or("it is too large")?;
        Ok(Tensor { dtype: float.dtype(), shape, bytes, packing, ..plain(at, &self.parts[at]) })
    }

    fn fp8(&self, at: usize, codes: Float8) -> Recognised {
        let part = &self.parts[at];
        let names = ["_scale_inv", "_scale"].map(|end| format!("{}{end}", part.name));
        let scales = names.iter().find_map(|name| self.named(name));
        let scales =
            scales.ok_or_else(|| format!("its scales are not there: neither `{}` nor `{}`", names[0], names[1]))?;
        let blocks = self.blocks(part, &self.parts[scales])?;
        let tensor = self.packed(at, Float::BF16, part.shape.clone(), Packing::Fp8 { codes, scales, blocks })?;
        Ok((tensor, vec![scales]))
    }

    /// Derives from the two shapes which elements of `codes` share one of `scales`.
    fn blocks(&self, codes: &Part, scales: &Part) -> Result<Blocks, String> {
        let is_scale = Float::of(scales.dtype).is_some() || matches!(scales.dtype, Dtype::F8_E8M0 | Dtype::U8);
        if !is_scale {
            return Err(format!("its scales, `{}`, are {}", scales.name, scales.dtype));
        }
        let (cols, above) = codes.shape.split_last().map_or((1, &[][..]), |(cols, above)| (*cols, above));
        let (rows, stack) = above.split_last().map_or((1, &[][..]), |(rows, stack)| (*rows, stack));
        let count: u64 = stack.iter().product();
        let all = scales.shape.iter().product::<u64>();
        let blocks = |rows, cols, matrix_rows| Ok(Blocks { matrix_rows, rows, cols });
        let (rows, cols) = (rows.max(1), cols.max(1));
        let fits = |block: (u64, u64)| {
            let expected: Vec<u64> =
                stack.iter().copied().chain([rows.div_ceil(block.0), cols.div_ceil(block.1)]).collect();
            scales.shape == expected
        };
        let misfit = |possible: &str| {
            Err(format!(
                "its scales, `{}`, are {:?}: that is not {possible} of {:?}",
                scales.name, scales.shape, codes.shape
            ))
        };
        // If the configuration states a block, scales of another shape are damaged.
        if let Some(block) = self.block_size {
            let stated = format!("one for each block of {} × {}", block.0, block.1);
            if !fits(block) {
                return misfit(&stated);
            }
            if all > 1 {
                return blocks(block.0, block.1, rows);
            }
        }
        if all == 1 {
            return blocks(rows * count, cols, rows * count);
        }
        let each_row = scales.shape.strip_suffix(&[1]).unwrap_or(&scales.shape);
        if each_row == above || scales.shape == above {
            return blocks(1, cols, rows);
        }
        if all == count && count > 1 {
            return blocks(rows, cols, rows);
        }
        match [128, 64, 32, 16].into_iter().find(|size| fits((*size, *size))) {
            Some(size) => blocks(size, size, rows),
            None => misfit("one for all, one for each row, or one for each block"),
        }
    }

    fn mxfp4(&self, at: usize, base: &str) -> Recognised {
        let part = &self.parts[at];
        let name = format!("{base}_scales");
        let scales = self.named(&name).ok_or_else(|| format!("its scales, `{name}`, are not there"))?;
        let fits = self.parts[scales].dtype == Dtype::U8
            && part.shape.last() == Some(&(BLOCK / 2))
            && part.shape.len() > 1
            && part.shape[..part.shape.len() - 1] == self.parts[scales].shape;
        if !fits {
            let Part { dtype, shape, .. } = &self.parts[scales];
            return Err(format!("it is {:?} and its scales, `{name}`, are {dtype} {shape:?}", part.shape));
        }
        let mut shape = self.parts[scales].shape.clone();
        if let Some(cols) = shape.last_mut() {
            *cols = cols.checked_mul(BLOCK).ok_or("it is too large")?;
        }
        Ok((self.packed(at, Float::BF16, shape, Packing::Mxfp4 { scales })?, vec![scales]))
    }

    fn int4(&self, at: usize, base: &str) -> Recognised {
        let part = &self.parts[at];
        let name = format!("{base}_scale");
        let scales = self.named(&name).ok_or_else(|| format!("its scales, `{name}`, are not there"))?;
        if let Some(points) = self.named(&format!("{base}_zero_point")) {
            return Err(format!("it has zero points, `{}`: only symmetric codes are read", self.parts[points].name));
        }
        let Part { dtype, shape, .. } = &self.parts[scales];
        let (&[rows, words], &[scale_rows, groups]) = (part.shape.as_slice(), shape.as_slice()) else {
            return Err(format!("it is {:?} and its scales, `{name}`, are {shape:?}", part.shape));
        };
        let cols = words.saturating_mul(8);
        let group_size = cols.checked_div(groups).unwrap_or(0);
        let float = Float::of(*dtype);
        let (Some(float), true) = (float, rows == scale_rows && [32, 64, 128].contains(&group_size)) else {
            return Err(format!("it is {:?} and its scales, `{name}`, are {dtype} {shape:?}", part.shape));
        };
        if group_size * groups != cols {
            return Err(format!("its rows of {cols} do not divide into {groups} groups"));
        }
        let float = if float == Float::F32 { Float::BF16 } else { float };
        let shape = self.named(&format!("{base}_shape"));
        if let Some(Part { name, dtype, .. }) = shape.map(|part| &self.parts[part])
            && !matches!(dtype, Dtype::I32 | Dtype::I64)
        {
            return Err(format!("its shape, `{name}`, is {dtype}"));
        }
        let tensor = self.packed(at, float, vec![rows, cols], Packing::Int4 { scales, group_size, shape })?;
        Ok((tensor, [scales].into_iter().chain(shape).collect()))
    }
}

/// Elements that are decoded together, and the codes and scales to read for them.
#[derive(Debug)]
pub struct DecodeRange {
    /// Elements, extended to whole units of codes.
    pub elements: Range<u64>,
    /// Bytes within the data of the codes.
    pub codes: Range<u64>,
    /// Indices of scales, not bytes.
    pub scales: Range<u64>,
}

impl Packing {
    /// The part that holds the scales.
    #[must_use]
    pub fn scales(self) -> Option<usize> {
        match self {
            Self::Plain | Self::Encoded(_) => None,
            Self::Fp8 { scales, .. } | Self::Mxfp4 { scales } | Self::Int4 { scales, .. } => Some(scales),
        }
    }

    /// The name of the form in documents; `None` for plain tensors.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Fp8 { codes: Float8::E4M3, .. } => Some("fp8-e4m3"),
            Self::Fp8 { codes: Float8::E5M2, .. } => Some("fp8-e5m2"),
            Self::Mxfp4 { .. } => Some("mxfp4"),
            Self::Int4 { .. } => Some("int4"),
            Self::Encoded(_) => Some("codes"),
        }
    }

    /// Returns what must be read to decode `elements` of a tensor with `cols` columns.
    #[must_use]
    pub fn decode_range(self, cols: u64, elements: &Range<u64>) -> DecodeRange {
        let whole = |unit: u64| elements.start / unit * unit..elements.end.div_ceil(unit) * unit;
        match self {
            Self::Plain | Self::Encoded(_) => {
                DecodeRange { elements: elements.clone(), codes: elements.clone(), scales: 0..0 }
            }
            Self::Fp8 { blocks, .. } => {
                let across = cols.div_ceil(blocks.cols);
                let first = blocks.scale_row(elements.start / cols);
                let last = blocks.scale_row(elements.end.saturating_sub(1).max(elements.start) / cols);
                let scales = first * across..(last + 1) * across;
                DecodeRange { elements: elements.clone(), codes: elements.clone(), scales }
            }
            Self::Mxfp4 { .. } => {
                let elements = whole(BLOCK);
                let scales = elements.start / BLOCK..elements.end / BLOCK;
                DecodeRange { codes: elements.start / 2..elements.end / 2, scales, elements }
            }
            Self::Int4 { group_size, .. } => {
                let elements = whole(8);
                let scales = elements.start / group_size..elements.end.div_ceil(group_size);
                DecodeRange { codes: elements.start / 2..elements.end / 2, scales, elements }
            }
        }
    }

    /// Decodes `range` of a tensor with `cols` columns into elements of type `float`, 2 bytes each.
    ///
    /// # Panics
    /// If `codes`, `scales` or `out` are not as long as `range` demands.
    pub fn decode(self, float: Float, cols: u64, range: &DecodeRange, codes: &[u8], scales: &[f32], out: &mut [u8]) {
        let out: &mut [u16] = bytemuck::cast_slice_mut(out);
        match self {
            Self::Plain | Self::Encoded(_) => unreachable!("no codes and scales of a release"),
            Self::Fp8 { codes: float8, blocks, .. } => {
                let values = float8.values();
                let across = cols.div_ceil(blocks.cols);
                let mut done = 0;
                while done < out.len() {
                    let at = range.elements.start + done as u64;
                    let (row, column) = (at / cols, at % cols);
                    let block = column / blocks.cols;
                    let span = span(done, ((block + 1) * blocks.cols).min(cols) - column, out.len());
                    let scale = scales[(blocks.scale_row(row) * across + block - range.scales.start) as usize];
                    done = span.end;
                    decode_scaled(float, scale, &codes[span.clone()], &mut out[span], |code| {
                        [values[usize::from(code)]]
                    });
                }
            }
            Self::Mxfp4 { .. } => decode_nibbles(float, (&e2m1_values(), BLOCK), range, codes, scales, out),
            Self::Int4 { group_size, .. } => {
                let values = std::array::from_fn(|code| code as f32 - 8.0);
                decode_nibbles(float, (&values, group_size), range, codes, scales, out);
            }
        }
    }
}

/// Returns `length` elements from `from` on, cut off at `end`.
fn span(from: usize, length: u64, end: usize) -> Range<usize> {
    from..usize::try_from(length).map_or(end, |length| end.min(from.saturating_add(length)))
}

/// Decodes codes of 4 bits, two per byte, low nibble first. `group_size` elements share a scale.
fn decode_nibbles(
    float: Float,
    (values, group_size): (&[f32; 16], u64),
    range: &DecodeRange,
    codes: &[u8],
    scales: &[f32],
    out: &mut [u16],
) {
    let pairs: [[f32; 2]; 256] = std::array::from_fn(|both| [values[both & 15], values[both >> 4]]);
    let mut done = 0;
    while done < out.len() {
        let at = range.elements.start + done as u64;
        let span = span(done, group_size - at % group_size, out.len());
        let scale = scales[(at / group_size - range.scales.start) as usize];
        done = span.end;
        decode_scaled(float, scale, &codes[span.start / 2..span.end / 2], &mut out[span], |both| {
            pairs[usize::from(both)]
        });
    }
}

/// Decodes each byte of `codes` to `N` values, multiplies them by `scale`, and rounds them to `float`. It works on batches,
/// so that the compiler vectorises multiplication and rounding.
fn decode_scaled<const N: usize>(
    float: Float,
    scale: f32,
    codes: &[u8],
    out: &mut [u16],
    values: impl Fn(u8) -> [f32; N],
) {
    const BATCH_ELEMENTS: usize = 128;
    let mut wide = [0.0; BATCH_ELEMENTS];
    for (codes, out) in codes.chunks(BATCH_ELEMENTS / N).zip(out.chunks_mut(BATCH_ELEMENTS)) {
        let wide = &mut wide[..out.len()];
        for (wide, &code) in wide.as_chunks_mut::<N>().0.iter_mut().zip(codes) {
            *wide = values(code);
        }
        for value in wide.iter_mut() {
            *value *= scale;
        }
        float.round_to_bits(wide, out);
    }
}

impl Blocks {
    /// Returns the row of scales for row `row` of the stack.
    fn scale_row(self, row: u64) -> u64 {
        let per_matrix = self.matrix_rows.div_ceil(self.rows);
        row / self.matrix_rows * per_matrix + row % self.matrix_rows / self.rows
    }
}

/// Widens scales of type `dtype`, a float type or E8M0, to `f32`.
///
/// # Panics
/// If `dtype` is a float type and the lengths do not fit.
pub(crate) fn widen_scales(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match Float::of(dtype) {
        Some(float) => float.widen(bytes, out),
        None => out.iter_mut().zip(bytes).for_each(|(scale, &code)| *scale = e8m0(code)),
    }
}
