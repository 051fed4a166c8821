//! Rotary positions: by which angle each pair of a head's channels turns at each position.

use serde_json::Value;

use super::traits::Config;
use crate::checkpoint::Checkpoint;
use crate::math::{ln, pow, sin_cos};

/// What a configuration says of rotary positions.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Base of the frequencies.
    theta: f64,
    /// Base in layers that look back a window only, where it is another.
    local_theta: Option<f64>,
    /// Which layers these are.
    sliding: Vec<bool>,
    /// Share of a head's channels that turn.
    fraction: f64,
    /// Pairs are neighbours; else half of the turning channels apart.
    neighbours: bool,
    /// Layers without positions.
    without: Vec<bool>,
    scaling: Scaling,
}

/// How frequencies are changed for longer contexts.
#[derive(Clone, Debug, PartialEq)]
enum Scaling {
    /// Not at all, or only beyond the length that the model was made for.
    None,
    /// Divided by a factor.
    Linear { factor: f64 },
    /// The low ones divided by a factor, the high ones left, what is between in between.
    Llama3 { factor: f64, low: f64, high: f64, context: f64 },
    /// The same by channel, and everything multiplied by `attention`.
    Yarn { factor: f64, fast: f64, slow: f64, context: f64, attention: f64 },
    /// Each divided by a factor of its own, and everything multiplied by `attention`.
    Each { factors: Vec<f64>, attention: f64 },
    /// A kind that is not known.
    Unknown(String),
}

/// The turns of one layer: a cosine and a sine for each position and pair.
#[derive(Clone, Debug, PartialEq)]
pub struct Turns {
    /// Pairs of a head that turn.
    pub pairs: usize,
    /// Whether pairs are neighbours; else `pairs` apart.
    pub neighbours: bool,
    /// `[position][pair]`, each times the factor that scaling puts on queries and keys.
    pub cosines: Vec<f32>,
    /// Likewise.
    pub sines: Vec<f32>,
}

impl Rotary {
    pub(super) fn of(checkpoint: &Checkpoint, neighbours: bool) -> Self {
        let config = Config(checkpoint);
        let parameters = config.value(&["rope_parameters"]);
        // Newer configurations keep one set for each kind of layer.
        let of_kind = |kind: &str| parameters.and_then(|all| all.get(kind));
        let global = of_kind("full_attention").or(parameters);
        let theta = |set: Option<&Value>| set.and_then(|set| set.get("rope_theta")?.as_f64());
        let number = |key: &str| global.and_then(|set| set.get(key)?.as_f64());
        let fraction = config.number(&["partial_rotary_factor", "rotary_pct"]).or(number("partial_rotary_factor"));
        let pattern = config.size(&["sliding_window_pattern", "_sliding_window_pattern"]).unwrap_or(6);
        let sliding = config.sliding_layers();
        let listed = |key: &str| config.value(&[key]).and_then(Value::as_array);
        let interval = config.size(&["no_rope_layer_interval"]);
        Self {
            theta: config.number(&["rope_theta", "rotary_emb_base"]).or(theta(global)).unwrap_or(10_000.0),
            local_theta: config.number(&["rope_local_base_freq"]).or(theta(of_kind("sliding_attention"))),
            sliding: sliding
                .unwrap_or_else(|| (0..config.layers()).map(|layer| !(layer + 1).is_multiple_of(pattern)).collect()),
            fraction: fraction.unwrap_or(1.0),
            neighbours,
            without: match (listed("no_rope_layers"), interval) {
                (Some(list), _) if !list.is_empty() => list.iter().map(|layer| layer.as_u64() == Some(0)).collect(),
                (_, Some(interval)) if interval > 0 => {
                    (0..config.layers()).map(|layer| (layer + 1).is_multiple_of(interval)).collect()
                }
                _ => Vec::new(),
            },
            scaling: Scaling::of(config, config.value(&["rope_scaling"]).or(global)),
        }
    }

    /// The turns of `layer` for heads of `head_size` channels, none where the layer has no positions.
    ///
    /// # Errors
    /// A sentence that says what is not known.
    pub fn turns(&self, layer: usize, head_size: usize, positions: usize) -> Result<Option<Turns>, String> {
        if self.without.get(layer) == Some(&true) {
            return Ok(None);
        }
        let is_local = self.local_theta.is_some() && self.sliding.get(layer) == Some(&true);
        let (theta, scaling) = match self.local_theta {
            Some(local) if is_local => (local, &Scaling::None),
            _ => (self.theta, &self.scaling),
        };
        #[expect(clippy::cast_sign_loss, reason = "a count")]
        let pairs = (head_size as f64 * self.fraction) as usize / 2;
        let attention = scaling.attention();
        let (mut cosines, mut sines) = (Vec::new(), Vec::new());
        let frequencies: Vec<f64> =
            (0..pairs).map(|pair| scaling.frequency(theta, pair, pairs)).collect::<Result<_, _>>()?;
        for position in 0..positions {
            for frequency in &frequencies {
                let (sine, cosine) = sin_cos(position as f64 * frequency);
                cosines.push((attention * cosine) as f32);
                sines.push((attention * sine) as f32);
            }
        }
        Ok(Some(Turns { pairs, neighbours: self.neighbours, cosines, sines }))
    }
}

impl Scaling {
    fn of(config: Config<'_>, set: Option<&Value>) -> Self {
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
            // Beyond the length that the model was made for, and no window is that long.
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
                let list = set.get("short_factor").and_then(Value::as_array);
                let factors = list.map(|list| list.iter().filter_map(Value::as_f64).collect()).unwrap_or_default();
                let grown = if context > 0.0 { most / context } else { 1.0 };
                let attention = if grown > 1.0 { (1.0 + ln(grown) / ln(context)).sqrt() } else { 1.0 };
                Self::Each { factors, attention: number("attention_factor").unwrap_or(attention) }
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

    /// Radians per position of `pair`.
    fn frequency(&self, theta: f64, pair: usize, pairs: usize) -> Result<f64, String> {
        use std::f64::consts::TAU;
        let plain = pow(theta, -(pair as f64) / pairs as f64);
        Ok(match self {
            Self::None => plain,
            Self::Linear { factor } => plain / factor,
            Self::Llama3 { factor, low, high, context } => {
                // Turns within the context: few are divided, many are left.
                let turns = context * plain / TAU;
                let left = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                left * plain + (1.0 - left) * plain / factor
            }
            Self::Yarn { factor, fast, slow, context, .. } => {
                // The pair that makes so many turns within the context.
                let at = |turns: f64| pairs as f64 * ln(context / (turns * TAU)) / ln(theta);
                let (from, to) = (at(*fast).floor().max(0.0), at(*slow).ceil().min(2.0 * pairs as f64 - 1.0));
                let to = if to == from { from + 0.001 } else { to };
                let divided = ((pair as f64 - from) / (to - from)).clamp(0.0, 1.0);
                divided * plain / factor + (1.0 - divided) * plain
            }
            Self::Each { factors, .. } => {
                let factor = factors.get(pair).filter(|_| factors.len() == pairs);
                plain / factor.ok_or_else(|| format!("{} rotary factors for {pairs} pairs", factors.len()))?
            }
            Self::Unknown(kind) => return Err(format!("the rotary scaling `{kind}` is not known")),
        })
    }
}
