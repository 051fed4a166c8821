//! Input channels in the order of their importance.

use std::cell::OnceCell;

use super::GROUP_SIZES;
use super::grid::group;

/// The importance of a matrix's input channels. Their order in groups of each size is computed when it is first needed.
pub struct Channels<'a> {
    /// Importance of each channel. None may be negative.
    pub k: &'a [f32],
    ordered: [OnceCell<ByImportance>; GROUP_SIZES.len()],
}

impl<'a> Channels<'a> {
    /// Channels of importance `k`. None may be negative.
    #[must_use]
    pub fn new(k: &'a [f32]) -> Self {
        Self { k, ordered: Default::default() }
    }

    /// The channels of each group of `G`, the most important first.
    pub(super) fn by_importance<const G: usize>(&self) -> &ByImportance {
        let size = GROUP_SIZES.iter().position(|&size| usize::from(size) == G).expect("one of the group sizes");
        self.ordered[size].get_or_init(|| ByImportance::new(self.k, G))
    }
}

/// The channels of each group from the most important to the least.
///
/// In this order, a weighted sum of squares follows from the partial sums of the plain one, which are needed anyway:
///
/// ```text
/// Σ_j k_j e_j² = Σ_j (k_j − k_{j+1}) Σ_{i ≤ j} e_i²    (k beyond the last is 0)
/// ```
///
/// It takes two operations per error instead of three. No term is negative, so nothing cancels.
pub(super) struct ByImportance {
    /// Index in the group.
    channels: Vec<u8>,
    /// `k_j − k_{j+1}`
    drops: Vec<f32>,
}

impl ByImportance {
    fn new(k: &[f32], group_size: usize) -> Self {
        let (mut channels, mut drops) = (Vec::with_capacity(k.len()), Vec::with_capacity(k.len()));
        // The bits of magnitudes have their order; equal ones keep the order of their indices.
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

    /// The channels of group `at`, and how much more important each is than the next.
    #[inline(always)]
    pub(super) fn group<const G: usize>(&self, at: usize) -> (&[u8; G], &[f32; G]) {
        (group(&self.channels, at), group(&self.drops, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_sorted_and_their_drops_add_up_to_their_importance() {
        let mut k: Vec<f32> = (0..64_u16).map(|at| f32::from(at * 37 % 11)).collect();
        k[5] = -0.0;
        let channels = Channels::new(&k);
        for at in 0..2 {
            let (order, drops) = channels.by_importance::<32>().group::<32>(at);
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
