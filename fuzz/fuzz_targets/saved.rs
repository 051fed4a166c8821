//! Reads a saved document, and uses it: an analysis is planned from, a plan is compared with the checkpoint.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ramrs::{Analysis, Manifest, Plan, PlanRequest, Progress, QuantizeRequest, Saved};
use ramrs_fuzz::Folder;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let saved = Saved::Given(text.to_owned());
    let (progress, folder) = (Progress::default(), Folder::open());
    if saved.read::<Analysis>().is_ok() {
        for budget in ["4.0", "30%", "100KB"] {
            let analysis = Some(saved.clone());
            let request = PlanRequest { analysis, budget: Some(budget.to_owned()), ..PlanRequest::default() };
            let Ok(plan) = ramrs::plan(&request, &progress) else { continue };
            let budget = plan.totals.budget_bytes.expect("a plan for a budget states it");
            assert!(plan.totals.tensor_bytes <= budget);
        }
    } else if saved.read::<Plan>().is_ok() {
        let plan = PlanRequest { model: folder.request(), ..PlanRequest::default() };
        let output = folder.path("output");
        let request =
            QuantizeRequest { plan, saved_plan: Some(saved), output, dry_run: true, ..QuantizeRequest::default() };
        let _ = ramrs::quantize(&request, &progress);
    } else {
        let _ = saved.read::<Manifest>();
    }
});
