//! Documents survive a round trip, and readers reject everything else.

use std::fs;
use std::path::Path;

use crate::codec::Effort;
use crate::error::{DocumentSource, Error, Result};
use crate::name::Role;
use crate::policy::PolicyOptions;
use crate::rate_distortion::Objective;
use crate::schema::analysis::{self, Analysis};
use crate::schema::manifest::{self, Manifest};
use crate::schema::plan::{self, Plan};
use crate::schema::{self, Saved, Settings, SourceId, Tool};
use crate::sensitivity::Origin;
use crate::sensitivity::prior::Prior;
use serde_json::{Value, json};

fn source() -> SourceId {
    SourceId { headers_sha256: "ab".repeat(32), parameters: 8_192, tensor_bytes: 16_512, file_bytes: 17_000 }
}

fn settings() -> Settings {
    Settings {
        format: "mlx".to_owned(),
        target: None,
        tensor_parallel: 1,
        head: None,
        generic: false,
        laid_out_by: None,
        effort: Effort::Normal,
        objective: Objective::Output,
        sensitivity: "weights".to_owned(),
        sensitivity_sha256: "cd".repeat(32),
        probe: None,
        prior: Prior::Roles,
        prior_version: 1,
    }
}

/// Losses that survive a round trip only at full precision.
const LOSSES: [f64; 3] = [0.1 + 0.2, 1.0 / 3.0 * 1e-7, 5e-324];

fn an_analysis() -> Analysis {
    let point = |scheme: &str, loss, standard_error| analysis::RdPoint {
        scheme: scheme.parse().unwrap(),
        loss,
        sqnr_db: 12.34,
        standard_error,
    };
    let points = vec![
        point("2g64", LOSSES[0], 0.0),
        point("4g64", LOSSES[1], 0.012_345_678_901_234_567),
        point("8g32", LOSSES[2], 0.0),
    ];
    let curve = analysis::RdCurve {
        family: "a".to_owned(),
        origin: Origin::Propagated,
        signal: 1.5,
        energy: 2.5,
        matrices: vec![analysis::StackedEnergy { signal: LOSSES[0], energy: LOSSES[1] }],
        points,
    };
    let tensor = |name: &str, shape: &[u64], kept: Option<&str>, curve| analysis::AnalyzedTensor {
        name: name.to_owned(),
        dtype: "BF16".to_owned(),
        shape: shape.to_vec(),
        packed: None,
        bytes: 2 * shape.iter().product::<u64>(),
        role: Role::Query,
        layer: Some(3),
        sources: vec!["b".to_owned()],
        kept: kept.map(str::to_owned),
        curve,
    };
    Analysis {
        ramrs_analysis: analysis::VERSION,
        tool: Tool::this(),
        source: source(),
        settings: settings(),
        tensors: vec![
            tensor("a \"quoted\" \u{e9}", &[64, 128], None, Some(curve)),
            tensor("norm", &[64], Some("a norm"), None),
        ],
        warnings: vec!["one".to_owned()],
    }
}

fn a_plan() -> Plan {
    let uniform = plan::Uniform { scheme: "4g64".parse().unwrap(), loss: LOSSES[1], is_the_plan: false };
    Plan {
        ramrs_plan: plan::VERSION,
        tool: Tool::this(),
        source: source(),
        settings: settings(),
        policy: PolicyOptions { min_bits: Some(3), keep: vec!["^a$".to_owned()], ..PolicyOptions::default() },
        budget: Some("4.0".to_owned()),
        totals: plan::Totals {
            loss: LOSSES[0],
            lower_bound: Some(LOSSES[2]),
            best_uniform: Some(uniform),
            ..plan::Totals::default()
        },
        schemes_sha256: "0".repeat(64),
        trade_off: vec![plan::Size { effective_bpw: 2.5, tensor_bytes: 7, loss: LOSSES[1] }],
        tensors: vec![plan::PlannedTensor {
            name: "a".to_owned(),
            role: Role::GateUp,
            layer: None,
            scheme: "kept".parse().unwrap(),
            bytes: 9,
            loss: 0.0,
            sqnr_db: None,
            why: "a reason".to_owned(),
        }],
        warnings: Vec::new(),
    }
}

fn a_manifest() -> Manifest {
    let file = manifest::FileDigest { name: "config.json".to_owned(), bytes: 7, sha256: "ef".repeat(32) };
    let line = manifest::LedgerLine {
        tensor: "a".to_owned(),
        dtype: "F32".to_owned(),
        shape: vec![64, 128],
        file: "model.safetensors".to_owned(),
        sha256: "01".repeat(32),
        role: Role::Down,
        became: manifest::Became::Quantized,
        why: "the allocation".to_owned(),
        bytes: 99,
        into: vec!["a".to_owned()],
        quantized: vec![manifest::Quantized {
            into: "a".to_owned(),
            scheme: "3g128".parse().unwrap(),
            feedback: 0,
            origin: Origin::Flat,
            loss: LOSSES[0],
            sqnr_db: 20.5,
            squared_error: LOSSES[1],
            nrmse: LOSSES[2],
        }],
    };
    Manifest {
        ramrs_manifest: manifest::VERSION,
        tool: Tool::this(),
        source: source(),
        source_files: vec![file.clone()],
        settings: settings(),
        policy: PolicyOptions::default(),
        budget: None,
        totals: plan::Totals::default(),
        ledger: vec![line],
        tensors: vec![manifest::TensorDigest {
            name: "a.weight".to_owned(),
            dtype: "U32".to_owned(),
            shape: vec![64, 12],
            file: "model.safetensors".to_owned(),
            sha256: "23".repeat(32),
        }],
        files: vec![file],
        left_out: vec![manifest::LeftOut { name: "x.bin".to_owned(), why: "weights".to_owned() }],
        warnings: vec!["two".to_owned()],
        check: None,
    }
}

/// Writes `text` to a file and reads it with `read`.
fn read<T>(text: &str, read: impl Fn(&Path) -> Result<T>) -> Result<T> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("document.json");
    fs::write(&path, text).unwrap();
    read(&path)
}

fn reason<T: std::fmt::Debug>(found: Result<T>) -> String {
    let fault: Error = found.unwrap_err();
    assert_eq!(fault.slug(), "bad-document");
    assert!(fault.path().unwrap().ends_with("document.json"));
    fault.to_string()
}

#[test]
fn documents_survive_a_round_trip_bit_for_bit() {
    let (analysis, plan, manifest) = (an_analysis(), a_plan(), a_manifest());
    assert_eq!(read(&schema::text(&analysis).unwrap(), Analysis::read).unwrap(), analysis);
    assert_eq!(read(&schema::text(&plan).unwrap(), Plan::read).unwrap(), plan);
    assert_eq!(read(&schema::text(&manifest).unwrap(), Manifest::read).unwrap(), manifest);
    assert!(schema::text(&plan).unwrap().ends_with("}\n"));
}

/// Calls `check` with each document as JSON, and a function that returns its reader's error for a changed document.
fn each(check: impl Fn(&str, Value, &dyn Fn(&str) -> String)) {
    let value = |text: Result<String>| serde_json::from_str(&text.unwrap()).unwrap();
    check("analysis", value(schema::text(&an_analysis())), &|text| reason(read(text, Analysis::read)));
    check("plan", value(schema::text(&a_plan())), &|text| reason(read(text, Plan::read)));
    check("manifest", value(schema::text(&a_manifest())), &|text| reason(read(text, Manifest::read)));
}

#[test]
fn a_document_of_another_version_is_refused_before_anything_else_of_it_is_read() {
    each(|what, mut document, reason| {
        let read = document[format!("ramrs_{what}")].clone();
        for version in [json!(0), json!(3), json!("1"), json!(1.5), json!(-1)] {
            document[format!("ramrs_{what}")] = version.clone();
            document["of the future"] = json!(7);
            let message = reason(&document.to_string());
            let article = if what.starts_with('a') { "an" } else { "a" };
            let expected = format!("not {article} {what}: its version is {version}; this ramrs reads version {read}");
            assert!(message.contains(&expected), "{message}");
        }
    });
}

#[test]
fn a_document_without_a_version_is_refused() {
    each(|what, mut document, reason| {
        document.as_object_mut().unwrap().remove(&format!("ramrs_{what}"));
        let message = reason(&document.to_string());
        assert!(message.contains(&format!("it has no `ramrs_{what}`")), "{message}");
        for text in ["", "[]", "null", "{", "7", "{}x"] {
            reason(text);
        }
    });
}

#[test]
fn an_unknown_field_is_refused_by_name_wherever_it_is() {
    each(|_, document, reason| {
        for at in ["", "/tool", "/source", "/settings", "/tensors/0"] {
            let mut changed = document.clone();
            changed.pointer_mut(at).unwrap()["budgett"] = json!(1);
            let message = reason(&changed.to_string());
            assert!(message.contains("unknown field `budgett`"), "{message}");
        }
    });
}

#[test]
fn a_field_that_is_missing_or_of_another_kind_is_refused() {
    each(|_, document, reason| {
        let mut changed = document.clone();
        changed["source"].as_object_mut().unwrap().remove("parameters");
        assert!(reason(&changed.to_string()).contains("missing field `parameters`"));
        let mut changed = document;
        changed["source"]["parameters"] = json!(-1);
        reason(&changed.to_string());
    });
    let mut plan: Value = serde_json::from_str(&schema::text(&a_plan()).unwrap()).unwrap();
    plan["tensors"][0]["scheme"] = json!("7g64");
    assert!(reason(read(&plan.to_string(), Plan::read)).contains("`7g64` is not a scheme"));
    let mut analysis: Value = serde_json::from_str(&schema::text(&an_analysis()).unwrap()).unwrap();
    analysis["tensors"][0]["curve"]["points"][0] = json!(["4g64", 1.0]);
    reason(read(&analysis.to_string(), Analysis::read));
}

#[test]
fn a_document_that_is_not_there_is_an_input_error_with_its_path() {
    let fault = Plan::read(Path::new("/no/such/plan.json")).unwrap_err();
    assert_eq!((fault.slug(), fault.path()), ("io", Some(Path::new("/no/such/plan.json"))));
}

#[test]
fn a_request_takes_a_document_or_the_path_of_one() {
    let plan = a_plan();
    let saved = |value: &Value| serde_json::from_str::<Saved>(&value.to_string()).unwrap();
    let given = saved(&serde_json::to_value(&plan).unwrap());
    assert_eq!(given.read::<Plan>().unwrap(), plan);
    assert_eq!(given.place::<Plan>().to_string(), "the given plan");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a \"plan\".json");
    fs::write(&path, schema::text(&plan).unwrap()).unwrap();
    let named = saved(&json!(path));
    assert_eq!(named, Saved::File(path.clone()));
    assert_eq!(named.read::<Plan>().unwrap(), plan);
    assert_eq!(named.place::<Plan>(), DocumentSource::File(path));
    for saved in [given, named] {
        let again: Saved = serde_json::from_str(&serde_json::to_string(&saved).unwrap()).unwrap();
        assert_eq!(again, saved);
    }
}

#[test]
fn an_error_about_a_given_document_says_so() {
    for (value, reason) in
        [(json!({}), "it has no `ramrs_plan`"), (json!(7), "invalid type"), (json!([]), "invalid type")]
    {
        let saved: Saved = serde_json::from_str(&value.to_string()).unwrap();
        let fault = saved.read::<Plan>().unwrap_err();
        assert_eq!((fault.slug(), fault.path()), ("bad-document", None));
        assert!(fault.to_string().starts_with("the given plan is not valid: "), "{fault}");
        assert!(fault.to_string().contains(reason), "{fault}");
    }
}
