//! Analyzes a checkpoint under the sensitivity file that is the input.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ramrs::{AnalysisRequest, Progress};
use ramrs_fuzz::Folder;

fuzz_target!(|bytes: &[u8]| {
    let folder = Folder::open();
    folder.write("sensitivity", bytes);
    let sensitivity = folder.path("sensitivity");
    let request = AnalysisRequest { sensitivity, sample_bands: 1, ..folder.request() };
    let Ok(analysis) = ramrs::analyze(&request, &Progress::default()) else { return };
    for curve in analysis.tensors.iter().filter_map(|tensor| tensor.curve.as_ref()) {
        assert!(curve.points.iter().all(|point| point.loss >= 0.0 && point.loss.is_finite()));
    }
});
