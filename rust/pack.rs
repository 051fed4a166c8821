//! Codes to bytes and back.
//!
//! A row is one little-endian bit stream: code `i` of `b` bits takes bits `i·b` to `i·b + b − 1`, bit `n` of the stream
//! being bit `n mod 8` of byte `n / 8`. Eight codes fill `b` bytes. MLX reads the bytes as little-endian 32-bit words.

use crate::kernel::vector::ROWS;

/// Codes that fill whole bytes, whatever their width.
const CODES: usize = 8;

/// Appends the first `rows` rows of a band of codes to `out`, one after the other, `bits` bits a code.
///
/// # Panics
/// If the codes of a row do not fill whole bytes by eights, there are more than [`ROWS`], or `bits` is none of
/// [`BITS`](crate::scheme::BITS).
pub fn band(bits: u8, codes: &[[u8; ROWS]], rows: usize, out: &mut Vec<u8>) {
    match bits {
        2 => packed::<2>(codes, rows, out),
        3 => packed::<3>(codes, rows, out),
        4 => packed::<4>(codes, rows, out),
        5 => packed::<5>(codes, rows, out),
        6 => packed::<6>(codes, rows, out),
        8 => packed::<8>(codes, rows, out),
        _ => panic!("pack: no codes have {bits} bits"),
    }
}

fn packed<const BITS: usize>(codes: &[[u8; ROWS]], rows: usize, out: &mut Vec<u8>) {
    let (eights, rest) = codes.as_chunks::<CODES>();
    assert!(rest.is_empty() && rows <= ROWS, "pack: not whole bytes");
    let from = out.len();
    out.resize(from + rows * eights.len() * BITS, 0);
    let mut places =
        out[from..].chunks_exact_mut((eights.len() * BITS).max(1)).map(|row| row.as_chunks_mut::<BITS>().0);
    let mut rows: [&mut [[u8; BITS]]; ROWS] = std::array::from_fn(|_| places.next().unwrap_or_default());
    for (at, eight) in eights.iter().enumerate() {
        let words = transposed(eight.map(u64::from_le_bytes));
        for (row, word) in rows.iter_mut().zip(words) {
            if let (Some(place), Some(bytes)) = (row.get_mut(at), squeezed::<BITS>(word).to_le_bytes().first_chunk()) {
                *place = *bytes;
            }
        }
    }
}

/// Byte `j` of word `i` where byte `i` of word `j` was: halves change places, then quarters, then single bytes.
#[inline(always)]
#[expect(clippy::many_single_char_names, reason = "eight words have no names")]
fn transposed(words: [u64; 8]) -> [u64; 8] {
    /// What is `BITS` up in every other stretch of `BITS` of `low`, exchanged for what is not in `high`.
    #[inline(always)]
    fn exchanged<const BITS: u32>(low: u64, high: u64) -> (u64, u64) {
        let mask = u64::MAX / ((1 << BITS) + 1);
        let differ = (low >> BITS ^ high) & mask;
        (low ^ differ << BITS, high ^ differ)
    }
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = words;
    (a, e) = exchanged::<32>(a, e);
    (b, f) = exchanged::<32>(b, f);
    (c, g) = exchanged::<32>(c, g);
    (d, h) = exchanged::<32>(d, h);
    (a, c) = exchanged::<16>(a, c);
    (b, d) = exchanged::<16>(b, d);
    (e, g) = exchanged::<16>(e, g);
    (f, h) = exchanged::<16>(f, h);
    (a, b) = exchanged::<8>(a, b);
    (c, d) = exchanged::<8>(c, d);
    (e, f) = exchanged::<8>(e, f);
    (g, h) = exchanged::<8>(g, h);
    [a, b, c, d, e, f, g, h]
}

/// Eight codes of `BITS` bits, one a byte, without the bits between them: pairs move together, then fours, then all.
#[inline(always)]
fn squeezed<const BITS: usize>(codes: u64) -> u64 {
    let pairs = codes & 0x00ff_00ff_00ff_00ff | (codes & 0xff00_ff00_ff00_ff00) >> (8 - BITS);
    let fours = pairs & 0x0000_ffff_0000_ffff | (pairs & 0xffff_0000_ffff_0000) >> (16 - 2 * BITS);
    fours & 0x0000_0000_ffff_ffff | (fours & 0xffff_ffff_0000_0000) >> (32 - 4 * BITS)
}

/// Appends to `codes` those that `bytes` hold, `bits` bits each.
///
/// # Panics
/// If the bytes do not hold whole eights of codes.
pub fn unpack(bits: u8, bytes: &[u8], codes: &mut Vec<u8>) {
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
    use crate::scheme::BITS;

    /// The rule as it is written above, bit by bit.
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
                let band: Vec<[u8; ROWS]> = (0..eights * 8)
                    .map(|at| std::array::from_fn(|row| ((at * 73 + row * 151 + 7) as u8) >> (8 - bits)))
                    .collect();
                for rows in 0..=ROWS {
                    let mut packed = vec![0xa5];
                    super::band(bits, &band, rows, &mut packed);
                    assert_eq!(packed[0], 0xa5);
                    let row = |row: usize| band.iter().map(move |column| column[row]);
                    let codes: Vec<u8> = (0..rows).flat_map(row).collect();
                    assert_eq!(packed[1..], by_the_book(bits, &codes));
                    let mut back = Vec::new();
                    unpack(bits, &packed[1..], &mut back);
                    assert_eq!(back, codes);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "not whole bytes")]
    fn a_row_that_does_not_fill_bytes_is_refused() {
        band(4, &[[0; ROWS]; 12], 1, &mut Vec::new());
    }
}
