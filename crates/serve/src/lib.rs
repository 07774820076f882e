//! The server.

pub mod backend;
pub mod tensor;
