//! Texts to token ids.

use std::path::Path;
use std::sync::OnceLock;

use tokenizers::normalizers::{Lowercase, Sequence};
use tokenizers::{NormalizerWrapper, PostProcessor, Tokenizer, TruncationParams, TruncationStrategy};

use super::config::Settings;
use super::error::{EncoderError, TokenError};
use crate::backend::checkpoint::CheckpointError;

/// Turns texts into token ids, as the checkpoint's tokenizer.json says.
#[derive(Debug)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    vocabulary: usize,
    max_length: usize,
    truncation: bool,
    /// The same without a limit, to count the tokens of a text that is refused; made for the first.
    counter: OnceLock<Tokenizer>,
}

/// Bytes of a text that is too long of which tokens are counted: a refusal must not cost more than an
/// answer would.
const COUNTED_BYTES: usize = 64 << 10;

impl TextTokenizer {
    /// Reads tokenizer.json. `max_length` replaces the checkpoint's limit.
    pub(super) fn load(
        settings: &Settings,
        max_length: Option<usize>,
        truncation: bool,
    ) -> Result<Self, EncoderError> {
        let path = settings.directory.join("tokenizer.json");
        let bytes =
            std::fs::read(&path).map_err(|source| CheckpointError::Read { path: path.clone(), source })?;
        let tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| invalid(&path, &*error))?;
        let max_length = max_length.unwrap_or(settings.max_length);
        let least = tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(false)) + 1;
        let most = settings.model.longest();
        if !(least..=most).contains(&max_length) {
            return Err(EncoderError::MaxLength { max_length, least, most });
        }
        let tokenizer =
            configure(tokenizer, settings, max_length).map_err(|error| invalid(&path, &*error))?;
        Ok(Self {
            tokenizer,
            vocabulary: settings.model.vocabulary,
            max_length,
            truncation,
            counter: OnceLock::new(),
        })
    }

    /// The ids of `text`, special tokens included, truncated to [`Self::max_length`].
    ///
    /// # Errors
    /// When the tokenizer fails, answers no token at all, or one the model does not have.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenError> {
        // Offsets into the text are not asked for, so they are not computed.
        let encoding = self
            .tokenizer
            .encode_fast(text, true)
            .map_err(|error| TokenError::Tokenizer(error.to_string()))?;
        let ids = encoding.get_ids().to_vec();
        self.check_ids(&ids)?;
        Ok(ids)
    }

    /// The same, cut to `most` tokens, of which the last stays the last: special tokens end a text.
    ///
    /// # Errors
    /// Those of [`Self::encode`].
    pub fn encode_at_most(&self, text: &str, most: usize) -> Result<Vec<u32>, TokenError> {
        let mut ids = self.encode(text)?;
        if ids.len() > most
            && let Some(end) = ids.pop()
        {
            ids.truncate(most.saturating_sub(1));
            ids.push(end);
        }
        Ok(ids)
    }

    /// The same, but a text with more tokens is an error instead of cut.
    ///
    /// # Errors
    /// Those of [`Self::encode`], and [`TokenError::TextTooLong`].
    pub fn encode_whole(&self, text: &str) -> Result<Vec<u32>, TokenError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, true)
            .map_err(|error| TokenError::Tokenizer(error.to_string()))?;
        if !encoding.get_overflowing().is_empty() {
            return Err(self.too_long(text));
        }
        let ids = encoding.get_ids().to_vec();
        self.check_ids(&ids)?;
        Ok(ids)
    }

    /// The tokenizer stops soon after the limit, so how many tokens there would be is counted anew.
    fn too_long(&self, text: &str) -> TokenError {
        let counter = self.counter.get_or_init(|| {
            let mut counter = self.tokenizer.clone();
            // Fails for a limit that leaves no room for special tokens, and this is none.
            drop(counter.with_truncation(None).map(|_| ()));
            counter
        });
        let all = text.len() <= COUNTED_BYTES;
        let counted = if all { text } else { &text[..text.floor_char_boundary(COUNTED_BYTES)] };
        match counter.encode_fast(counted, true) {
            Ok(encoding) => TokenError::TextTooLong {
                // The cut may fall within a token.
                got: encoding.get_ids().len().max(self.max_length + 1),
                all,
                max_length: self.max_length,
            },
            Err(error) => TokenError::Tokenizer(error.to_string()),
        }
    }

    /// Whether a text that is too long is cut, where its caller does not say.
    pub fn truncates(&self) -> bool {
        self.truncation
    }

    /// Whether the model can run ids that a caller brings: some, not too many, all in the vocabulary.
    ///
    /// # Errors
    /// The first rule they break.
    pub fn check_ids(&self, ids: &[u32]) -> Result<(), TokenError> {
        if ids.is_empty() {
            return Err(TokenError::Empty);
        }
        if ids.len() > self.max_length {
            return Err(TokenError::TooLong { got: ids.len(), max_length: self.max_length });
        }
        match ids.iter().position(|&id| id as usize >= self.vocabulary) {
            Some(position) => {
                Err(TokenError::OutOfVocabulary { id: ids[position], position, vocabulary: self.vocabulary })
            }
            None => Ok(()),
        }
    }

    /// Number of token ids the model has embeddings for; the largest valid id is one less.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary
    }

    /// Most tokens of one text, special tokens included.
    pub fn max_length(&self) -> usize {
        self.max_length
    }
}

/// Replaces the padding and truncation that tokenizer.json was saved with: sequences run unpadded,
/// and the limit is this model's.
fn configure(
    mut tokenizer: Tokenizer,
    settings: &Settings,
    max_length: usize,
) -> tokenizers::Result<Tokenizer> {
    tokenizer.with_padding(None);
    tokenizer.with_truncation(Some(TruncationParams {
        max_length,
        strategy: TruncationStrategy::LongestFirst,
        stride: 0,
        direction: settings.truncation,
    }))?;
    if settings.lowercase {
        let mut normalizers = vec![NormalizerWrapper::from(Lowercase)];
        normalizers.extend(tokenizer.get_normalizer().cloned());
        tokenizer.with_normalizer(Some(Sequence::new(normalizers)))?;
    }
    Ok(tokenizer)
}

fn invalid(path: &Path, error: &(dyn std::error::Error + Send + Sync)) -> EncoderError {
    CheckpointError::Invalid { path: path.to_owned(), message: error.to_string() }.into()
}
