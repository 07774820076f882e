//! The bytes that each token stands for, as tokenizer.json's decoder makes them.
//!
//! For every decoder read here, what a token stands for depends on the token alone, but for the first of a
//! text, which some let lose a space. So the bytes of all tokens are made once, and a text is their bytes in
//! a row. Unlike the decoder's own way with byte tokens, this never makes one wrong byte spoil the right ones
//! beside it.

use std::path::Path;

use tokenizers::{Decoder, DecoderWrapper};

use crate::backend::checkpoint::CheckpointError;

/// Stands before a token, so that the decoder does not take that for the first.
const BEFORE: &str = "a";

/// Bytes of all tokens by id.
#[derive(Debug)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where each token's bytes end; they begin where those of the token before end.
    ends: Vec<usize>,
}

impl Pieces {
    /// Of the tokens by id; `None` where an id has no token.
    pub(super) fn new(
        tokens: &[Option<String>],
        decoding: &Decoding,
        path: &Path,
    ) -> Result<Self, CheckpointError> {
        let mut pieces = Self { bytes: Vec::new(), ends: Vec::with_capacity(tokens.len()) };
        for token in tokens {
            if let Some(token) = token {
                let bytes = decoding.bytes(token).map_err(|message| CheckpointError::Invalid {
                    path: path.to_owned(),
                    message: format!("its decoder fails on token {token:?}: {message}"),
                })?;
                pieces.bytes.extend_from_slice(&bytes);
            }
            pieces.ends.push(pieces.bytes.len());
        }
        Ok(pieces)
    }

    /// Whether each byte is a token, so that nothing is left without one.
    pub(super) fn has_all_bytes(&self) -> bool {
        let mut found = [false; 256];
        for id in 0..self.ends.len() {
            if let &[byte] = self.bytes(u32::try_from(id).unwrap_or(u32::MAX)) {
                found[usize::from(byte)] = true;
            }
        }
        found.iter().all(|&found| found)
    }

    /// Bytes of the longest token.
    pub(super) fn longest(&self) -> usize {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(start, end)| end - start).max().unwrap_or(0)
    }

    /// What a token stands for within a text; nothing for an id without a token.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let at = id as usize;
        let Some(&end) = self.ends.get(at) else { return &[] };
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.bytes[start..end]
    }
}

/// How tokens become bytes.
#[derive(Debug)]
pub(super) struct Decoding {
    /// What happens to a token, as text; none joins tokens with spaces.
    steps: Vec<DecoderWrapper>,
    spaced: bool,
    /// The byte of each character of the byte-level alphabet, where tokens are spelled in that.
    alphabet: Option<Vec<Option<u8>>>,
    /// Whether `<0x0A>` is a byte.
    byte_tokens: bool,
}

impl Decoding {
    /// Reads the decoder of the tokenizer.json at `path`.
    pub(super) fn new(decoder: Option<&DecoderWrapper>, path: &Path) -> Result<Self, CheckpointError> {
        let mut steps = Vec::new();
        if let Some(decoder) = decoder {
            flatten(decoder, &mut steps);
        }
        let unsupported = |what: &str| CheckpointError::Unsupported {
            path: path.to_owned(),
            what: what.to_owned(),
            supported: "ByteLevel, ByteFallback, Metaspace, WordPiece, Replace, Strip, Fuse, Sequence"
                .to_owned(),
        };
        let mut alphabet = None;
        if let Some(at) = steps.iter().position(|step| matches!(step, DecoderWrapper::ByteLevel(_))) {
            if steps[at + 1..].iter().any(|step| !matches!(step, DecoderWrapper::Fuse(_))) {
                return Err(unsupported("a decoder after ByteLevel"));
            }
            steps.truncate(at);
            alphabet = Some(byte_level_alphabet());
        }
        for step in &steps {
            match step {
                DecoderWrapper::BPE(_) => return Err(unsupported("the decoder BPEDecoder")),
                DecoderWrapper::CTC(_) => return Err(unsupported("the decoder CTC")),
                _ => {}
            }
        }
        let byte_tokens = steps.iter().any(|step| matches!(step, DecoderWrapper::ByteFallback(_)));
        Ok(Self { steps, spaced: decoder.is_none(), alphabet, byte_tokens })
    }

    /// What a token stands for after others.
    fn bytes(&self, token: &str) -> Result<Vec<u8>, String> {
        if let Some(byte) = self.byte(token) {
            return Ok(vec![byte]);
        }
        if self.spaced {
            return Ok(format!(" {token}").into_bytes());
        }
        if self.steps.is_empty() {
            return Ok(self.spelled(token));
        }
        let text = self.run(vec![BEFORE.to_owned(), token.to_owned()])?;
        match text.strip_prefix(BEFORE) {
            Some(rest) => Ok(self.spelled(rest)),
            None => Err("it changes the token before".to_owned()),
        }
    }

    /// What a token stands for at the beginning of a text.
    pub(super) fn first_bytes(&self, token: &str) -> Result<Vec<u8>, String> {
        match self.byte(token) {
            // Half a character cannot be decoded alone, nor is there a space to lose.
            Some(byte) if !byte.is_ascii() => Ok(vec![byte]),
            _ => Ok(self.spelled(&self.run(vec![token.to_owned()])?)),
        }
    }

    fn run(&self, tokens: Vec<String>) -> Result<String, String> {
        let done = self.steps.iter().try_fold(tokens, |tokens, step| step.decode_chain(tokens));
        done.map(|tokens| tokens.concat()).map_err(|error| error.to_string())
    }

    fn byte(&self, token: &str) -> Option<u8> {
        let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
        let hexadecimal = self.byte_tokens && digits.len() == 2;
        hexadecimal.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
    }

    /// The bytes that a text spells in the byte-level alphabet; its own where it is not in that.
    fn spelled(&self, text: &str) -> Vec<u8> {
        let Some(alphabet) = &self.alphabet else { return text.as_bytes().to_vec() };
        let byte = |character: char| alphabet.get(character as usize).copied().flatten();
        text.chars().map(byte).collect::<Option<_>>().unwrap_or_else(|| text.as_bytes().to_vec())
    }
}

fn flatten(decoder: &DecoderWrapper, steps: &mut Vec<DecoderWrapper>) {
    match decoder {
        DecoderWrapper::Sequence(sequence) => {
            sequence.get_decoders().iter().for_each(|decoder| flatten(decoder, steps));
        }
        other => steps.push(other.clone()),
    }
}

/// The alphabet of GPT-2's byte-level tokens: printable bytes are the characters of the same number, the
/// others are the characters from 256 on, in order.
fn byte_level_alphabet() -> Vec<Option<u8>> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut alphabet: Vec<_> = (0..=u8::MAX).map(|byte| printable(byte).then_some(byte)).collect();
    alphabet.extend((0..=u8::MAX).filter(|&byte| !printable(byte)).map(Some));
    alphabet
}
