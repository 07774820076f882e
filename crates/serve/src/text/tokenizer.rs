//! A language model's texts as tokens, and back.

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::chat::ChatTemplate;
use super::error::TextError;
use super::pieces::{Decoding, Pieces};
use crate::backend::checkpoint::{CheckpointError, read_optional};

/// Ids beyond this are a mistake in a file: a table of all ids would not fit in memory.
const MOST_TOKENS: u32 = 1 << 24;

/// Turns texts into tokens and tokens into text, as tokenizer.json says.
#[derive(Debug)]
pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    decoding: Decoding,
    pieces: Pieces,
    /// Bytes of the longest token, where every text is spelled by tokens.
    longest: Option<usize>,
    /// Tokens by id, as the vocabulary spells them; `None` where an id is left out.
    tokens: Vec<Option<String>>,
    special: HashSet<u32>,
    config: Map<String, Value>,
    template: Option<ChatTemplate>,
}

impl Tokenizer {
    /// Reads tokenizer.json, and the chat template where the folder has one. Padding and truncation that
    /// were saved with the tokenizer are dropped.
    ///
    /// # Errors
    /// When tokenizer.json is missing, when a file is not valid, and when it asks for a decoder whose
    /// text could not be streamed.
    pub fn load(folder: &Path) -> Result<Self, CheckpointError> {
        let path = folder.join("tokenizer.json");
        let bytes =
            std::fs::read(&path).map_err(|source| CheckpointError::Read { path: path.clone(), source })?;
        let invalid = |message: String| CheckpointError::Invalid { path: path.clone(), message };
        let mut tokenizer =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| invalid(error.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| invalid(error.to_string()))?;
        let tokens = tokens_by_id(&tokenizer).map_err(invalid)?;
        let decoding = Decoding::new(tokenizer.get_decoder(), &path)?;
        let pieces = Pieces::new(&tokens, &decoding, &path)?;
        let added = tokenizer.get_added_tokens_decoder();
        let swallows = added.values().any(|token| token.lstrip || token.rstrip);
        let longest = (!swallows && pieces.has_all_bytes()).then(|| pieces.longest());
        let special = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        let config = read_optional(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let template = ChatTemplate::read(folder)?;
        Ok(Self { tokenizer, decoding, pieces, longest, tokens, special, config, template })
    }

    /// The tokens of a text; `special`: with what the tokenizer puts around a text, as a token that begins it.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TextError> {
        // Offsets into the text are not asked for, so they are not computed.
        let encoding = self.tokenizer.encode_fast(text, special);
        let encoding = encoding.map_err(|error| TextError::Tokenizer(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The most bytes of a text of so many tokens; `None` where what is not known, or what a token swallows beside
    /// it, may have any length.
    pub fn most_bytes(&self, tokens: u32) -> Option<usize> {
        Some(self.longest?.saturating_mul(tokens as usize))
    }

    /// The text of a list of tokens; bytes that are no character become U+FFFD.
    ///
    /// # Errors
    /// When an id is beyond the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        let (mut bytes, mut started) = (Vec::new(), false);
        for &id in ids {
            if id > self.highest_id() {
                return Err(TextError::UnknownToken { id, highest: self.highest_id() });
            }
            started |= self.append(id, started, skip_special, &mut bytes)?;
        }
        Ok(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        })
    }

    /// Adds what a token stands for, `started`: after others. Says whether it counts as one.
    pub(super) fn append(
        &self,
        id: u32,
        started: bool,
        skip_special: bool,
        bytes: &mut Vec<u8>,
    ) -> Result<bool, TextError> {
        if !self.counts(id, skip_special) {
            return Ok(false);
        }
        match &self.tokens[id as usize] {
            Some(token) if !started => {
                bytes.extend(self.decoding.first_bytes(token).map_err(TextError::Tokenizer)?);
            }
            _ => bytes.extend_from_slice(self.pieces.bytes(id)),
        }
        Ok(true)
    }

    /// Whether a token is part of a text: one that is, and that is not left out. Models may know more ids than their
    /// tokenizers, and draw them.
    pub(super) fn counts(&self, id: u32, skip_special: bool) -> bool {
        self.token(id).is_some() && !(skip_special && self.is_special(id))
    }

    /// The largest id that has a token.
    pub fn highest_id(&self) -> u32 {
        u32::try_from(self.tokens.len().saturating_sub(1)).unwrap_or(u32::MAX)
    }

    /// The bytes that a token stands for within a text; nothing for an id without a token.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.pieces.bytes(id).to_vec()
    }

    /// A token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize)?.as_deref()
    }

    /// Whether a token is a mark of the model's, such as the end of a text, rather than text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The chat template, where the model has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// tokenizer_config.json; empty where there is none.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }
}

/// All tokens by id.
fn tokens_by_id(tokenizer: &tokenizers::Tokenizer) -> Result<Vec<Option<String>>, String> {
    let vocabulary = tokenizer.get_vocab(true);
    let highest = vocabulary.values().copied().max().ok_or("it has no tokens")?;
    if highest >= MOST_TOKENS {
        return Err(format!("it has a token with id {highest}; ids below {MOST_TOKENS} are read"));
    }
    Ok((0..=highest).map(|id| tokenizer.id_to_token(id)).collect())
}
