//! Input channels by their importance.

use std::cell::OnceCell;

use super::GROUP_SIZES;
use super::grid::group;

/// The importance of a matrix's input channels, and for the sizes of groups that were asked for their order by it.
pub struct Channels<'a> {
    /// Importance of each channel, none negative.
    pub k: &'a [f32],
    falling: [OnceCell<Falling>; GROUP_SIZES.len()],
}

impl<'a> Channels<'a> {
    /// Those of importance `k`, of which none is negative. Nothing is ordered before it is needed.
    #[must_use]
    pub fn new(k: &'a [f32]) -> Self {
        Self { k, falling: Default::default() }
    }

    /// The channels of each group of `G`, in falling order.
    pub(super) fn falling<const G: usize>(&self) -> &Falling {
        let size = GROUP_SIZES.iter().position(|&size| usize::from(size) == G).expect("a size of groups");
        self.falling[size].get_or_init(|| Falling::new(self.k, G))
    }
}

/// The channels of each group from the most important to the least.
///
/// In that order a weighted sum of squares can be had from the plain sums before it, which are wanted anyway,
///
/// ```text
/// Σ_j k_j e_j² = Σ_j (k_j − k_{j+1}) Σ_{i ≤ j} e_i²    (k beyond the last is 0)
/// ```
///
/// with two operations for each error instead of three. No term is negative, so none takes digits from another.
pub(super) struct Falling {
    /// Which channel of its group.
    channels: Vec<u8>,
    /// `k_j − k_{j+1}`
    drops: Vec<f32>,
}

impl Falling {
    fn new(k: &[f32], group_size: usize) -> Self {
        let (mut channels, mut drops) = (Vec::with_capacity(k.len()), Vec::with_capacity(k.len()));
        // Magnitudes are ordered as their bits are; equals, as they come.
        let mut order: Vec<u64> = Vec::with_capacity(group_size);
        for k in k.chunks_exact(group_size) {
            order.clear();
            order.extend(k.iter().zip(0_u64..).map(|(k, at)| u64::from(!k.abs().to_bits()) << 32 | at));
            order.sort_unstable();
            let sorted = order.iter().map(|&bits| bits as u8);
            let next = sorted.clone().skip(1).map(|channel| k[usize::from(channel)]).chain([0.0]);
            drops.extend(sorted.clone().zip(next).map(|(channel, next)| k[usize::from(channel)] - next));
            channels.extend(sorted);
        }
        Self { channels, drops }
    }

    /// Of group `at` of `G`, the channels and how much more important each is than the next.
    #[inline(always)]
    pub(super) fn of<const G: usize>(&self, at: usize) -> (&[u8; G], &[f32; G]) {
        (group(&self.channels, at), group(&self.drops, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_fall_and_what_they_drop_by_adds_up_to_their_importance() {
        let mut k: Vec<f32> = (0..64_u16).map(|at| f32::from(at * 37 % 11)).collect();
        k[5] = -0.0;
        let channels = Channels::new(&k);
        for at in 0..2 {
            let (order, drops) = channels.falling::<32>().of::<32>(at);
            let group = &k[32 * at..][..32];
            let mut importance = 0.0;
            for (&channel, &drop) in order.iter().zip(drops).rev() {
                assert!(drop >= 0.0, "{drop}");
                importance += drop;
                assert_eq!(importance, group[usize::from(channel)]);
            }
            let mut sorted = *order;
            sorted.sort_unstable();
            assert!(sorted.iter().copied().eq(0..32));
        }
    }
}
