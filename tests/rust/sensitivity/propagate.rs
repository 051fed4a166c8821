//! Source `weights`: moments propagated through a small Llama, against the formulas written out.

use crate::arch::Activation;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::stream::CHUNK_BYTES;
use crate::dtype::Float;
use crate::sensitivity::gaussian::second_moment;
use crate::sensitivity::prior::Prior;
use crate::sensitivity::propagate::{FLAT_SHARE, derive};
use crate::sensitivity::{Gain, MatrixSensitivity, Origin};
use crate::simd::Isa;

use crate::tests::support::{Crew, Numbers, candidates, made, names, safetensors};

const WIDTH: usize = 16;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HIDDEN: usize = 24;
const VOCABULARY: usize = 12;

/// Name, rows and columns of each matrix; rows of a norm.
fn shapes() -> Vec<(String, usize, Option<usize>)> {
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let values = WIDTH / HEADS * KV_HEADS;
    vec![
        ("model.embed_tokens.weight".to_owned(), VOCABULARY, Some(WIDTH)),
        (layer("input_layernorm"), WIDTH, None),
        (layer("self_attn.q_proj"), WIDTH, Some(WIDTH)),
        (layer("self_attn.k_proj"), values, Some(WIDTH)),
        (layer("self_attn.v_proj"), values, Some(WIDTH)),
        (layer("self_attn.o_proj"), WIDTH, Some(WIDTH)),
        (layer("post_attention_layernorm"), WIDTH, None),
        (layer("mlp.gate_proj"), HIDDEN, Some(WIDTH)),
        (layer("mlp.up_proj"), HIDDEN, Some(WIDTH)),
        (layer("mlp.down_proj"), WIDTH, Some(HIDDEN)),
        ("model.norm.weight".to_owned(), WIDTH, None),
    ]
}

struct Model {
    _dir: tempfile::TempDir,
    checkpoint: Checkpoint,
    values: Vec<Vec<f32>>,
}

fn model(config: &serde_json::Value) -> Model {
    with_head(config, false)
}

/// The model, with a copy of the embedding under the head's name or not.
fn with_head(config: &serde_json::Value, copied: bool) -> Model {
    let mut numbers = Numbers(7);
    let mut values = Vec::new();
    let mut tensors = Vec::new();
    for (name, rows, cols) in shapes() {
        let spread = |at: usize| 0.2 + (at % 5) as f32;
        let count = rows * cols.unwrap_or(1);
        let of: Vec<f32> = (0..count).map(|at| spread(at) * numbers.normal() as f32).collect();
        let shape: Vec<u64> = [Some(rows), cols].into_iter().flatten().map(|length| length as u64).collect();
        tensors.push(made(&name, Float::F32, &shape, &of));
        values.push(of);
    }
    if copied {
        tensors.push(made("lm_head.weight", Float::F32, &[VOCABULARY as u64, WIDTH as u64], &values[0]));
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.safetensors"), safetensors(&tensors, "")).unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    Model { _dir: dir, checkpoint, values }
}

fn llama() -> serde_json::Value {
    serde_json::json!({
        "model_type": "llama", "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "hidden_act": "silu", "tie_word_embeddings": true,
    })
}

impl Model {
    fn derive(&self, prior: Prior) -> (Vec<(String, MatrixSensitivity)>, Vec<String>) {
        let crew = Crew::new(2, CHUNK_BYTES);
        let names = names(&self.checkpoint);
        let candidates = candidates(&self.checkpoint, &names);
        let found = derive(crew.pass(&self.checkpoint, Isa::detect()), &candidates, prior).unwrap();
        let names = candidates.iter().map(|candidate| candidate.tensor(&self.checkpoint).name.clone());
        (names.zip(found).collect(), crew.progress.warnings())
    }

    fn of(&self, ending: &str) -> &[f32] {
        let at = shapes().iter().position(|(name, ..)| name.ends_with(&format!("{ending}.weight"))).unwrap();
        &self.values[at]
    }

    /// Moments behind the linear layer `ending`.
    fn through(&self, ending: &str, k: &[f64]) -> Vec<f64> {
        let row = |row: &[f32]| row.iter().zip(k).map(|(w, k)| f64::from(*w) * f64::from(*w) * k).sum();
        self.of(ending).chunks(k.len()).map(row).collect()
    }

    fn behind(&self, norm: &str, stream: &[f64]) -> Vec<f64> {
        let mean = stream.iter().sum::<f64>() / stream.len() as f64;
        let gains = self.of(norm).iter().map(|gain| f64::from(*gain));
        stream.iter().zip(gains).map(|(channel, gain)| gain * gain * channel / mean).collect()
    }
}

fn plain(values: &[f32]) -> f64 {
    values.iter().map(|w| f64::from(*w) * f64::from(*w)).sum()
}

/// `k` with a share `flat` of the energy for all channels alike.
fn mixed(values: &[f32], k: &[f64], flat: f64) -> Vec<f64> {
    let weighted: f64 = values
        .chunks(k.len())
        .map(|row| row.iter().zip(k).map(|(w, k)| f64::from(*w) * f64::from(*w) * k).sum::<f64>())
        .sum();
    k.iter().map(|k| (1.0 - flat) * plain(values) / weighted * k + flat).collect()
}

#[test]
fn moments_follow_the_residual_stream() {
    let model = model(&llama());
    let (found, warnings) = model.derive(Prior::Roles);
    assert!(warnings.is_empty(), "{warnings:?}");

    let mut stream = vec![0.0; WIDTH];
    for row in model.of("embed_tokens").chunks(WIDTH) {
        for (channel, w) in stream.iter_mut().zip(row) {
            *channel += f64::from(*w) * f64::from(*w) / VOCABULARY as f64;
        }
    }
    let attention = model.behind("input_layernorm", &stream);
    let values = model.through("v_proj", &attention);
    let carried: Vec<f64> = (0..WIDTH).map(|at| values[at / (WIDTH / KV_HEADS) * 4 + at % 4]).collect();
    let add = |stream: &mut Vec<f64>, added: Vec<f64>| stream.iter_mut().zip(added).for_each(|(s, a)| *s += a);
    add(&mut stream, model.through("o_proj", &carried));
    let mlp = model.behind("post_attention_layernorm", &stream);
    let (gate, up) = (model.through("gate_proj", &mlp), model.through("up_proj", &mlp));
    let inner: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| second_moment(Activation::Silu, *gate) * up).collect();
    add(&mut stream, model.through("down_proj", &inner));
    let last = model.behind("model.norm", &stream);

    let (looked_up, head) =
        (Prior::Roles.of(crate::name::Role::Embedding, None, 1), { Prior::Roles.of(crate::name::Role::Head, None, 1) });
    let tied = (looked_up + head * FLAT_SHARE) / (looked_up + head);
    let expected = [
        ("embed_tokens", &last, tied),
        ("q_proj", &attention, FLAT_SHARE),
        ("k_proj", &attention, FLAT_SHARE),
        ("v_proj", &attention, FLAT_SHARE),
        ("o_proj", &carried, FLAT_SHARE),
        ("gate_proj", &mlp, FLAT_SHARE),
        ("up_proj", &mlp, FLAT_SHARE),
        ("down_proj", &inner, FLAT_SHARE),
    ];
    for ((name, measured), (ending, k, flat)) in found.iter().zip(expected) {
        assert!(name.ends_with(&format!("{ending}.weight")), "{name}");
        assert_eq!(measured.origin, Origin::Propagated, "{name}");
        let expected = mixed(model.of(ending), k, flat);
        for (found, expected) in measured.vectors.importance.iter().zip(&expected) {
            assert!((f64::from(*found) / expected - 1.0).abs() < 1e-4, "{name}: {found} {expected}");
        }
        // The gain makes an error as large as the matrix cost what the table says.
        let Gain::Same(gain) = measured.vectors.gain else { panic!("{name}: one gain for all rows") };
        let energy: f64 = model
            .of(ending)
            .chunks(expected.len())
            .map(|row| row.iter().zip(&expected).map(|(w, k)| f64::from(*w) * f64::from(*w) * k).sum::<f64>())
            .sum();
        assert!((0.5 * gain * energy / measured.signal - 1.0).abs() < 1e-4, "{name}");
    }
}

#[test]
fn without_a_known_structure_all_channels_count_alike_and_it_is_said() {
    let mut config = llama();
    config["hidden_act"] = "something else".into();
    let (found, warnings) = model(&config).derive(Prior::None);
    assert!(warnings.len() == 1 && warnings[0].contains("`something else` is not known"), "{warnings:?}");
    for (name, measured) in found {
        assert_eq!(measured.origin, Origin::Flat, "{name}");
        assert!(measured.vectors.importance.iter().all(|k| *k == 1.0), "{name}");
        assert_eq!(measured.signal, 1.0, "{name}");
    }
}

#[test]
fn a_copy_of_a_tied_head_changes_nothing_of_the_embedding() {
    let tied = model(&llama()).derive(Prior::Roles).0;
    let copied = with_head(&llama(), true).derive(Prior::Roles).0;
    assert_eq!(copied[..tied.len()], tied);

    // A head of its own takes its use away from the embedding.
    let mut config = llama();
    config["tie_word_embeddings"] = false.into();
    let own = with_head(&config, true).derive(Prior::Roles).0;
    assert!(own[0].1.signal < tied[0].1.signal);
    assert_eq!(own[tied.len()].1.origin, Origin::Propagated);
}
