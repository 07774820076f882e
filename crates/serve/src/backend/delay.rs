//! stub
use super::*;
pub struct DelayOptions { pub batch_time: std::time::Duration, pub item_time: std::time::Duration, pub instances: usize }
pub fn load(_: &DelayOptions) -> Loaded { unimplemented!() }
