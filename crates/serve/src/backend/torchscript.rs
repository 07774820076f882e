//! stub
use super::*;
pub struct TorchScriptOptions { pub path: std::path::PathBuf, pub inputs: Vec<TensorSpec>, pub outputs: Vec<TensorSpec>, pub device: tch::Device, pub instances: usize, pub threads: usize, pub warmup: usize, pub max_batch_size: usize }
pub fn load(_: &TorchScriptOptions) -> Result<Loaded, String> { unimplemented!() }
