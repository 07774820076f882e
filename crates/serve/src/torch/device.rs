//! stub
use crate::config::DeviceSpec;
#[derive(Debug, thiserror::Error)] #[error("x")] pub struct DeviceError;
pub enum Requested { Auto, Cpu, Cuda(usize) }
pub fn select(_: DeviceSpec) -> Result<tch::Device, DeviceError> { Ok(tch::Device::Cpu) }
pub fn name(_: tch::Device) -> String { "cpu".into() }
