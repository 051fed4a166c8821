//! The clock that rates are taken by.

use rustix::time::{ClockId, clock_gettime};

/// Time that this process has had of all cores.
pub(super) fn processor_seconds() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}
