//! The probe: its gradients against differences, the same bits however it is run, and what it will not run.

use crate::arch::runnable;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::stream::CHUNK_BYTES;
use crate::dtype::Float;
use crate::error::Result;
use crate::probe::feedback;
use crate::probe::tokens::WINDOW;
use crate::probe::vocabulary::Vocabulary;
use crate::probe::{Mode, Options, Probe, probe};
use crate::sensitivity::from_probe::table;
use crate::simd::Isa;
use serde_json::json;

use super::support::{Crew, Made, Numbers, made, safetensors};

const WIDTH: usize = 16;
const VOCABULARY: usize = 24;
const ONE_WINDOW: Options = Options { tokens: WINDOW, mode: Mode::Random, draws: 1, seed: 0, seeing: true };

fn config() -> serde_json::Value {
    json!({
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "vocab_size": VOCABULARY, "tie_word_embeddings": true,
    })
}

/// Name and shape of each tensor.
fn shapes() -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, WIDTH])];
    for layer in 0..2 {
        for (name, shape) in [
            ("input_layernorm", vec![WIDTH]),
            ("self_attn.q_proj", vec![WIDTH, WIDTH]),
            ("self_attn.k_proj", vec![WIDTH / 2, WIDTH]),
            ("self_attn.v_proj", vec![WIDTH / 2, WIDTH]),
            ("self_attn.o_proj", vec![WIDTH, WIDTH]),
            ("post_attention_layernorm", vec![WIDTH]),
            ("mlp.gate_proj", vec![24, WIDTH]),
            ("mlp.up_proj", vec![24, WIDTH]),
            ("mlp.down_proj", vec![WIDTH, 24]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    shapes.push(("model.norm.weight".to_owned(), vec![WIDTH]));
    shapes
}

/// A small Llama whose weights can be changed.
struct Model {
    values: Vec<(String, Vec<usize>, Vec<f32>)>,
    config: serde_json::Value,
    files: Vec<(&'static str, String)>,
}

impl Model {
    fn new() -> Self {
        let mut numbers = Numbers(11);
        let of = |(name, shape): (String, Vec<usize>)| {
            let is_norm = shape.len() == 1;
            let spread = 1.2 / (shape[shape.len() - 1] as f64).sqrt();
            let values = (0..shape.iter().product()).map(|_| {
                let value = numbers.normal();
                (if is_norm { 1.0 + 0.2 * value } else { spread * value }) as f32
            });
            let values = values.collect();
            (name, shape, values)
        };
        Self { values: shapes().into_iter().map(of).collect(), config: config(), files: Vec::new() }
    }

    fn tensors(&self, float: Float) -> Vec<Made> {
        let shape = |shape: &[usize]| shape.iter().map(|&length| length as u64).collect::<Vec<_>>();
        self.values.iter().map(|(name, of, values)| made(name, float, &shape(of), values)).collect()
    }

    fn write(&self, float: Float) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model.safetensors"), safetensors(&self.tensors(float), "")).unwrap();
        std::fs::write(dir.path().join("config.json"), self.config.to_string()).unwrap();
        for (name, text) in &self.files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    /// Runs it as `threads` and `isa` say.
    fn probe_with(&self, float: Float, options: Options, threads: usize, isa: Isa) -> Result<Probe> {
        let dir = self.write(float);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let model = runnable(&checkpoint).unwrap();
        let crew = Crew::new(threads, CHUNK_BYTES);
        probe(crew.pass(&checkpoint, isa), &model, options)
    }

    fn probe(&self, options: Options) -> Probe {
        self.probe_with(Float::F32, options, 1, Isa::detect()).unwrap()
    }

    /// Why it is not run.
    fn refusal(&self) -> String {
        let dir = self.write(Float::F32);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        runnable(&checkpoint).unwrap_err()
    }
}

/// `Σ u · logits`, the random gradients `u` held.
fn objective(gradients: &[f32], model: &Model) -> f64 {
    let trace = model.probe(ONE_WINDOW).trace.unwrap();
    trace.logits.iter().zip(gradients).map(|(&logit, &u)| f64::from(logit) * f64::from(u)).sum()
}

#[test]
fn moments_are_the_squares_of_gradients_found_by_differences() {
    let mut model = Model::new();
    let base = model.probe(ONE_WINDOW);
    let gradients = base.trace.as_ref().unwrap().gradients.clone();
    for which in 0..model.values.len() {
        let (name, shape, _) = model.values[which].clone();
        // Of the tied embedding two uses add up, and of one of them the expectation is known: see the test of families.
        let (&[rows, cols], false) = (shape.as_slice(), name.contains("embed")) else { continue };
        let moments = &base.moments[&(name.clone(), 0)];
        let (row, col) = (rows / 3, cols / 2);
        let mut gradient = |at: usize| {
            let value = model.values[which].2[at];
            let mut moved = |by: f32| {
                model.values[which].2[at] = value + by;
                objective(&gradients, &model)
            };
            let found = (moved(0.01) - moved(-0.01)) / 0.02;
            model.values[which].2[at] = value;
            found
        };
        let of_column: f64 = (0..rows).map(|row| gradient(row * cols + col)).map(|found| found * found).sum();
        let of_row: f64 = (0..cols).map(|col| gradient(row * cols + col)).map(|found| found * found).sum();
        assert!((moments.inputs[col] / of_column - 1.0).abs() < 0.02, "{name}: {} {of_column}", moments.inputs[col]);
        assert!((moments.outputs[row] / of_row - 1.0).abs() < 0.02, "{name}: {} {of_row}", moments.outputs[row]);
    }
}

/// The bits of everything that a run found.
fn bits(found: &Probe) -> Vec<u64> {
    let mut bits: Vec<u64> = found.tokens.iter().map(|&token| u64::from(token)).collect();
    for moments in found.moments.values() {
        let all = moments.inputs.iter().chain(&moments.outputs).chain(&moments.squares);
        bits.extend(all.map(|value| value.to_bits()));
    }
    bits.extend(found.lookups.iter().flatten().map(|value| value.to_bits()));
    bits
}

#[test]
fn the_same_bits_for_any_threads_and_instructions() {
    let model = Model::new();
    for mode in [Mode::Random, Mode::Written] {
        let options = Options { tokens: 3 * WINDOW, mode, draws: 2, seed: 0, seeing: false };
        for float in [Float::F32, Float::BF16, Float::F16] {
            let of = |threads, isa| bits(&model.probe_with(float, options, threads, isa).unwrap());
            let expected = of(1, Isa::detect());
            assert_eq!(of(3, Isa::detect()), expected, "{mode:?} {float:?}");
            for isa in Isa::available() {
                assert_eq!(of(2, isa), expected, "{mode:?} {float:?} {isa:?}");
            }
        }
    }
}

/// A model whose second layer is a mixture of two experts, of which each token goes to one.
fn mixture() -> Model {
    let mut model = Model::new();
    model.config["model_type"] = json!("qwen3_moe");
    model.config["num_experts_per_tok"] = json!(1);
    model.values.retain(|(name, ..)| !name.contains("layers.1.mlp"));
    let mut numbers = Numbers(12);
    let mut add = |name: &str, shape: [usize; 2]| {
        let values = (0..shape[0] * shape[1]).map(|_| 0.3 * numbers.normal() as f32).collect();
        model.values.push((format!("model.layers.1.mlp.{name}.weight"), shape.to_vec(), values));
    };
    add("gate", [2, WIDTH]);
    for expert in 0..2 {
        add(&format!("experts.{expert}.gate_proj"), [8, WIDTH]);
        add(&format!("experts.{expert}.up_proj"), [8, WIDTH]);
        add(&format!("experts.{expert}.down_proj"), [WIDTH, 8]);
    }
    model
}

#[test]
fn a_visit_finds_the_same_factors_however_many_windows_pass_a_layer_together() {
    for model in [Model::new(), mixture()] {
        let dir = model.write(Float::F32);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let runnable = runnable(&checkpoint).unwrap();
        let crew = Crew::new(2, CHUNK_BYTES);
        let pass = crew.pass(&checkpoint, Isa::detect());
        let options = Options { tokens: WINDOW, mode: Mode::Random, draws: 2, ..Options::default() };
        let recording = feedback::probe(pass, &runnable, options).unwrap().recording;
        let of = |step: usize| {
            let mut found = Vec::new();
            feedback::visit_by(step, (pass, &runnable), &recording, (0, &|_| true), &mut |linear, factor| {
                let importance = factor.map(|factor| factor.importance().iter().map(|k| k.to_bits()).collect());
                found.push((linear.weight.name.clone(), importance));
                Ok(())
            })
            .unwrap();
            found
        };
        let all: Vec<(String, Option<Vec<u32>>)> = of(32);
        assert!(all.iter().filter(|(_, importance)| importance.is_some()).count() >= 14, "{all:?}");
        for step in [1, 3] {
            assert_eq!(of(step), all, "{step}");
        }
    }
}

#[test]
fn more_windows_begin_with_the_same_ones() {
    let model = Model::new();
    for mode in [Mode::Random, Mode::Written] {
        let of = |windows: usize| {
            model.probe(Options { tokens: windows * WINDOW, mode, draws: 1, seed: 0, seeing: false }).tokens
        };
        let (few, many) = (of(2), of(5));
        assert_eq!(few[..], many[..few.len()]);
        assert_ne!(many[..WINDOW], many[WINDOW..2 * WINDOW]);
    }
}

#[test]
fn another_seed_draws_other_tokens_from_the_first_window_on() {
    let model = Model::new();
    for mode in [Mode::Random, Mode::Written] {
        let of = |seed| model.probe(Options { tokens: 2 * WINDOW, mode, draws: 1, seed, seeing: false }).tokens;
        let all = [0, 1, 2, u32::MAX].map(of);
        for (at, one) in all.iter().enumerate() {
            assert_eq!(one.len(), 2 * WINDOW);
            for other in &all[..at] {
                let same = one.iter().zip(other).filter(|(one, other)| one == other).count();
                // By chance, one in as many as there are tokens to draw.
                assert!(same < WINDOW, "{mode:?}: {same} tokens of {} are the same", one.len());
            }
        }
    }
}

#[test]
fn special_tokens_are_not_drawn_and_the_first_one_is_where_it_belongs() {
    let mut model = Model::new();
    let added = [(0, "<s>", true), (1, "</s>", true), (2, "<mark>", false)];
    let added: Vec<_> =
        added.map(|(id, content, special)| json!({"id": id, "content": content, "special": special})).into();
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..20).map(|id| (format!("piece{id}"), json!(id))).collect();
    model.files = vec![
        ("tokenizer.json", json!({"added_tokens": added, "model": {"type": "BPE", "vocab": vocab}}).to_string()),
        ("tokenizer_config.json", json!({"bos_token": "<s>"}).to_string()),
    ];
    let vocabulary = |model: &Model| {
        let dir = model.write(Float::F32);
        Vocabulary::of(&Checkpoint::open(dir.path()).unwrap(), VOCABULARY).unwrap()
    };
    // Rows from 20 on are no tokens.
    let found = vocabulary(&model);
    assert_eq!((found.first(), found.allowed()), (Some(0), &(2..20).collect::<Vec<u32>>()[..]));
    for mode in [Mode::Random, Mode::Written] {
        let tokens = model.probe(Options { tokens: 4 * WINDOW, mode, draws: 1, seed: 0, seeing: false }).tokens;
        for window in tokens.chunks(WINDOW) {
            assert!(window[0] == 0 && window[1..].iter().all(|token| (2..20).contains(token)), "{window:?}");
        }
    }
    // A tokenizer that names no first token has none; without one the configuration is asked.
    model.config["bos_token_id"] = json!(5);
    model.files[1].1 = json!({"bos_token": {"content": "</s>"}}).to_string();
    assert_eq!(vocabulary(&model).first(), Some(1));
    model.files[1].1 = json!({"bos_token": null}).to_string();
    assert_eq!(vocabulary(&model).first(), None);
    model.files.clear();
    model.config["eos_token_id"] = json!([7, 8]);
    let found = vocabulary(&model);
    assert_eq!(found.first(), Some(5));
    assert!(found.allowed().len() == VOCABULARY - 3 && ![5, 7, 8].iter().any(|id| found.allowed().contains(id)));
}

#[test]
fn what_is_not_understood_is_not_run_and_the_reason_is_said() {
    let refusal = |change: fn(&mut Model)| {
        let mut model = Model::new();
        change(&mut model);
        model.refusal()
    };
    let extra = |model: &mut Model, name: &str, shape: &[usize]| {
        model.values.push((name.to_owned(), shape.to_vec(), vec![0.5; shape.iter().product()]));
    };
    let said = refusal(|model| model.config["model_type"] = json!("novel"));
    assert!(said.contains("not one of those that are known"), "{said}");
    let said = refusal(|model| drop(model.config.as_object_mut().unwrap().remove("rms_norm_eps")));
    assert!(said.contains("no epsilon"), "{said}");
    let said = refusal(|model| model.config["num_hidden_layers"] = json!(3));
    assert!(said.contains("2 layers were found"), "{said}");
    let said = refusal(|model| model.config["rope_scaling"] = json!({"rope_type": "spiral", "factor": 2.0}));
    assert!(said.contains("rotary scaling `spiral`"), "{said}");
    let said = refusal(|model| model.config["hidden_act"] = json!("xielu"));
    assert!(said.contains("`xielu`"), "{said}");
    let said = refusal(|model| model.values.retain(|(name, ..)| !name.contains("layers.1.mlp.up_proj")));
    assert!(said.contains("layer 1: the first matrices of the MLP"), "{said}");
    let mut model = Model::new();
    extra(&mut model, "model.layers.1.self_attn.q_norm.weight", &[7]);
    let said = model.refusal();
    assert!(said.contains("layer 1") && said.contains("q_norm") && said.contains("[7]"), "{said}");
    let mut model = Model::new();
    extra(&mut model, "model.layers.1.mlp.shortcut.weight", &[WIDTH, WIDTH]);
    let said = model.refusal();
    assert!(said.contains("`model.layers.1.mlp.shortcut.weight` has no place"), "{said}");
}

#[test]
fn a_mixture_is_not_run_if_its_experts_differ_or_a_gate_has_no_expert() {
    let mixture = |expert_gates: usize, shared: bool| {
        let mut model = Model::new();
        model.config["model_type"] = json!("qwen3_moe");
        model.config["num_experts_per_tok"] = json!(1);
        model.values.retain(|(name, ..)| !name.contains("layers.1.mlp"));
        let mut add = |name: &str, shape: [usize; 2]| {
            let name = format!("model.layers.1.mlp.{name}.weight");
            model.values.push((name, shape.to_vec(), vec![0.5; shape.iter().product()]));
        };
        add("gate", [2, WIDTH]);
        for expert in 0..2 {
            if expert < expert_gates {
                add(&format!("experts.{expert}.gate_proj"), [8, WIDTH]);
            }
            add(&format!("experts.{expert}.up_proj"), [8, WIDTH]);
            add(&format!("experts.{expert}.down_proj"), [WIDTH, 8]);
        }
        if shared {
            add("shared_expert_gate", [1, WIDTH]);
        }
        let dir = model.write(Float::F32);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        runnable(&checkpoint).map(drop)
    };
    assert_eq!(mixture(2, false), Ok(()));
    assert_eq!(mixture(0, false), Ok(()));
    assert_eq!(mixture(1, false), Err("layer 1: its experts do not have the same matrices".to_owned()));
    let said = mixture(2, true).unwrap_err();
    assert!(said.contains("`model.layers.1.mlp.shared_expert_gate.weight` has no place"), "{said}");
}

#[test]
fn weights_that_are_no_numbers_are_named_and_numbers_too_large_are_not_called_so() {
    let of = |value: f32| {
        let mut model = Model::new();
        let at = model.values.iter().position(|(name, ..)| name.contains("layers.1.self_attn.v_proj")).unwrap();
        model.values[at].2[5 * WIDTH + 2] = value;
        model.probe_with(Float::F32, ONE_WINDOW, 2, Isa::detect()).unwrap_err()
    };
    let fault = of(f32::NAN);
    assert_eq!((fault.slug(), fault.tensor()), ("non-finite", Some("model.layers.1.self_attn.v_proj.weight")));
    assert!(fault.to_string().contains("[5, 2]"), "{fault}");
    let fault = of(3e38);
    assert!(["unrunnable", "too-large"].contains(&fault.slug()), "{fault}");
}

#[test]
fn vectors_are_the_moments_per_token_and_add_up() {
    let model = Model::new();
    let found = model.probe(Options { tokens: 2 * WINDOW, draws: 2, seed: 0, seeing: false, mode: Mode::Random });
    let dir = model.write(Float::F32);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let (table, warnings) = table(&runnable(&checkpoint).unwrap(), &found);
    assert!(warnings.is_empty(), "{warnings:?}");
    let matrices: Vec<_> = checkpoint.tensors.iter().filter_map(|tensor| Some((tensor, tensor.matrix()?))).collect();
    assert_eq!(table.len(), matrices.len());
    for (tensor, matrix) in matrices {
        let vectors = &table[&tensor.name];
        assert_eq!((vectors.k.len() as u64, vectors.r.len() as u64), (matrix.cols, matrix.rows), "{}", tensor.name);
        let mean = vectors.k.iter().map(|&k| f64::from(k)).sum::<f64>() / matrix.cols as f64;
        assert!((mean - 1.0).abs() < 1e-5, "{}: {mean}", tensor.name);
        if let Some(moments) = found.moments.get(&(tensor.name.clone(), 0)).filter(|_| !tensor.name.contains("embed")) {
            let per_token = moments.total() / (4 * WINDOW) as f64;
            let gains = vectors.r.iter().map(|&r| f64::from(r)).sum::<f64>() * matrix.cols as f64;
            assert!((gains / per_token - 1.0).abs() < 1e-5, "{}", tensor.name);
        }
    }
}
