//! stub
use super::*;
use crate::config::Format;
pub struct Builtin { pub file: &'static str, pub format: Format, pub inputs: Vec<TensorSpec>, pub outputs: Vec<TensorSpec> }
pub fn find(_: &str) -> Option<Builtin> { None }
