//! The server.

pub mod backend;
pub mod tensor;
pub mod torch;
