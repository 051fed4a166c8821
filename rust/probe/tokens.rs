//! Random tokens for the forward pass and random signs for the backward pass, all from one fixed generator.

use super::vocabulary::Vocabulary;

/// Tokens of a window.
pub(crate) const WINDOW: usize = 64;

/// How far apart in the sequence of `SplitMix64` neighbouring streams begin.
const STREAM: u64 = 0xd134_2543_de82_ef95;

/// The increment of `SplitMix64`.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// `SplitMix64` at position `at` of stream `stream`.
#[must_use]
pub(crate) fn bits(stream: u64, at: u64) -> u64 {
    let mut z = stream.wrapping_mul(STREAM).wrapping_add(at.wrapping_add(1).wrapping_mul(STEP));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The first stream of the generator for random signs, which have one for each draw.
const SIGNS: u64 = 16;

/// The streams of the generator that one purpose draws its tokens from. What was planned on the tokens of one seed is
/// measured on those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Seed {
    tokens: u64,
    samples: u64,
}

impl Seed {
    const PROBE: Self = Self { tokens: 1, samples: 2 };
    pub(crate) const EVALUATION: Self = Self { tokens: 3, samples: 4 };
    pub(crate) const CHECK: Self = Self { tokens: 5, samples: 6 };

    /// The streams of the probe for the seed that a user chose.
    #[must_use]
    pub(super) fn of_probe(chosen: u32) -> Self {
        // Purposes are told apart by the low half of a stream's number, seeds by the high half.
        let apart = u64::from(chosen) << 32;
        Self { tokens: Self::PROBE.tokens + apart, samples: Self::PROBE.samples + apart }
    }

    /// A uniform number in `[0, 1)` for sampling token `at`.
    #[must_use]
    pub(super) fn unit(self, at: usize) -> f64 {
        (bits(self.samples, at as u64) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Random token `at`, one of `allowed`.
    #[must_use]
    pub(super) fn token(self, at: usize, allowed: &[u32]) -> u32 {
        // Multiply-shift instead of a remainder; the bias is below 2⁻³².
        allowed[((u128::from(bits(self.tokens, at as u64)) * allowed.len() as u128) >> 64) as usize]
    }
}

/// Makes windows `first..first + count` with the numbers of `seed`. Each begins with the vocabulary's first token, if there is
/// one, and continues with random tokens.
#[must_use]
pub(super) fn windows(vocabulary: &Vocabulary, seed: Seed, first: usize, count: usize) -> Vec<u32> {
    let allowed = vocabulary.allowed();
    let token = |at: usize| match vocabulary.first() {
        Some(token) if at.is_multiple_of(WINDOW) => token,
        _ => seed.token(at, allowed),
    };
    (first * WINDOW..(first + count) * WINDOW).map(token).collect()
}

/// Random signs of one draw at one token, one for each entry of the vocabulary.
#[derive(Clone, Copy)]
pub(super) struct Signs {
    stream: u64,
    first: u64,
}

impl Signs {
    pub(super) fn new(draw: usize, token: usize) -> Self {
        Self { stream: SIGNS + draw as u64, first: (token as u64) << 32 }
    }

    /// The square roots of `values`, entries `from..` of the vocabulary, with their random signs.
    pub(super) fn roots(self, from: usize, values: &[f32], out: &mut Vec<f32>) {
        const WORD_BITS: usize = u64::BITS as usize;
        out.clear();
        let mut at = from;
        let mut rest = values;
        while !rest.is_empty() {
            let word = bits(self.stream, self.first + (at / WORD_BITS) as u64) >> (at % WORD_BITS);
            let (here, after) = rest.split_at(rest.len().min(WORD_BITS - at % WORD_BITS));
            let signed = |(bit, value): (usize, &f32)| {
                let sign = ((word >> bit & 1) as u32) << 31;
                f32::from_bits(value.sqrt().to_bits() ^ sign)
            };
            out.extend(here.iter().enumerate().map(signed));
            (at, rest) = (at + here.len(), after);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_do_not_depend_on_where_a_range_begins_and_are_about_even() {
        let signs = Signs::new(1, 7);
        let ones = vec![1.0; 10_000];
        let (mut all, mut part) = (Vec::new(), Vec::new());
        signs.roots(0, &ones, &mut all);
        for from in [1, 63, 64, 65, 1_000] {
            signs.roots(from, &ones[from..], &mut part);
            assert_eq!(part, all[from..]);
        }
        let sum: f32 = all.iter().sum();
        assert!(sum.abs() < 400.0, "{sum}");
        let mut other = Vec::new();
        Signs::new(0, 7).roots(0, &ones, &mut other);
        assert!(all.iter().zip(&other).map(|(a, b)| a * b).sum::<f32>().abs() < 400.0);
    }

    #[test]
    fn the_generator_is_the_one_it_was() {
        // Sensitivities, plans and files depend on it.
        let expected = [17_629_623_748_622_851_610, 13_810_761_654_074_628_661, 17_325_216_486_198_807_156];
        let probe = Seed::of_probe(0);
        assert_eq!(probe, Seed::PROBE);
        assert_eq!([bits(probe.tokens, 0), bits(probe.tokens, 1), bits(SIGNS, 0)], expected);
    }

    #[test]
    fn no_seed_of_the_probe_shares_numbers_with_another_or_with_another_purpose() {
        /// More numbers than any run takes of a stream.
        const NUMBERS: u64 = 1 << 20;
        // All streams are parts of one sequence. How far apart two begin follows from the inverse of its increment.
        let newton = |inverse: u64, _| inverse.wrapping_mul(2_u64.wrapping_sub(inverse.wrapping_mul(STEP)));
        let inverse = (0..6).fold(1, newton);
        assert_eq!(STEP.wrapping_mul(inverse), 1);
        let begin = |stream: u64| stream.wrapping_mul(STREAM).wrapping_mul(inverse);
        let others = [3, 4, 5, 6].into_iter().chain(SIGNS..SIGNS + 16);
        let seeds = [0, 1, 2, 3, 1_000, u32::MAX].map(Seed::of_probe);
        let mut begins: Vec<u64> =
            others.chain(seeds.iter().flat_map(|seed| [seed.tokens, seed.samples])).map(begin).collect();
        begins.sort_unstable();
        let apart = begins.windows(2).map(|pair| pair[1] - pair[0]).min();
        assert!(apart.is_some_and(|least| least > NUMBERS), "{apart:?}");
    }
}
