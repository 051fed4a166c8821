//! Bit packing: codes to bytes and back.
//!
//! A row is one little-endian bit stream: code `i` of `b` bits takes bits `i·b` to `i·b + b − 1`, bit `n` of the stream
//! being bit `n mod 8` of byte `n / 8`. Eight codes fill `b` bytes. MLX reads the bytes as little-endian 32-bit words.

use crate::simd::convert::CHUNK;
use crate::simd::{Isa, kernel};

/// Codes that fill whole bytes, whatever their width.
const CODES: usize = 8;

/// Appends `codes` to `out`, `bits` bits each.
///
/// # Panics
/// If the number of codes is no multiple of eight, or `bits` is none of the code widths.
pub fn pack(isa: Isa, bits: u8, codes: &[u8], out: &mut Vec<u8>) {
    match bits {
        2 => pack_bits::<2>(isa, codes, out),
        3 => pack_bits::<3>(isa, codes, out),
        4 => pack_bits::<4>(isa, codes, out),
        5 => pack_bits::<5>(isa, codes, out),
        6 => pack_bits::<6>(isa, codes, out),
        8 => pack_bits::<8>(isa, codes, out),
        _ => panic!("pack: no codes have {bits} bits"),
    }
}

kernel! {
    /// [`pack`], of a constant number of bits.
    fn pack_bits<V: Simd, const BITS: usize>(codes: &[u8], out: &mut Vec<u8>) {
        assert!(codes.len().is_multiple_of(CODES), "pack: not whole bytes");
        let (from, width) = (out.len(), CHUNK / CODES * BITS);
        out.resize(from + codes.len() / CODES * BITS, 0);
        let (mut codes, mut out) = (codes, &mut out[from..]);
        if BITS == 4 {
            let (pairs, rest) = codes.as_chunks();
            let (registers, rest_out) = out.split_at_mut(pairs.len() * CHUNK);
            for (codes, out) in pairs.iter().zip(registers.as_chunks_mut().0) {
                *out = V::pack_nibbles(codes);
            }
            (codes, out) = (rest, rest_out);
        }
        // Write whole registers as long as they fit; the next one overwrites what is too much.
        let fit = (out.len() + width).saturating_sub(CHUNK) / width;
        let (registers, rest) = codes.split_at(fit.min(codes.len() / CHUNK) * CHUNK);
        for (at, codes) in registers.as_chunks().0.iter().enumerate() {
            V::pack_bits::<BITS>(codes, out[at * width..].first_chunk_mut().expect("room for a register"));
        }
        let out = &mut out[registers.len() / CODES * BITS..];
        for (codes, out) in rest.chunks(CHUNK).zip(out.chunks_mut(width)) {
            let [mut last, mut bytes] = [[0; CHUNK]; 2];
            last[..codes.len()].copy_from_slice(codes);
            V::pack_bits::<BITS>(&last, &mut bytes);
            out.copy_from_slice(&bytes[..out.len()]);
        }
    }
}

/// Appends to `codes` those that `bytes` hold, `bits` bits each.
///
/// # Panics
/// If the number of bytes is no multiple of `bits`.
pub(crate) fn unpack(bits: u8, bytes: &[u8], codes: &mut Vec<u8>) {
    let width = usize::from(bits);
    assert!(bytes.len().is_multiple_of(width), "unpack: not whole codes");
    let mask = u64::from(u8::MAX >> (8 - bits));
    for packed in bytes.chunks_exact(width) {
        let mut word = [0; 8];
        word[..width].copy_from_slice(packed);
        let word = u64::from_le_bytes(word);
        codes.extend((0..CODES).map(|at| (word >> (at * width) & mask) as u8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::affine::BITS;

    /// The layout that the module documents, bit by bit.
    fn by_the_book(bits: u8, codes: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; codes.len() * usize::from(bits) / 8];
        for (at, code) in codes.iter().enumerate() {
            for bit in 0..usize::from(bits) {
                let stream = at * usize::from(bits) + bit;
                bytes[stream / 8] |= (code >> bit & 1) << (stream % 8);
            }
        }
        bytes
    }

    #[test]
    fn every_width_and_length_is_as_the_rule_says_and_comes_back() {
        for bits in BITS {
            for eights in 0..=16 {
                let codes: Vec<u8> = (0..eights * 8_usize).map(|at| ((at * 73 + 7) as u8) >> (8 - bits)).collect();
                for isa in Isa::available() {
                    let mut packed = vec![0xa5];
                    pack(isa, bits, &codes, &mut packed);
                    assert_eq!(packed[0], 0xa5);
                    assert_eq!(packed[1..], by_the_book(bits, &codes), "{bits} bits, {eights} eights, {isa:?}");
                    let mut back = Vec::new();
                    unpack(bits, &packed[1..], &mut back);
                    assert_eq!(back, codes);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "not whole bytes")]
    fn codes_that_do_not_fill_bytes_are_refused() {
        pack(Isa::detect(), 4, &[0; 12], &mut Vec::new());
    }
}
