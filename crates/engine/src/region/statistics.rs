//! What a region tells of itself in numbers.
//!
//! *Locks*: none. *Threads*: any.

use super::Region;

impl Region {
    /// Names and values, in order, for the language above: what was counted, and what is so at present.
    #[must_use]
    pub fn statistics(&self) -> Vec<(&'static str, i64)> {
        let mut fields = self.counters.snapshot().fields();
        let [copy, moved] = self.policy.costs().map(|cost| i64::try_from(cost).unwrap_or(i64::MAX));
        fields.extend([
            ("present_units", self.states.count_present() as i64),
            ("units", self.states.len() as i64),
            ("failure_epoch", self.exposures.count() as i64),
            ("copy_nanoseconds", copy),
            ("move_nanoseconds", moved),
            ("staging_slots", self.stock.as_ref().map_or(0, |stock| i64::from(stock.populated_slots()))),
        ]);
        fields
    }
}
