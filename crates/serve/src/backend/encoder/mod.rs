//! BERT-family sentence encoders, run natively.

/// Turns texts into token ids.
#[derive(Debug)]
pub struct TextTokenizer;
