//! The signs of weights.

use super::{CodebookBlock, EIGHT};
use crate::codec::ggml::block::MAX_WEIGHTS;
use crate::simd::vector::{BAND_ROWS, Column, Simd};

/// Weights with the signs that are stored for them.
pub(super) struct Oriented {
    /// The weights, times their signs: negative where the stored sign is not that of the weight.
    pub along: [Column; MAX_WEIGHTS],
    /// 1 or −1.
    pub signs: [Column; MAX_WEIGHTS],
}

impl Oriented {
    pub(super) const EMPTY: Self =
        Self { along: [[0.0; BAND_ROWS]; MAX_WEIGHTS], signs: [[1.0; BAND_ROWS]; MAX_WEIGHTS] };

    /// Takes the weights of a block whose groups have about the scales `scales`, with their own signs. If the number of
    /// negative ones must be even, but is not, that sign is changed for which the error increases least.
    #[inline(always)]
    pub(super) fn take<V: Simd, B: CodebookBlock>(&mut self, (w, k): (&[Column], &[f32]), scales: &[V]) {
        let (zero, one) = (V::splat(0.0), V::splat(1.0));
        let rows = w.chunks_exact(EIGHT).zip(k.chunks_exact(EIGHT));
        let into = self.along.chunks_exact_mut(EIGHT).zip(self.signs.chunks_exact_mut(EIGHT));
        for (at, ((w, k), (along, signs))) in rows.zip(into).enumerate() {
            let least = scales[at * EIGHT / B::GROUP].mul(V::splat(B::MAGNITUDES[0]));
            let mut parity = one;
            let (mut cheapest, mut cost) = (zero, V::splat(f32::INFINITY));
            for (element, (&w, &k)) in w.iter().zip(k).enumerate() {
                let w = V::load(w);
                let sign = V::splat(-1.0).select(w.lt(zero), one);
                let magnitude = w.abs();
                along[element] = magnitude.store();
                signs[element] = sign.store();
                if B::EVEN_SIGNS {
                    parity = parity.mul(sign);
                    let (with, without) = (magnitude.add(least), least.sub(magnitude).max(zero));
                    let more = V::splat(k).mul(with.mul(with).sub(without.mul(without)));
                    let is_less = more.lt(cost);
                    cost = more.select(is_less, cost);
                    cheapest = V::splat(element as f32).select(is_less, cheapest);
                }
            }
            if B::EVEN_SIGNS {
                // No element is at −1.
                let changed = cheapest.select(parity.lt(zero), V::splat(-1.0));
                for element in 0..EIGHT {
                    let is_it = changed.sub(V::splat(element as f32)).abs().lt(V::splat(0.5));
                    let of = V::splat(-1.0).select(is_it, one);
                    along[element] = V::load(along[element]).mul(of).store();
                    signs[element] = V::load(signs[element]).mul(of).store();
                }
            }
        }
    }
}
