//! [`Pack`] in NEON registers.

use super::Neon;
use super::raw::{
    load_u8, store_u8, vandq_u16, vandq_u32, vandq_u64, vdupq_n_s16, vdupq_n_s32, vdupq_n_s64, vdupq_n_u16,
    vdupq_n_u32, vdupq_n_u64, vorrq_u16, vorrq_u32, vorrq_u64, vqtbl1q_u8, vreinterpretq_u8_u64, vreinterpretq_u16_u8,
    vreinterpretq_u32_u16, vreinterpretq_u64_u32, vshlq_u16, vshlq_u32, vshlq_u64, vshrq_n_u16, vshrq_n_u32,
    vshrq_n_u64,
};
use crate::simd::convert::CHUNK;
use crate::simd::pack::Pack;

/// Bytes of a register.
const REGISTER: usize = 16;

impl Pack for Neon {
    #[inline(always)]
    fn pack_bits<const BITS: usize>(codes: &[u8; CHUNK], out: &mut [u8; CHUNK]) {
        if BITS == 8 {
            *out = *codes;
            return;
        }
        // The first BITS bytes of each eight are used: move them together.
        let mut places = [u8::MAX; REGISTER];
        for (at, place) in places[..2 * BITS].iter_mut().enumerate() {
            *place = (at % BITS + at / BITS * 8) as u8;
        }
        let (places, bits) = (load_u8(&places), BITS as u8);
        for (at, codes) in codes.as_chunks().0.iter().enumerate() {
            // Each second code goes above the first, then each second pair, then each second four.
            let of = vreinterpretq_u16_u8(load_u8(codes));
            let low = vandq_u16(of, vdupq_n_u16((1 << BITS) - 1));
            let pairs = vorrq_u16(low, vshlq_u16(vshrq_n_u16::<8>(of), vdupq_n_s16(i16::from(bits))));
            let of = vreinterpretq_u32_u16(pairs);
            let low = vandq_u32(of, vdupq_n_u32((1 << (2 * BITS)) - 1));
            let fours = vorrq_u32(low, vshlq_u32(vshrq_n_u32::<16>(of), vdupq_n_s32(2 * i32::from(bits))));
            let of = vreinterpretq_u64_u32(fours);
            let low = vandq_u64(of, vdupq_n_u64((1 << (4 * BITS)) - 1));
            let all = vorrq_u64(low, vshlq_u64(vshrq_n_u64::<32>(of), vdupq_n_s64(4 * i64::from(bits))));
            let bytes = vqtbl1q_u8(vreinterpretq_u8_u64(all), places);
            store_u8(bytes, out[at * 2 * BITS..].first_chunk_mut().expect("room for a register"));
        }
    }
}
