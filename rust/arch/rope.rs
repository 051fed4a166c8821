//! Rotary position embeddings (RoPE): the angle by which each pair of a head's channels is rotated at each position.

use std::f64::consts::TAU;

use serde_json::Value;

use super::conventions::ConfigReader;
use crate::checkpoint::Checkpoint;
use crate::math::{ln, pow, sin_cos};

#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    theta: f64,
    /// Base in sliding-window layers, where it differs.
    local_theta: Option<f64>,
    /// Whether each layer is a sliding-window layer.
    sliding: Vec<bool>,
    /// Fraction of a head's channels that are rotated.
    fraction: f64,
    /// Whether a pair is two adjacent channels (GPT-J); otherwise they are half of the rotated channels apart (NeoX).
    adjacent: bool,
    /// Whether each layer has no positions (NoPE).
    without: Vec<bool>,
    scaling: RopeScaling,
    /// The longest window whose frequencies are known.
    pub limit: Option<usize>,
}

/// Scaling of frequencies for longer contexts.
#[derive(Clone, Debug, PartialEq)]
enum RopeScaling {
    /// Unchanged, or changed only beyond the original context.
    None,
    Linear {
        factor: f64,
    },
    /// NTK-by-parts as in Llama 3: low frequencies divided by a factor, high ones unchanged, interpolated in between.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        context: f64,
    },
    /// YaRN: NTK-by-parts with bounds in channels, and cosines and sines multiplied by `attention`.
    Yarn {
        factor: f64,
        fast: f64,
        slow: f64,
        context: f64,
        attention: f64,
    },
    /// LongRoPE: a factor for each frequency, others in windows beyond the original `context`, and cosines and sines
    /// multiplied by `attention`.
    Each {
        short: Vec<f64>,
        long: Vec<f64>,
        context: f64,
        attention: f64,
    },
    Unknown(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians per position, for each pair of a head that is rotated.
    frequencies: Vec<f64>,
    /// Those in windows of more positions than the first number, where they differ.
    long: Option<(f64, Vec<f64>)>,
    /// Factor of all cosines and sines.
    attention: f64,
    adjacent: bool,
}

/// A cosine and a sine for each position and pair.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Rotated pairs of a head.
    pub pairs: usize,
    /// Whether a pair is two adjacent channels; otherwise they are `pairs` apart.
    pub adjacent: bool,
    /// `[position][pair]`, times the scaling's factor.
    pub cosines: Vec<f32>,
    /// `[position][pair]`, times the scaling's factor.
    pub sines: Vec<f32>,
}

impl RopeConfig {
    pub(super) fn of(checkpoint: &Checkpoint, adjacent: bool) -> Self {
        let config = ConfigReader(checkpoint);
        let parameters = config.value(&["rope_parameters"]);
        // Newer configurations have one set of parameters for each kind of layer.
        let of_kind = |kind: &str| parameters.and_then(|all| all.get(kind));
        let global = of_kind("full_attention").or(parameters);
        let theta = |set: Option<&Value>| set.and_then(|set| set.get("rope_theta")?.as_f64());
        let number = |key: &str| global.and_then(|set| set.get(key)?.as_f64());
        let fraction = config.number(&["partial_rotary_factor", "rotary_pct"]).or(number("partial_rotary_factor"));
        let pattern = config.size(&["sliding_window_pattern", "_sliding_window_pattern"]).unwrap_or(6);
        let sliding = config.sliding_layers();
        let listed = |key: &str| config.value(&[key]).and_then(Value::as_array);
        let interval = config.size(&["no_rope_layer_interval"]);
        let scaling = config.value(&["rope_scaling"]).or(global);
        let kind = |key: &str| scaling.and_then(|set| set.get(key)?.as_str());
        let is_dynamic = kind("rope_type").or(kind("type")) == Some("dynamic");
        Self {
            theta: config.number(&["rope_theta", "rotary_emb_base"]).or(theta(global)).unwrap_or(10_000.0),
            local_theta: config.number(&["rope_local_base_freq"]).or(theta(of_kind("sliding_attention"))),
            sliding: sliding
                .unwrap_or_else(|| (0..config.layers()).map(|layer| !(layer + 1).is_multiple_of(pattern)).collect()),
            fraction: fraction.unwrap_or(1.0),
            adjacent,
            without: match (listed("no_rope_layers"), interval) {
                (Some(list), _) if !list.is_empty() => list.iter().map(|layer| layer.as_u64() == Some(0)).collect(),
                (_, Some(interval)) if interval > 0 => {
                    (0..config.layers()).map(|layer| (layer + 1).is_multiple_of(interval)).collect()
                }
                _ => Vec::new(),
            },
            scaling: RopeScaling::of(config, scaling),
            limit: if is_dynamic { config.size(&["max_position_embeddings"]) } else { None },
        }
    }

    /// The rotary positions of `layer` for heads of `head_size` channels; `None` if the layer has no positions.
    ///
    /// # Errors
    /// A sentence that says what is not known.
    pub fn of_layer(&self, layer: usize, head_size: usize) -> Result<Option<Rope>, String> {
        if self.without.get(layer) == Some(&true) {
            return Ok(None);
        }
        let is_local = self.local_theta.is_some() && self.sliding.get(layer) == Some(&true);
        let (theta, scaling) = match self.local_theta {
            Some(local) if is_local => (local, &RopeScaling::None),
            _ => (self.theta, &self.scaling),
        };
        #[expect(clippy::cast_sign_loss, reason = "a count")]
        let pairs = (head_size as f64 * self.fraction) as usize / 2;
        let frequencies = |scaling: &RopeScaling| -> Result<Vec<f64>, String> {
            (0..pairs).map(|pair| scaling.frequency(theta, pair, pairs)).collect()
        };
        let long = match scaling.beyond_context() {
            Some((context, long)) => Some((context, frequencies(&long)?)),
            None => None,
        };
        let (attention, adjacent) = (scaling.attention(), self.adjacent);
        Ok(Some(Rope { frequencies: frequencies(scaling)?, long, attention, adjacent }))
    }
}

impl RopeConfig {
    /// The factor of all cosines and sines where each frequency has a factor of its own.
    #[must_use]
    pub(crate) fn attention_of_factors(&self) -> Option<f64> {
        match &self.scaling {
            RopeScaling::Each { attention, .. } => Some(*attention),
            _ => None,
        }
    }

    /// The factors that frequencies are divided by, one for each pair of a head of `head_size` channels, under llama.cpp's names
    /// of them. Empty where key-values say enough.
    #[must_use]
    pub(crate) fn factors(&self, head_size: usize) -> Vec<(&'static str, Vec<f32>)> {
        let narrow = |values: &[f64]| values.iter().map(|&value| value as f32).collect::<Vec<f32>>();
        match &self.scaling {
            RopeScaling::Llama3 { factor, low, high, context } => {
                let pairs = head_size / 2;
                let [factor, low, high, context] = [factor, low, high, context].map(|&value| value as f32);
                // In `f32`, as the converter computes them.
                let of = |pair: usize| {
                    let frequency = 1.0 / pow(self.theta, f64::from(pair as f32 / pairs as f32)) as f32;
                    let turns = context / (TAU as f32 / frequency);
                    if turns > high {
                        1.0
                    } else if turns < low {
                        factor
                    } else {
                        let smooth = (turns - low) / (high - low);
                        1.0 / ((1.0 - smooth) / factor + smooth)
                    }
                };
                vec![("rope_freqs.weight", (0..pairs).map(of).collect())]
            }
            RopeScaling::Each { short, long, .. } => {
                vec![("rope_factors_long.weight", narrow(long)), ("rope_factors_short.weight", narrow(short))]
            }
            RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Yarn { .. } | RopeScaling::Unknown(_) => {
                Vec::new()
            }
        }
    }
}

impl Rope {
    /// Whether its numbers are those of `other`, by `is_close`.
    pub(super) fn is_like(&self, other: &Self, is_close: impl Fn(f64, f64) -> bool) -> bool {
        let all = |one: &[f64], other: &[f64]| {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_close(*one, *other))
        };
        let long = match (&self.long, &other.long) {
            (Some((context, own)), Some((others, other))) => is_close(*context, *others) && all(own, other),
            (own, other) => own.is_none() && other.is_none(),
        };
        long && all(&self.frequencies, &other.frequencies) && is_close(self.attention, other.attention)
    }

    /// The table of the positions `0..positions` of a window of that length.
    #[must_use]
    pub fn table(&self, positions: usize) -> RopeTable {
        let (mut cosines, mut sines) = (Vec::new(), Vec::new());
        let frequencies = match &self.long {
            Some((context, long)) if positions as f64 > *context => long,
            _ => &self.frequencies,
        };
        for position in 0..positions {
            for frequency in frequencies {
                let (sine, cosine) = sin_cos(position as f64 * frequency);
                cosines.push((self.attention * cosine) as f32);
                sines.push((self.attention * sine) as f32);
            }
        }
        RopeTable { pairs: self.frequencies.len(), adjacent: self.adjacent, cosines, sines }
    }
}

impl RopeScaling {
    fn of(config: ConfigReader<'_>, set: Option<&Value>) -> Self {
        let Some(set) = set else { return Self::None };
        let number = |key: &str| set.get(key).and_then(Value::as_f64);
        let kind = ["rope_type", "type"].iter().find_map(|key| set.get(*key)?.as_str()).unwrap_or("default");
        let factor = number("factor").unwrap_or(1.0);
        let most = config.number(&["max_position_embeddings"]).unwrap_or(0.0);
        let context = number("original_max_position_embeddings")
            .or(config.number(&["original_max_position_embeddings"]))
            .unwrap_or(most);
        // 0.1 · weight · ln(factor) + 1
        let damped = |weight: f64| if factor > 1.0 { 0.1 * weight * ln(factor) + 1.0 } else { 1.0 };
        match kind {
            // `dynamic` changes frequencies beyond the original context only. Windows that long are refused.
            "default" | "dynamic" => Self::None,
            "linear" => Self::Linear { factor },
            "llama3" => Self::Llama3 {
                factor,
                low: number("low_freq_factor").unwrap_or(1.0),
                high: number("high_freq_factor").unwrap_or(4.0),
                context,
            },
            "yarn" => Self::Yarn {
                factor,
                fast: number("beta_fast").unwrap_or(32.0),
                slow: number("beta_slow").unwrap_or(1.0),
                context,
                attention: number("attention_factor").unwrap_or_else(|| {
                    match (number("mscale"), number("mscale_all_dim")) {
                        (Some(scale), Some(all)) if all != 0.0 => damped(scale) / damped(all),
                        (Some(scale), _) => damped(scale),
                        (None, _) => damped(1.0),
                    }
                }),
            },
            "longrope" | "su" => {
                let factors = |key: &str| {
                    let list = set.get(key).and_then(Value::as_array);
                    list.map(|list| list.iter().filter_map(Value::as_f64).collect()).unwrap_or_default()
                };
                let grown = if context > 0.0 { most / context } else { 1.0 };
                let attention = if grown > 1.0 { (1.0 + ln(grown) / ln(context)).sqrt() } else { 1.0 };
                let attention = number("attention_factor").unwrap_or(attention);
                Self::Each { short: factors("short_factor"), long: factors("long_factor"), context, attention }
            }
            other => Self::Unknown(other.to_owned()),
        }
    }

    fn attention(&self) -> f64 {
        match self {
            Self::Yarn { attention, .. } | Self::Each { attention, .. } => *attention,
            _ => 1.0,
        }
    }

    /// The original context, and the scaling in longer windows, if that is another.
    fn beyond_context(&self) -> Option<(f64, Self)> {
        let Self::Each { long, context, attention, .. } = self else { return None };
        let of_long = Self::Each { short: long.clone(), long: Vec::new(), context: *context, attention: *attention };
        (!long.is_empty() && *context > 0.0).then_some((*context, of_long))
    }

    /// Radians per position of `pair`.
    fn frequency(&self, theta: f64, pair: usize, pairs: usize) -> Result<f64, String> {
        let plain = pow(theta, -(pair as f64) / pairs as f64);
        Ok(match self {
            Self::None => plain,
            Self::Linear { factor } => plain / factor,
            Self::Llama3 { factor, low, high, context } => {
                // Frequencies with few rotations within the context are divided, those with many unchanged.
                let turns = context * plain / TAU;
                let left = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                left * plain + (1.0 - left) * plain / factor
            }
            Self::Yarn { factor, fast, slow, context, .. } => {
                // The pair that makes `turns` rotations within the context.
                let at = |turns: f64| pairs as f64 * ln(context / (turns * TAU)) / ln(theta);
                let (from, to) = (at(*fast).floor().max(0.0), at(*slow).ceil().min(2.0 * pairs as f64 - 1.0));
                let to = if to == from { from + 0.001 } else { to };
                let divided = ((pair as f64 - from) / (to - from)).clamp(0.0, 1.0);
                divided * plain / factor + (1.0 - divided) * plain
            }
            Self::Each { short: factors, .. } => {
                let factor = factors.get(pair).filter(|_| factors.len() == pairs);
                plain / factor.ok_or_else(|| format!("{} rotary factors for {pairs} pairs", factors.len()))?
            }
            Self::Unknown(kind) => return Err(format!("the rotary scaling `{kind}` is not known")),
        })
    }
}
