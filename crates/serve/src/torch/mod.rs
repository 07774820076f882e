//! LibTorch beyond tch: the only unsafe code of this crate.

#![allow(unsafe_code)]

pub mod attention;
pub mod device;
pub mod gauge;
mod guard;
pub mod linear;
pub mod mapped;
pub mod memory;
pub mod module;
mod over;
pub mod paged;
pub mod product;
pub mod region;
pub mod reserved;
pub mod rows;
pub mod shim;
pub mod tensor;
