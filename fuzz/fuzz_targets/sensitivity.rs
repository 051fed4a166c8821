//! Plans a checkpoint under the sensitivity file that is the input.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ramrs::{AnalysisRequest, PlanRequest, Progress};
use ramrs_fuzz::Folder;

fuzz_target!(|bytes: &[u8]| {
    let folder = Folder::open();
    folder.write("sensitivity", bytes);
    let sensitivity = folder.path("sensitivity");
    let model = AnalysisRequest { sensitivity, sample_bands: 1, ..folder.request() };
    let request = PlanRequest { model, budget: Some("5.0".to_owned()), ..PlanRequest::default() };
    let Ok(plan) = ramrs::plan(&request, &Progress::default()) else { return };
    assert!(plan.tensors.iter().all(|tensor| tensor.loss >= 0.0 && tensor.loss.is_finite()));
});
