//! Bytes of blocks: binary16 numbers, codes of four bits in halves, and single bits.

use half::f16;

/// Writes `of`, a binary16 number, to the first two bytes of `out`.
pub(super) fn put_f16(of: f32, out: &mut [u8]) {
    out[..2].copy_from_slice(&f16::from_f32(of).to_le_bytes());
}

/// The binary16 number of the first two bytes.
pub(super) fn f16_of(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// Writes the lower four bits of `codes`: byte `i` has code `i` in its lower half, and code `i + out.len()` in its upper half.
pub(super) fn put_halves(codes: &[u8], out: &mut [u8]) {
    let (lower, upper) = codes.split_at(out.len());
    for ((out, lower), upper) in out.iter_mut().zip(lower).zip(upper) {
        *out = lower & 15 | upper << 4;
    }
}

/// Reads what [`put_halves`] wrote.
pub(super) fn halves_of(bytes: &[u8], codes: &mut [u8]) {
    let (lower, upper) = codes.split_at_mut(bytes.len());
    for ((byte, lower), upper) in bytes.iter().zip(lower).zip(upper) {
        (*lower, *upper) = (byte & 15, byte >> 4);
    }
}

/// Bit 4 of each of 32 codes, the first in the lowest bit.
pub(super) fn fifth_bits(codes: &[u8; 32]) -> u32 {
    codes.iter().rev().fold(0, |bits, code| bits << 1 | u32::from(code >> 4 & 1))
}

/// Writes the lower two bits of 256 codes: of each half of the block, byte `i` has the codes `i`, `i + 32`, `i + 64` and
/// `i + 96`, the first in the lowest bits.
pub(super) fn put_quarters(code: impl Fn(usize) -> u8, out: &mut [u8]) {
    for (half, out) in out.chunks_exact_mut(32).enumerate() {
        for (at, out) in out.iter_mut().enumerate() {
            *out = (0..4).fold(0, |byte, quarter| byte | (code(128 * half + 32 * quarter + at) & 3) << (2 * quarter));
        }
    }
}

/// Reads what [`put_quarters`] wrote: adds the two bits to the codes, as bits `to` and `to + 1`.
pub(super) fn add_quarters(bytes: &[u8], to: u8, codes: &mut [u8]) {
    for (half, bytes) in bytes.chunks_exact(32).enumerate() {
        for (at, byte) in bytes.iter().enumerate() {
            for quarter in 0..4 {
                codes[128 * half + 32 * quarter + at] |= (byte >> (2 * quarter) & 3) << to;
            }
        }
    }
}

/// Writes bit `bit` of 256 codes: bit `j` of byte `i` is that of code `32 j + i`.
pub(super) fn put_eighths(codes: &[u8], bit: u8, out: &mut [u8]) {
    for (at, out) in out.iter_mut().enumerate() {
        *out = (0..8).fold(0, |byte, eighth| byte | (codes[32 * eighth + at] >> bit & 1) << eighth);
    }
}

/// Reads what [`put_eighths`] wrote: adds the bits to the codes.
pub(super) fn add_eighths(bytes: &[u8], bit: u8, codes: &mut [u8]) {
    for (at, byte) in bytes.iter().enumerate() {
        for eighth in 0..8 {
            codes[32 * eighth + at] |= (byte >> eighth & 1) << bit;
        }
    }
}

/// Writes eight scales and eight minima of six bits to twelve bytes. Bytes 0 to 3 and 4 to 7 hold the first four of each;
/// bytes 8 to 11 the lower four bits of the others, the minimum in the upper half; their upper two bits are those of bytes
/// 0 to 7.
pub(super) fn put_scales_and_mins(scales: &[i8], mins: &[u8], out: &mut [u8]) {
    for at in 0..4 {
        let [scale, later] = [scales[at], scales[at + 4]].map(i8::cast_unsigned);
        out[at] = scale | later >> 4 << 6;
        out[at + 4] = mins[at] | mins[at + 4] >> 4 << 6;
        out[at + 8] = later & 15 | mins[at + 4] << 4;
    }
}

/// Reads what [`put_scales_and_mins`] wrote.
pub(super) fn scales_and_mins_of(bytes: &[u8], scales: &mut [i8], mins: &mut [u8]) {
    for at in 0..4 {
        let [scale, min, later] = [bytes[at], bytes[at + 4], bytes[at + 8]];
        scales[at] = (scale & 63).cast_signed();
        scales[at + 4] = (later & 15 | scale >> 6 << 4).cast_signed();
        mins[at] = min & 63;
        mins[at + 4] = later >> 4 | min >> 6 << 4;
    }
}
