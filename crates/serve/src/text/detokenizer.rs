//! The text of tokens as they come.

use std::sync::Arc;

use super::error::TextError;
use super::tokenizer::Tokenizer;

/// Text of a growing list of tokens that continues a prompt; multi-byte characters are never split.
///
/// All that is pushed, joined, is what the tokens add to the text of the prompt. At most three bytes are
/// held back, while they may yet become a character; a token takes time by its own length only.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    /// Whether a token came before: some decoders let the first of a text lose its space.
    started: bool,
    /// Bytes that begin a character, and before the next push nothing else.
    bytes: Vec<u8>,
    text: String,
}

impl Detokenizer {
    /// Continues `prompt`. Ids without a token, there and later, are no text.
    pub fn new(tokenizer: Arc<Tokenizer>, prompt: &[u32], skip_special: bool) -> Self {
        let counts = |&&id: &&u32| tokenizer.counts(id, skip_special);
        let mut started = false;
        // Characters end within the last three bytes, and the last tokens may have none.
        let mut last = Vec::new();
        for &id in prompt.iter().rev().filter(counts) {
            started = true;
            last.splice(0..0, tokenizer.token_bytes(id));
            if last.len() >= 3 {
                break;
            }
        }
        let bytes = unfinished(&last).to_vec();
        Self { tokenizer, skip_special, started, bytes, text: String::new() }
    }

    /// What has become certain with one more token, maybe nothing.
    ///
    /// # Errors
    /// When the tokenizer cannot make text of it; then nothing is added, and the next token may be pushed.
    pub fn push(&mut self, token: u32) -> Result<&str, TextError> {
        self.text.clear();
        self.started |= self.tokenizer.append(token, self.started, self.skip_special, &mut self.bytes)?;
        let mut done = 0;
        loop {
            let rest = &self.bytes[done..];
            let (valid, wrong) = match std::str::from_utf8(rest) {
                Ok(text) => (text, None),
                Err(error) => {
                    let valid = &rest[..error.valid_up_to()];
                    (std::str::from_utf8(valid).unwrap_or_default(), error.error_len())
                }
            };
            self.text.push_str(valid);
            done += valid.len();
            let Some(wrong) = wrong else { break };
            self.text.push(char::REPLACEMENT_CHARACTER);
            done += wrong;
        }
        self.bytes.drain(..done);
        Ok(&self.text)
    }

    /// The rest: nothing more comes that could finish a character.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if !self.bytes.is_empty() {
            self.bytes.clear();
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        &self.text
    }
}

/// The end of `bytes` that may yet become a character.
fn unfinished(bytes: &[u8]) -> &[u8] {
    let continues = |byte: &u8| byte & 0xC0 == 0x80;
    let after = bytes.iter().rev().take(3).take_while(|byte| continues(byte)).count();
    let end = &bytes[bytes.len().saturating_sub(after + 1)..];
    match std::str::from_utf8(end) {
        Err(error) if error.valid_up_to() == 0 && error.error_len().is_none() => end,
        _ => &[],
    }
}
